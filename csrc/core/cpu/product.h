// The packed product that everything on the CPU runs on: a tile of ROWS rows by COLS vectors, summed over k in order,
// one element of the sum after the other. So a result never depends on how rows are grouped or shared among threads.
#pragma once

#include "operands.h"

namespace rnnkern::RNNKERN_ISA {

// Accumulators that fit the register file beside the operands.
constexpr int kMaxAccumulators = RNNKERN_VECTOR_BYTES == 64 ? 24 : 12;
constexpr int kMaxColumns = 8;
constexpr int kMaxRows = 8;
constexpr int kFewRows = kMaxAccumulators / kMaxColumns;  // of a tile of the most columns

// What a worker does of `count`. Of panels it packs those that it runs where units are shared: a cache line that
// another core has written takes 10 to 100 ns.
struct Part {
  int begin, end;
  Part(int64_t count, int worker, int workers)
      : begin(int(count * worker / workers)), end(int(count * (worker + 1) / workers)) {}
};

// An operand of a product C = op(A) B of all time steps (gemm.h).
template <class T>
struct Matrix {
  const T* data;
  int64_t stride;           // elements between rows as stored
  bool transposed = false;  // stored [columns, rows]
  bool of_turn = false;     // where k runs over rows: `data` begins with the first row of a turn, see run_turn()
};

// Rows of A, and of C, counted from where a part of both begins: `count` of them from `begin` on, or those of `list`,
// which in C may follow each other.
struct RowsOf {
  int64_t count, begin = 0;
  const int64_t* list = nullptr;
  bool together_in_c = false;
  int64_t operator[](int64_t i) const { return list ? list[i] : begin + i; }
};

constexpr int64_t kLine = 64;
constexpr int64_t kFirstCacheBytes = 1 << 15;
constexpr int64_t kStreamedBytes =
    1 << (RNNKERN_VECTOR_BYTES == 64 ? 20 : 19);  // weights beyond come from farther than L2
constexpr int64_t kStreamedAhead = 4096;          // bytes: hardware prefetching stops at a page's end

// Asks for the lines of so many bytes, into the first or the second cache. Inlined always: GCC drops calls of what
// only prefetches.
template <int64_t BYTES, int CACHE = 1>
RNNKERN_INLINE void prefetch_lines(const void* from) {
  constexpr int read = 0, locality = 4 - CACHE;
#pragma GCC unroll 16
  for (int64_t i = 0; i < BYTES; i += kLine) __builtin_prefetch(static_cast<const char*>(from) + i, read, locality);
}

// What a tile asks for while it runs: from `at` on, `step` bytes with each step of k.
struct Prefetch {
  const char* at = nullptr;
  int64_t step = 0;
};

// Where each row of a tile's sums goes, or is added to. In memory, for the tile has no register to spare for it.
template <class C>
struct TileSums {
  C* row[kMaxRows];
  bool add = false;
};
template <class C>
TileSums<C> rows_apart(C* first, int64_t pitch, int rows) {
  TileSums<C> sums;
  for (int r = 0; r < rows; ++r) sums.row[r] = first + r * pitch;
  return sums;
}

// out[r][c] = sum over k of a[r][k * stride] * panel[k][c]; panel [packed_steps(depth)][COLS][lanes]. In pairs the
// stride is that of a pair. STREAMED: lines ahead are asked for, all that each step of k takes where few rows
// pass by, else one.
template <class P, int COLS, int ROWS, bool STREAMED>
void product_tile(const typename Packed<P>::Word* panel, int64_t depth, const typename Packed<P>::Operand* const* a,
                  int64_t stride, TileSums<typename Packed<P>::Sum> const& out, Prefetch const& ahead) {
  using V = sums_t<P>;
  using Operand = typename Packed<P>::Operand;
  V sum[ROWS][COLS];
  const Operand* row[ROWS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    row[r] = a[r];
#pragma GCC unroll 8
    for (int c = 0; c < COLS; ++c) sum[r][c] = V(0);
  }
  // The side with fewer vectors stays in registers while those of the other pass by: 4 columns by 3 rows need all 16.
  constexpr int64_t asked = ROWS > 2 ? 1 : COLS * V::lanes * sizeof(*panel);
  const char* next = ahead.at;
  int64_t const next_step = ahead.step;
  auto const step = [&](auto value) __attribute__((always_inline)) {
    if constexpr (STREAMED) {
      prefetch_lines<asked>(next);
      next += next_step;
    }
    if constexpr (ROWS < COLS) {
      decltype(value(row[0])) x[ROWS];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) x[r] = value(row[r]);
#pragma GCC unroll 8
      for (int c = 0; c < COLS; ++c) {
        auto const w = load_packed<P>(panel + c * V::lanes);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sum[r][c] = multiply_add<P>(sum[r][c], x[r], w);
      }
    } else {
      decltype(load_packed<P>(panel)) w[COLS];
#pragma GCC unroll 8
      for (int c = 0; c < COLS; ++c) w[c] = load_packed<P>(panel + c * V::lanes);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        auto const x = value(row[r]);
#pragma GCC unroll 8
        for (int c = 0; c < COLS; ++c) sum[r][c] = multiply_add<P>(sum[r][c], x, w[c]);
      }
    }
  };
  int64_t at = 0;
#pragma GCC unroll 2
  for (int64_t s = 0; s < depth / Packed<P>::together; ++s, at += stride, panel += COLS * V::lanes)
    step([&](const Operand* x) { return broadcast<P>(x, at); });
  if constexpr (Packed<P>::together > 1) {
    if (depth % 2 == 1) step([&](const Operand* x) { return broadcast_half(x, at); });
  }
  bool const add = out.add;
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    auto* const to = out.row[r];
#pragma GCC unroll 8
    for (int c = 0; c < COLS; ++c) store(to + c * V::lanes, add ? load<V>(to + c * V::lanes) + sum[r][c] : sum[r][c]);
  }
}

template <class P>
using Tile = decltype(&product_tile<P, 1, 1, false>);

// tile_table<P>.at[streamed][cols][rows]; null where the accumulators do not fit.
template <class P>
struct TileTable {
  Tile<P> at[2][kMaxColumns + 1][kMaxRows + 1] = {};

  template <int I>
  constexpr void fill() {
    constexpr int cols = I / kMaxRows + 1, rows = I % kMaxRows + 1;
    if constexpr (cols * rows <= kMaxAccumulators && (rows <= kFewRows || !is_widened<P>)) {
      at[false][cols][rows] = &product_tile<P, cols, rows, false>;
      at[true][cols][rows] = &product_tile<P, cols, rows, true>;
    }
  }
  template <int... I>
  constexpr TileTable(std::integer_sequence<int, I...>) {
    (fill<I>(), ...);
  }
};
template <class P>
constexpr TileTable<P> tile_table{std::make_integer_sequence<int, kMaxColumns * kMaxRows>{}};

constexpr int tile_rows(int cols) { return std::min(kMaxRows, kMaxAccumulators / cols); }

// Rows dealt out to tiles of at most `most`, as evenly as can be, since a tile of few rows waits for its sums (H 256,
// B 64 on two threads: 32 rows as 6, 6, 5, 5, 5, 5 and not 6, 6, 6, 6, 6, 2).
struct TileRows {
  int64_t count, fewest, longer;  // `longer` of them have one more

  TileRows(int64_t rows, int most) : count(1), fewest(rows), longer(0) {
    if (rows <= most) return;  // without divisions, which small steps would wait for
    count = (rows + most - 1) / most;
    fewest = rows / count, longer = rows % count;
  }
  int of(int64_t tile) const { return int(fewest + (tile < longer)); }
};

// body(0), ..., body(N - 1) with constant indices, so that arrays indexed by them stay in registers.
template <int N, class Body>
RNNKERN_INLINE void unrolled(Body body) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// Transposes `lanes` rows of `lanes` values: log2(lanes) times, the lower and upper half of the rows are interleaved.
template <class V, size_t... I>
RNNKERN_INLINE void transpose(V (&rows)[sizeof...(I)], std::index_sequence<I...>) {
  constexpr int lanes = sizeof...(I), half = lanes / 2;
#pragma GCC unroll 4
  for (int stage = 1; stage < lanes; stage *= 2) {
    V next[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      auto const low = rows[i].v, high = rows[i + half].v;
      next[2 * i].v = __builtin_shufflevector(low, high, (I % 2 == 0 ? I / 2 : lanes + I / 2)...);
      next[2 * i + 1].v = __builtin_shufflevector(low, high, (half + (I % 2 == 0 ? I / 2 : lanes + I / 2))...);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

// Vector columns `s` to `s + lanes` of a panel from rows that are contiguous in k: block[i][lane] = step s + i of
// row(lane), zero in the lanes beyond count.
template <class P, class T, class Row>
RNNKERN_INLINE void load_transposed(Row row, int count, int64_t s, int64_t depth,
                                    sums_t<P> (&block)[sums_t<P>::lanes]) {
  constexpr int lanes = sums_t<P>::lanes;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) block[i] = i < count ? load_steps<P, T>(row(i), s, depth) : sums_t<P>(0);
  transpose(block, std::make_index_sequence<lanes>{});
}

// One vector column of a panel from `count` <= lanes rows that are contiguous in k. `next`: rows that follow each other
// and are packed after these, or null. They are asked for in the order of memory, which no prefetcher sees in what is
// read here: from the third cache, packing takes half the time.
template <class T, class Row, class To>
void pack_transposed(Row row, int count, int64_t depth, To column, const T* next) {
  using P = typename To::Weight;
  constexpr int lanes = sums_t<P>::lanes;
  constexpr int64_t read = lanes * lanes * Packed<P>::together;
  int64_t const steps = packed_steps<P>(depth);
  for (int64_t s = 0; s < steps; s += lanes) {
    if (next) {
      prefetch_lines<read * sizeof(T), 2>(next);
      next += read;
    }
    sums_t<P> block[lanes];
    load_transposed<P, T>(row, count, s, depth, block);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i)
      if (s + i < steps) column.put(s + i, block[i]);
  }
}

// A vector column of a panel from rows that are contiguous in the lanes: step k holds row(k).
template <class T, class Row, class To>
void pack_rows(Row row, int count, int64_t depth, To column) {
  using P = typename To::Weight;
  for (int64_t s = 0; s < packed_steps<P>(depth); ++s) column.put(s, load_columns<P, T>(row, s, depth, count));
}

}  // namespace rnnkern::RNNKERN_ISA
