// The packed product that everything on the CPU runs on: a tile of ROWS rows by COLS vectors, summed over k in order,
// one element of the sum after the other. So a result never depends on how rows are grouped or shared among threads.
#pragma once

#include "vec.h"

namespace rnnkern::RNNKERN_ISA {

// Accumulators that fit the register file beside the operands.
constexpr int kMaxAccumulators = RNNKERN_VECTOR_BYTES == 64 ? 24 : 12;
constexpr int kMaxColumns = 8;
constexpr int kMaxRows = 8;

// out[r][c] = sum over k of a[r][k * stride] * panel[k][c]; panel [depth][COLS][lanes], out [ROWS][COLS][lanes].
template <class C, int COLS, int ROWS>
void product_tile(const C* panel, int64_t depth, const C* const* a, int64_t stride, C* out) {
  using V = Vec<C>;
  V sum[ROWS][COLS];
  const C* row[ROWS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    row[r] = a[r];
#pragma GCC unroll 8
    for (int c = 0; c < COLS; ++c) sum[r][c] = V(C(0));
  }
  int64_t at = 0;
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k, at += stride, panel += COLS * V::lanes) {
    V w[COLS];
#pragma GCC unroll 8
    for (int c = 0; c < COLS; ++c) w[c] = load<V>(panel + c * V::lanes);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      V const x(row[r][at]);
#pragma GCC unroll 8
      for (int c = 0; c < COLS; ++c) sum[r][c] = sum[r][c] + x * w[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < COLS; ++c) store(out + (r * COLS + c) * V::lanes, sum[r][c]);
}

template <class C>
using Tile = void (*)(const C* panel, int64_t depth, const C* const* a, int64_t stride, C* out);

// tile_table<C>[cols][rows]; null where the accumulators do not fit.
template <class C>
struct TileTable {
  Tile<C> at[kMaxColumns + 1][kMaxRows + 1] = {};

  template <int I>
  constexpr void fill() {
    constexpr int cols = I / kMaxRows + 1, rows = I % kMaxRows + 1;
    if constexpr (cols * rows <= kMaxAccumulators) at[cols][rows] = &product_tile<C, cols, rows>;
  }
  template <int... I>
  constexpr TileTable(std::integer_sequence<int, I...>) {
    (fill<I>(), ...);
  }
};
template <class C>
constexpr TileTable<C> tile_table{std::make_integer_sequence<int, kMaxColumns * kMaxRows>{}};

constexpr int tile_rows(int cols) { return std::min(kMaxRows, kMaxAccumulators / cols); }

// The next tile's rows where `left` remain: as even as can be, since a tile of few rows waits for its sums (H 256, B 64
// on two threads: 32 rows as 6, 6, 5, 5, 5, 5 and not 6, 6, 6, 6, 6, 2).
inline int next_rows(int64_t left, int most) {
  int64_t const tiles = (left + most - 1) / most;
  return int((left + tiles - 1) / tiles);
}

// Transposes `lanes` rows of `lanes` values: log2(lanes) times, the lower and upper half of the rows are interleaved.
template <class C, size_t... I>
RNNKERN_INLINE void transpose(Vec<C> (&rows)[Vec<C>::lanes], std::index_sequence<I...>) {
  constexpr int lanes = Vec<C>::lanes, half = lanes / 2;
#pragma GCC unroll 4
  for (int stage = 1; stage < lanes; stage *= 2) {
    Vec<C> next[lanes];
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

// One vector column of a panel from `count` <= lanes rows that are contiguous in k: out[k][lane] = row(lane)[k], zero
// in the lanes beyond count; out's steps are `pitch` apart.
template <class C, class T, class Row>
void pack_transposed(Row row, int count, int64_t depth, C* out, int64_t pitch) {
  using V = Vec<C>;
  constexpr int lanes = V::lanes;
  for (int64_t k = 0; k < depth; k += lanes) {
    int const width = int(std::min<int64_t>(lanes, depth - k));
    V block[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) block[i] = i < count ? load<V>(row(i) + k, width) : V(C(0));
    transpose<C>(block, std::make_index_sequence<lanes>{});
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i)
      if (i < width) store(out + (k + i) * pitch, block[i]);
  }
}

// One row's product with such rows, unpacked: out[lane] = sum over k of a[k] * row(lane)[k]. For weights that are used
// once packing would cost more than the product. The sums are those of the packed tile, in the same order.
template <class C, class T, class Row>
void product_unpacked(Row row, int count, int64_t depth, const C* a, C* out) {
  using V = Vec<C>;
  constexpr int lanes = V::lanes;
  V sum(C(0));
  for (int64_t k = 0; k < depth; k += lanes) {
    int const width = int(std::min<int64_t>(lanes, depth - k));
    V block[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) block[i] = i < count ? load<V>(row(i) + k, width) : V(C(0));
    transpose<C>(block, std::make_index_sequence<lanes>{});
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i)
      if (i < width) sum = sum + V(a[k + i]) * block[i];
  }
  store(out, sum);
}

// A panel's column from rows that are contiguous in the lanes: out[k][lane] = row(k)[lane].
template <class C, class T, class Row>
void pack_rows(Row row, int count, int64_t depth, C* out, int64_t pitch) {
  for (int64_t k = 0; k < depth; ++k) store(out + k * pitch, load<Vec<C>>(row(k), count));
}

}  // namespace rnnkern::RNNKERN_ISA
