// Products of a few rows with weights that are read where they lie, since packing them would take as long.
#pragma once

#include "product.h"

namespace rnnkern::RNNKERN_ISA {

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

}  // namespace rnnkern::RNNKERN_ISA
