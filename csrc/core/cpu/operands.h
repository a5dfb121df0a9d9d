// What the products multiply, by storage type T: values of the compute type; or, where the processor has dot products
// of bfloat16 (RNNKERN_BF16_DOT), pairs: the values of two steps of k side by side, which it multiplies and adds at
// once. Else weights in 16 bits that wait for memory stay in 16 bits, and each is made a float32 when it is read.
#pragma once

#include "vec.h"

namespace rnnkern::RNNKERN_ISA {

struct Pair {
  BFloat16 of[2];
};
// Two steps of k in the 16 bits of T, each of which is multiplied as a float32.
template <class T>
struct Widened;
template <>
struct Widened<BFloat16> {  // a pair in each lane
  Vec<float> pairs;
  Widened() = default;
  RNNKERN_INLINE explicit Widened(const float* p) : pairs(load<Vec<float>>(p)) {}
  RNNKERN_INLINE Vec<float> first() const { return from_bits<Vec<float>>(bits(pairs) << 16); }
  RNNKERN_INLINE Vec<float> second() const { return from_bits<Vec<float>>(bits(pairs) & int32_t(0xffff0000)); }
};
template <>
struct Widened<Float16> {  // the first step of all lanes, then the second
  const Float16* halves;
  Widened() = default;
  RNNKERN_INLINE explicit Widened(const float* p) : halves(reinterpret_cast<const Float16*>(p)) {}
  RNNKERN_INLINE Vec<float> first() const { return load<Vec<float>>(halves); }
  RNNKERN_INLINE Vec<float> second() const { return load<Vec<float>>(halves + Vec<float>::lanes); }
};

#if defined(RNNKERN_BF16_DOT)
template <class T>
using packed_t = std::conditional_t<std::is_same_v<T, BFloat16>, Pair, compute_t<T>>;
#else
template <class T>
using packed_t = compute_t<T>;
#endif

// Of a packed weight P: the type of what it is multiplied with, of the sums, the steps of k in one of it, and how many
// of it are padded with zeros to whole blocks.
template <class P>
struct Packed {
  using Word = P;  // as it lies in memory
  using Operand = P;
  using Sum = P;
  static constexpr int together = 1, block = 1;
};
template <class T>
struct Packed<Widened<T>> {
  using Word = float;
  using Operand = float;
  using Sum = float;
  static constexpr int together = 2, block = 1;
};
template <>
struct Packed<Pair> {
  using Word = Pair;
  using Operand = BFloat16;
  using Sum = float;
#if defined(RNNKERN_MATRIX_UNIT)
  static constexpr int together = 2, block = 16;
#else
  static constexpr int together = 2, block = 1;
#endif
};
template <class P>
constexpr bool is_widened = false;
template <class T>
constexpr bool is_widened<Widened<T>> = true;
// Without an instruction for it, a float16 is better converted once.
template <class T>
constexpr bool can_be_widened =
    sizeof(T) == 2 && std::is_same_v<packed_t<T>, float> && (std::is_same_v<T, BFloat16> || RNNKERN_VECTOR_BYTES > 16);
template <class T>
using operand_t = typename Packed<packed_t<T>>::Operand;
template <class P>
using sums_t = Vec<typename Packed<P>::Sum>;  // a vector of packed weights is held as one of these too, unless Widened

template <class P>
constexpr int64_t packed_steps(int64_t depth) {
  constexpr int64_t block = Packed<P>::together * Packed<P>::block;
  return (depth + block - 1) / block * Packed<P>::block;
}

template <class P>
RNNKERN_INLINE auto load_packed(const typename Packed<P>::Word* p) {
  if constexpr (is_widened<P>)
    return P(p);
  else
    return sums_t<P>(*reinterpret_cast<const typename sums_t<P>::InMemory*>(p));
}
template <class P>
RNNKERN_INLINE void store_packed(P* p, sums_t<P> a, bool shared = false) {
  using V = sums_t<P>;
  if (shared) return store(reinterpret_cast<typename V::Scalar*>(p), a, V::lanes, shared);
  *reinterpret_cast<typename V::InMemory*>(p) = a.v;
}

// Where a vector column of a panel is packed, its steps `pitch` apart.
template <class P>
struct Column {
  using Weight = P;
  P* out;
  int64_t pitch;
  bool shared = false;
  RNNKERN_INLINE void put(int64_t step, sums_t<P> a) const { store_packed(out + step * pitch, a, shared); }
};
struct ColumnOfHalves {  // for Widened<Float16>
  using Weight = float;
  float* out;
  int64_t pitch;
  RNNKERN_INLINE void put(int64_t step, Vec<float> a) const {
    store(reinterpret_cast<Float16*>(out + step / 2 * pitch) + step % 2 * Vec<float>::lanes, a);
  }
};

// sum + x * w, for both values of a pair.
template <class P>
RNNKERN_INLINE sums_t<P> multiply_add(sums_t<P> sum, sums_t<P> x, sums_t<P> w) {
#if defined(RNNKERN_BF16_DOT)
  if constexpr (std::is_same_v<P, Pair>)
    return (typename sums_t<P>::Native)_mm512_dpbf16_ps((__m512)sum.v, (__m512bh)x.v, (__m512bh)w.v);
#endif
  return sum + x * w;
}
// The same of what is Widened: an operand's values of two steps, or of the last one of an odd depth.
struct TwoSteps {
  Vec<float> first, second;
};
struct OneStep {
  Vec<float> first;
};
template <class P>
RNNKERN_INLINE Vec<float> multiply_add(Vec<float> sum, OneStep x, P w) {
  return sum + x.first * w.first();
}
template <class P>
RNNKERN_INLINE Vec<float> multiply_add(Vec<float> sum, TwoSteps x, P w) {
  return sum + x.first * w.first() + x.second * w.second();
}

// Step `s` of an operand in all lanes.
template <class P>
RNNKERN_INLINE auto broadcast(const typename Packed<P>::Operand* a, int64_t s) {
  if constexpr (std::is_same_v<P, Pair>) {
    int32_t pair;
    std::memcpy(&pair, a + 2 * s, sizeof pair);
    return from_bits<sums_t<P>>(pair - typename sums_t<P>::Bits{});
  } else if constexpr (is_widened<P>) {
    return TwoSteps{Vec<float>(a[2 * s]), Vec<float>(a[2 * s + 1])};
  } else {
    return sums_t<P>(a[s]);
  }
}
// The last step of an odd depth: the second value, which is another head's or nobody's, does not count.
RNNKERN_INLINE Vec<float> broadcast_half(const BFloat16* a, int64_t s) {
  return from_bits<Vec<float>>(int32_t{a[2 * s].bits} - Vec<float>::Bits{});
}
RNNKERN_INLINE OneStep broadcast_half(const float* a, int64_t s) { return {Vec<float>(a[2 * s])}; }

// Steps [s, s + lanes) of `depth` values that lie one after the other, zero beyond them.
template <class P, class T>
RNNKERN_INLINE sums_t<P> load_steps(const T* row, int64_t s, int64_t depth) {
  using V = sums_t<P>;
  if constexpr (std::is_same_v<P, Pair>) {
    V pairs(0.0f);
    std::memcpy(&pairs.v, row + 2 * s, sizeof(T) * size_t(std::min<int64_t>(2 * V::lanes, depth - 2 * s)));
    return pairs;
  } else {
    return load<V>(row + s, int(std::min<int64_t>(V::lanes, depth - s)));
  }
}

// `lanes` steps that are all there.
template <class P, class T>
RNNKERN_INLINE sums_t<P> load_steps(const T* row) {
  if constexpr (std::is_same_v<P, Pair>) {
    sums_t<P> pairs;  // at addresses of a bfloat16
    std::memcpy(&pairs.v, row, sizeof pairs.v);
    return pairs;
  } else {
    return load<sums_t<P>>(row);
  }
}

// One step of `count` <= lanes columns, from rows of k that are contiguous in the columns.
template <class P, class T, class Row>
RNNKERN_INLINE sums_t<P> load_columns(Row row, int64_t s, int64_t depth, int count) {
  using V = sums_t<P>;
  if constexpr (std::is_same_v<P, Pair>) {  // a bfloat16 is the upper half of its float32
    if (2 * s >= depth) return V(0.0f);
    auto const first = bits(load<V>(row(2 * s), count));
    if (2 * s + 1 == depth) return from_bits<V>(first >> 16 & 0xffff);
    return from_bits<V>((first >> 16 & 0xffff) | bits(load<V>(row(2 * s + 1), count)));
  } else {
    return load<V>(row(s), count);
  }
}

}  // namespace rnnkern::RNNKERN_ISA
