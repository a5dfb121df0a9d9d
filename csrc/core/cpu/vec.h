// A SIMD vector of the instruction set that is being compiled: one definition for all, on the compiler's own vector
// types. Included inside a target region (see avx2.cpp), never before one.
#pragma once

#include "../cell/cell.h"
#include "../dtype.h"

#define RNNKERN_INLINE inline __attribute__((always_inline))

namespace rnnkern::RNNKERN_ISA {

// InMemory: the vector at any address. GCC makes some copies by memcpy in parts of 16 bytes, and a vector that is read
// right after its parts were written waits for them.
template <class C>
struct NativeTypes;
template <>
struct NativeTypes<float> {
  typedef float Native __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));
  typedef float InMemory __attribute__((vector_size(RNNKERN_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Bits __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));
};
template <>
struct NativeTypes<double> {
  typedef double Native __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));
  typedef double InMemory __attribute__((vector_size(RNNKERN_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Bits __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));
};

template <class C>
struct Vec {
  static constexpr int lanes = RNNKERN_VECTOR_BYTES / sizeof(C);
  using Scalar = C;
  using Native = typename NativeTypes<C>::Native;
  using InMemory = typename NativeTypes<C>::InMemory;
  using Bits = typename NativeTypes<C>::Bits;

  Native v;

  Vec() = default;
  RNNKERN_INLINE Vec(Native native) : v(native) {}
  RNNKERN_INLINE explicit Vec(C scalar) : v(scalar - Native{}) {}

  friend RNNKERN_INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend RNNKERN_INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend RNNKERN_INLINE Vec operator-(Vec a) { return -a.v; }
  friend RNNKERN_INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend RNNKERN_INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
};

template <class V>
RNNKERN_INLINE auto bits(V a) {
  return (typename V::Bits)a.v;
}
template <class V>
RNNKERN_INLINE V from_bits(typename V::Bits a) {
  return V((typename V::Native)a);
}
template <class C>
RNNKERN_INLINE Vec<C> positive(Vec<C> v, Vec<C> a, Vec<C> b) {
  return Vec<C>(v.v > typename Vec<C>::Native{} ? a.v : b.v);
}
// The hardware's instructions give their second operand where one is NaN, which the compiler does not use by itself.
template <class C>
RNNKERN_INLINE Vec<C> minimum(Vec<C> a, Vec<C> limit) {  // NaN passes
#if RNNKERN_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<C, float>)
    return Vec<C>((typename Vec<C>::Native)_mm512_min_ps((__m512)limit.v, (__m512)a.v));
#elif RNNKERN_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<C, float>)
    return Vec<C>((typename Vec<C>::Native)_mm256_min_ps((__m256)limit.v, (__m256)a.v));
#endif
  return Vec<C>(a.v > limit.v ? limit.v : a.v);
}
template <class C>
RNNKERN_INLINE Vec<C> maximum(Vec<C> a, Vec<C> limit) {
#if RNNKERN_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<C, float>)
    return Vec<C>((typename Vec<C>::Native)_mm512_max_ps((__m512)limit.v, (__m512)a.v));
#elif RNNKERN_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<C, float>)
    return Vec<C>((typename Vec<C>::Native)_mm256_max_ps((__m256)limit.v, (__m256)a.v));
#endif
  return Vec<C>(a.v < limit.v ? limit.v : a.v);
}

// ---- memory: V is the vector, T the storage type; with n < lanes only the first n are touched, the others read as
// zero ----

template <class V>
RNNKERN_INLINE V load(const typename V::Scalar* p) {
  return V(*reinterpret_cast<const typename V::InMemory*>(p));
}
template <class V>
RNNKERN_INLINE void store(typename V::Scalar* p, V a) {
  *reinterpret_cast<typename V::InMemory*>(p) = a.v;
}

typedef uint16_t Half16 __attribute__((vector_size(RNNKERN_VECTOR_BYTES / 2)));
typedef uint16_t Half16InMemory __attribute__((vector_size(RNNKERN_VECTOR_BYTES / 2), aligned(2), may_alias));

template <class V>
RNNKERN_INLINE V widen(Half16 h, BFloat16) {
  using Bits = typename V::Bits;
#if RNNKERN_VECTOR_BYTES == 64  // gcc 12 takes five instructions for a conversion of its own
  return from_bits<V>((Bits)_mm512_cvtepu16_epi32((__m256i)h) << 16);
#elif RNNKERN_VECTOR_BYTES == 32
  return from_bits<V>((Bits)_mm256_cvtepu16_epi32((__m128i)h) << 16);
#else
  return from_bits<V>(__builtin_convertvector(h, Bits) << 16);
#endif
}
RNNKERN_INLINE Half16 narrow(Vec<float> a, BFloat16) {
#ifdef RNNKERN_BF16_DOT  // subnormals become zeros, as they do in the dot products
  return (Half16)_mm512_cvtneps_pbh((__m512)a.v);
#else
  typedef uint32_t Unsigned __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));  // a NaN's bits may overflow
  auto const b = (Unsigned)bits(a);
  auto const rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  auto const quiet = (b >> 16) | 0x40;
  auto const kept = a.v == a.v ? rounded : quiet;
#if RNNKERN_VECTOR_BYTES == 64
  return (Half16)_mm512_cvtepi32_epi16((__m512i)kept);
#else
  return __builtin_convertvector(kept, Half16);
#endif
#endif
}

template <class V>
RNNKERN_INLINE V widen(Half16 h, Float16) {
#if RNNKERN_VECTOR_BYTES == 64
  return V((typename V::Native)_mm512_cvtph_ps((__m256i)h));
#elif RNNKERN_VECTOR_BYTES == 32
  return V((typename V::Native)_mm256_cvtph_ps((__m128i)h));
#else
  V a(0.0f);
  for (int i = 0; i < V::lanes; ++i) a.v[i] = to_compute(Float16{h[i]});
  return a;
#endif
}
RNNKERN_INLINE Half16 narrow(Vec<float> a, Float16) {
#if RNNKERN_VECTOR_BYTES == 64
  return (Half16)_mm512_cvtps_ph((__m512)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif RNNKERN_VECTOR_BYTES == 32
  return (Half16)_mm256_cvtps_ph((__m256)a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  Half16 h;
  for (int i = 0; i < Vec<float>::lanes; ++i) h[i] = from_compute<Float16>(a.v[i]).bits;
  return h;
#endif
}

template <class V, class T>
  requires(sizeof(T) == 2)
RNNKERN_INLINE V load(const T* p) {
  return widen<V>(*reinterpret_cast<const Half16InMemory*>(p), T{});
}
template <class V, class T>
  requires(sizeof(T) == 2)
RNNKERN_INLINE void store(T* p, V a) {
  *reinterpret_cast<Half16InMemory*>(p) = narrow(a, T{});
}

template <class V, class T>
RNNKERN_INLINE V load(const T* p, int n) {
  if (n >= V::lanes) return load<V>(p);
#if RNNKERN_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) {
    return V((typename V::Native)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p));
  } else if constexpr (std::is_same_v<T, double>) {
    return V((typename V::Native)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p));
  } else {
    return widen<V>((Half16)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p), T{});
  }
#else
#if RNNKERN_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<T, float>) {
    __m256i const there = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return V((typename V::Native)_mm256_maskload_ps(p, there));
  } else if constexpr (std::is_same_v<T, double>) {
    __m256i const there = _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
    return V((typename V::Native)_mm256_maskload_pd(p, there));
  } else
#endif
  {
    T copy[V::lanes] = {};
    for (int i = 0; i < n; ++i) copy[i] = p[i];
    return load<V>(copy);
  }
#endif
}
template <class V, class T>
RNNKERN_INLINE void store(T* p, V a, int n) {
  if (n >= V::lanes) return store(p, a);
#if RNNKERN_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)a.v);
  } else if constexpr (std::is_same_v<T, double>) {
    _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)a.v);
  } else {
    _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)narrow(a, T{}));
  }
#else
  T copy[V::lanes];
  store(copy, a);
  for (int i = 0; i < n; ++i) p[i] = copy[i];
#endif
}

// The same of what is `shared`: other cores read it next, and have its lines from before. To write those, a core must
// first take each of them away (28 ns a line between two third caches of a Zen 4, 6.5 within one, whatever is asked for
// before), while a whole line that goes to memory needs none (2 ns), and is read from there as fast. Others see it
// after end_streams().
template <class V, class T>
RNNKERN_INLINE void store(T* p, V a, int n, [[maybe_unused]] bool shared) {
#if RNNKERN_VECTOR_BYTES == 64
  if (shared && sizeof(T) * V::lanes == 64 && n >= V::lanes && reinterpret_cast<uintptr_t>(p) % 64 == 0)
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)a.v);
#endif
  store(p, a, n);
}
RNNKERN_INLINE void end_streams() {
#if RNNKERN_VECTOR_BYTES == 64
  _mm_sfence();
#endif
}

// ---- sigmoid and tanh ----
// e^x = 2^n e^r, |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r). `round` added leaves n and the exponent's bias in the
// last bits. q's coefficients, from the constant on: for float, those of the least largest relative error, 3.1e-9
// (Remez); for double, Taylor's.

template <class C>
struct Exp;
template <>
struct Exp<float> {
  static constexpr float round = 0x1.8p23f + 127, ln2_high = 0.693145751953125f, ln2_low = 1.428606820309417e-6f,
                         limit = 87.0f;
  static constexpr int mantissa = 23, terms = 5;
  static constexpr float q[terms] = {0.49999993453f, 0.166665206931f, 0.0416683870975f, 0.0083687096148f,
                                     0.00138146266319f};
};
template <>
struct Exp<double> {
  static constexpr double round = 0x1.8p52 + 1023, ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33,
                          limit = 700.0;
  static constexpr int mantissa = 52, terms = 12;
  static constexpr double q[terms] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                                      1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                      1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
};

template <class C, int N>
RNNKERN_INLINE Vec<C> polynomial(const C (&coefficients)[N], Vec<C> x) {
  Vec<C> sum(coefficients[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = sum * x + Vec<C>(coefficients[i]);
  return sum;
}

// 2^n and r. NaN makes r NaN.
template <class C>
RNNKERN_INLINE Vec<C> exp_parts(Vec<C> x, Vec<C>& r) {
  using V = Vec<C>;
  using E = Exp<C>;
  V const shifted = x * V(C(1.4426950408889634)) + V(E::round);
  V const n = shifted - V(E::round);
  if constexpr (std::is_same_v<C, float> && RNNKERN_VECTOR_BYTES > 16) {  // fused: n ln 2 is not rounded
    r = x - n * V(0.6931471805599453f);
  } else {
    r = (x - n * V(E::ln2_high)) - n * V(E::ln2_low);
  }
  return from_bits<V>(bits(shifted) << E::mantissa);
}

template <class C>
RNNKERN_INLINE Vec<C> sigmoid_(Vec<C> x) {
  using V = Vec<C>;
  V r;
  V const scale = exp_parts(-maximum(minimum(x, V(Exp<C>::limit)), V(-Exp<C>::limit)), r);
  V const exp_r = (polynomial(Exp<C>::q, r) * r + V(C(1))) * r + V(C(1));
  return V(C(1)) / (V(C(1)) + exp_r * scale);
}

// x p(x^2) / q(x^2), the least largest relative error on [-9, 9], 2.1e-8 beside that of rounding (Remez), which may not
// lead beyond 1. From 9.4 to the limit the quotient is more than 1, so that tanh is 1 there, and its derivative zero.
RNNKERN_INLINE Vec<float> tanh_(Vec<float> x) {
  static constexpr float p[] = {0.999999979451f, 0.133810271537f, 0.00349558998706f, 2.06091146863e-5f,
                                1.3354708254e-8f};
  static constexpr float q[] = {1.0f, 0.467143427436f, 0.0258769891234f, 0.000328563794494f, 7.77657711381e-7f};
  Vec<float> const y = maximum(minimum(x, Vec<float>(10.0f)), Vec<float>(-10.0f)), square = y * y;
  Vec<float> const ratio = y * polynomial(p, square) / polynomial(q, square);
  return maximum(minimum(ratio, Vec<float>(1.0f)), Vec<float>(-1.0f));
}

// expm1(-2|x|) / (-2 - expm1(-2|x|)), with x's sign: exact to rounding near zero too.
RNNKERN_INLINE Vec<double> tanh_(Vec<double> x) {
  using V = Vec<double>;
  auto const sign = bits(V(-0.0));
  V const magnitude = from_bits<V>(bits(x) & ~sign);
  V r;
  V const scale = exp_parts(maximum(magnitude * V(-2.0), V(-Exp<double>::limit)), r);
  V const all = scale * (r * r * polynomial(Exp<double>::q, r) + r) + (scale - V(1.0));
  V const result = all / (V(-2.0) - all);
  return from_bits<V>((bits(result) & ~sign) | (bits(x) & sign));
}

}  // namespace rnnkern::RNNKERN_ISA
