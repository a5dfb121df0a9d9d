// Storage types: what tensors hold. All arithmetic is done in compute_t<T>: float for 16-bit storage, else T itself.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "host_device.h"
#include "types.h"

namespace rnnkern {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

namespace detail {

RNNKERN_HD uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

RNNKERN_HD float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
struct Storage {  // float and double: their own compute type
  using compute = T;
  static constexpr Dtype dtype = sizeof(T) == 8 ? Dtype::float64 : Dtype::float32;
};
template <>
struct Storage<BFloat16> {
  using compute = float;
  static constexpr Dtype dtype = Dtype::bfloat16;
};
template <>
struct Storage<Float16> {
  using compute = float;
  static constexpr Dtype dtype = Dtype::float16;
};

}  // namespace detail

template <class T>
using compute_t = typename detail::Storage<T>::compute;
template <class T>
inline constexpr Dtype dtype_of = detail::Storage<T>::dtype;

RNNKERN_HD double to_compute(double value) { return value; }
RNNKERN_HD float to_compute(float value) { return value; }

RNNKERN_HD float to_compute(BFloat16 value) { return detail::float_of_bits(uint32_t{value.bits} << 16); }

RNNKERN_HD float to_compute(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  uint32_t const sign = uint32_t{value.bits} >> 15 << 31;
  uint32_t const magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00)
    return detail::float_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);  // infinity, NaN
  if (magnitude >= 0x0400) return detail::float_of_bits(sign | ((magnitude << 13) + ((127 - 15) << 23)));
  float const subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return sign != 0 ? -subnormal : subnormal;
#endif
}

namespace detail {

// Rounding to nearest, ties to even; NaN stays NaN.
RNNKERN_HD void convert(double value, double& out) { out = value; }
RNNKERN_HD void convert(float value, float& out) { out = value; }

RNNKERN_HD void convert(float value, BFloat16& out) {
#if defined(__CUDA_ARCH__)
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  uint32_t const bits = float_bits(value);
  bool const nan = (bits & 0x7fffffff) > 0x7f800000;
  // Adding just under half a unit of the last place that stays, and one more where that place is odd.
  out.bits = static_cast<uint16_t>(nan ? bits >> 16 | 0x0040 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
}

RNNKERN_HD void convert(float value, Float16& out) {
#if defined(__CUDA_ARCH__)
  out.bits = __half_as_ushort(__float2half_rn(value));
#else
  uint32_t const bits = float_bits(value);
  uint32_t const sign = bits >> 31 << 15;
  uint32_t const magnitude = bits & 0x7fffffff;
  uint32_t half = 0;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;  // NaN
  } else if (magnitude >= 0x47800000) {
    half = 0x7c00;  // 2^16 and above
  } else if (magnitude >= 0x38800000) {
    uint32_t const rebiased = magnitude - ((127 - 15) << 23);
    half = (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13;  // may carry into the exponent: then it is right as well
  } else {
    // Subnormal: adding 1/2 leaves the value in units of 2^-24 in the low bits, rounded by the addition.
    half = float_bits(float_of_bits(magnitude) + 0.5f) - float_bits(0.5f);
  }
  out.bits = static_cast<uint16_t>(sign | half);
#endif
}

}  // namespace detail

template <class T>
RNNKERN_HD T from_compute(compute_t<T> value) {
  T out;
  detail::convert(value, out);
  return out;
}

}  // namespace rnnkern
