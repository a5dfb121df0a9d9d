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

// a[l] + a[l ^ HALF] in the lanes l without the bit HALF, the same of b in those with it.
template <int HALF, class V, size_t... L>
RNNKERN_INLINE V add_across(V a, V b, std::index_sequence<L...>) {
  constexpr int lanes = sizeof...(L);
  return V(__builtin_shufflevector(a.v, b.v, (L & HALF ? lanes + L : L)...) +
           __builtin_shufflevector(a.v, b.v, (L & HALF ? lanes + (L ^ HALF) : L ^ HALF)...));
}

// The sum of each of `lanes` vectors, side by side, by halves: I and what follows it in steps of STEP.
template <int STEP = 1, int I = 0, class V>
RNNKERN_INLINE V sum_of_each(const V (&sums)[V::lanes]) {
  if constexpr (STEP == V::lanes) {
    return sums[I];
  } else {
    return add_across<STEP>(sum_of_each<2 * STEP, I>(sums), sum_of_each<2 * STEP, I + STEP>(sums),
                            std::make_index_sequence<V::lanes>{});
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

// A few rows' product with weights that are used once or a few times, so that packing them would cost as much:
// out[r][c][lane] = sum over k of a[r][k] * weights(c)[lane][k]. Each of a weight row's sums is made in as many parts
// as a vector has lanes: another order than the packed tile's. Rows that lie across vectors, below, keep that one.
constexpr int kUnpackedRows = 32;

// `count` <= lanes rows that are contiguous in k.
template <class T>
struct WeightRows {
  const T* first;
  int64_t stride;
  int count;
};

// `next`: what the next ones are read from, asked for meanwhile, for each of these reads several rows at a time; into
// the first cache or the second.
template <class P, int ROWS, int CACHE, class T>
void dot_tile(WeightRows<T> const& weights, int64_t depth, const typename Packed<P>::Operand* const* a,
              typename Packed<P>::Sum* out, int64_t pitch, const T* next) {
  using V = sums_t<P>;
  using Operand = typename Packed<P>::Operand;
  constexpr int lanes = V::lanes, together = lanes / ROWS, step = lanes * Packed<P>::together;
  constexpr int64_t read = together * step;
  auto const tile = [&](auto row, int first) __attribute__((always_inline)) {
    V sum[lanes];
    unrolled<lanes>([&](auto i) __attribute__((always_inline)) { sum[i] = V(0); });
    auto const add = [&](auto load_w, auto load_a) __attribute__((always_inline)) {
      prefetch_lines<read * sizeof(T), CACHE>(next);
      next += read;
      V x[ROWS];
      unrolled<ROWS>([&](auto r) __attribute__((always_inline)) { x[r] = load_a(a[r]); });
      unrolled<together>([&](auto j) __attribute__((always_inline)) {
        V const w = load_w(row(j));
        unrolled<ROWS>([&](auto r) __attribute__((always_inline)) {
          sum[r * together + j] = multiply_add<P>(sum[r * together + j], x[r], w);
        });
      });
    };
    int64_t k = 0;
    for (; k + step <= depth; k += step)
      add([&](const T* w) __attribute__((always_inline)) { return load_steps<P>(w + k); },
          [&](const Operand* x) __attribute__((always_inline)) { return load_steps<P>(x + k); });
    int64_t const s = k / Packed<P>::together;
    if (k < depth)
      add([&](const T* w) __attribute__((always_inline)) { return load_steps<P>(w, s, depth); },
          [&](const Operand* x) __attribute__((always_inline)) { return load_steps<P>(x, s, depth); });
    V const sums = sum_of_each(sum);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
      std::memcpy(out + r * pitch + first, reinterpret_cast<const char*>(&sums.v) + r * together * sizeof(*out),
                  together * sizeof(*out));
  };
  int64_t const stride = weights.stride;
  for (int first = 0; first < lanes; first += together) {
    const T* const start = weights.first + first * stride;
    int const last = weights.count - 1 - first;
    if (last >= together - 1) {
      const T* const fours[] = {start, start + 4 * stride, start + 8 * stride, start + 12 * stride};
      tile([&](auto j) __attribute__((always_inline)) { return fours[j / 4] + j % 4 * stride; }, first);
    } else if (last >= 0) {
      tile([&](auto j) __attribute__((always_inline)) { return start + std::min<int>(j, last) * stride; }, first);
    } else {
      for (int r = 0; r < ROWS; ++r) std::memset(out + r * pitch + first, 0, together * sizeof(*out));
    }
  }
}

template <class P, int CACHE, class Weights>
void product_unpacked_by(Weights weights, int columns, int64_t depth, const typename Packed<P>::Operand* const* a,
                         int rows, typename Packed<P>::Sum* out) {
  constexpr int lanes = sums_t<P>::lanes;
  int64_t const pitch = columns * lanes;
  for (int c = 0; c < columns; ++c) {
    auto const now = weights(c);
    auto* next = weights(c + 1).first;
    for (int r = 0; r < rows; next = now.first) {
      auto* const to = out + r * pitch + c * lanes;
      if (lanes >= 4 && rows - r >= 4) {
        dot_tile<P, std::min(lanes, 4), CACHE>(now, depth, a + r, to, pitch, next), r += 4;
      } else if (rows - r >= 2) {
        dot_tile<P, 2, CACHE>(now, depth, a + r, to, pitch, next), r += 2;
      } else {
        dot_tile<P, 1, CACHE>(now, depth, a + r, to, pitch, next), r += 1;
      }
    }
  }
}
// `weights(columns)` is what a later call begins with, where panels are taken forwards.
template <class P, class Weights>
void product_unpacked(Weights weights, int columns, int64_t depth, const typename Packed<P>::Operand* const* a,
                      int rows, typename Packed<P>::Sum* out) {
  constexpr int64_t kInFirstCache = 12288;  // bytes of a column of weights, beside which there is room for the next
  bool const near = sums_t<P>::lanes * depth * int64_t(sizeof(*weights(0).first)) <= kInFirstCache;
  return near ? product_unpacked_by<P, 1>(weights, columns, depth, a, rows, out)
              : product_unpacked_by<P, 2>(weights, columns, depth, a, rows, out);
}

// Rows that fill more than half a vector: they lie in the lanes, as a panel, and the weights pass by as the rows of a
// tile do, so that each sum is made in order and none is left in parts. For weights that the tile reads as they are
// stored.
template <class P, class T>
constexpr bool can_lie_across = std::is_same_v<T, typename Packed<P>::Operand>;
template <class P>
constexpr bool lie_across(int64_t rows) {
  return rows <= std::min(kUnpackedRows, kMaxColumns * sums_t<P>::lanes) && rows > sums_t<P>::lanes / 2;
}
template <class P>
constexpr int vectors_across(int64_t rows) {
  return int((rows + sums_t<P>::lanes - 1) / sums_t<P>::lanes);
}
template <class P>
constexpr int64_t elements_across(int64_t rows, int64_t depth) {
  return vectors_across<P>(rows) * sums_t<P>::lanes * packed_steps<P>(depth);
}
template <class P>
void pack_across(const typename Packed<P>::Operand* const* a, int rows, int64_t depth, P* out) {
  constexpr int lanes = sums_t<P>::lanes;
  int64_t const pitch = vectors_across<P>(rows) * lanes;
  for (int r = 0; r < rows; r += lanes)
    pack_transposed<typename Packed<P>::Operand>([&](int lane) { return a[r + lane]; }, std::min(lanes, rows - r),
                                                 depth, Column<P>{out + r, pitch}, nullptr);
}

// As product_unpacked, with what pack_across made of the rows.
template <class P, class Weights>
void product_across(Weights weights, int columns, int64_t depth, const P* across, int rows,
                    typename Packed<P>::Sum* out) {
  using V = sums_t<P>;
  constexpr int lanes = V::lanes;
  const typename Packed<P>::Operand* weight[kMaxColumns * lanes + 1];
  alignas(64) typename Packed<P>::Sum sums[kMaxColumns * lanes * kUnpackedRows];
  int const vectors = vectors_across<P>(rows), width = vectors * lanes;
  int count = 0;
  for (int c = 0; c < columns; ++c) {
    auto const now = weights(c);
    for (int i = 0; i < now.count; ++i) weight[count++] = now.first + i * now.stride;
  }
  weight[count] = weights(columns).first;
  TileRows const tiles(count, tile_rows(vectors));
  for (int64_t tile = 0, at = 0, now; tile < tiles.count; ++tile, at += now) {
    now = tiles.of(tile);
    tile_table<P>.at[true][vectors][now](
        across, depth, weight + at, 1, rows_apart(sums + at * width, width, int(now)),
        {reinterpret_cast<const char*>(weight[at + now]), now * int64_t(Packed<P>::together * sizeof(*weight[0]))});
  }
  const auto* from = sums;
  for (int c = 0; c < columns; ++c) {
    int const units = weights(c).count;
    for (int r = 0; r < rows; r += lanes) {
      V block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) block[i] = i < units ? load<V>(from + i * width + r) : V(0);
      transpose(block, std::make_index_sequence<lanes>{});
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        if (r + i < rows) store(out + ((r + i) * columns + c) * lanes, block[i]);
    }
    from += units * width;
  }
}

// The same from rows that are contiguous in the lanes: step k holds row(k).
template <class T, class Row, class To>
void pack_rows(Row row, int count, int64_t depth, To column) {
  using P = typename To::Weight;
  for (int64_t s = 0; s < packed_steps<P>(depth); ++s) column.put(s, load_columns<P, T>(row, s, depth, count));
}

}  // namespace rnnkern::RNNKERN_ISA
