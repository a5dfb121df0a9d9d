// Products of int8 weights with operands that are quantised here, each row by its own largest value. Sums of integers
// are exact, so that every instruction set and every tile gives the same.
#pragma once

#include "../int8.h"
#include "product.h"

namespace rnnkern::RNNKERN_ISA {

typedef int32_t Ints __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));
typedef uint8_t Bytes __attribute__((vector_size(RNNKERN_VECTOR_BYTES / 4)));

// The byte that means zero: VNNI multiplies an unsigned byte with a signed one, the others two signed ones.
constexpr int kByteZero = RNNKERN_VECTOR_BYTES == 64 ? 128 : 0;

// sum[lane] + the four products of bytes of operand[lane] and weight[lane].
RNNKERN_INLINE Ints dot(Ints sum, Ints operand, Ints weight) {
#if RNNKERN_VECTOR_BYTES == 64
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)operand, (__m512i)weight);
#elif RNNKERN_VECTOR_BYTES == 32
  // |operand| * (weight with operand's sign): both are at most 127, so that two products fit 16 bits.
  __m256i const pairs =
      _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)operand), _mm256_sign_epi8((__m256i)weight, (__m256i)operand));
  return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
#pragma GCC unroll 4
  for (int shift = 24; shift >= 0; shift -= 8) sum += ((operand << shift) >> 24) * ((weight << shift) >> 24);
  return sum;
#endif
}

// To the nearest integer, ties to even.
RNNKERN_INLINE Ints rounded(Vec<float> a) {
#if RNNKERN_VECTOR_BYTES == 64
  return (Ints)_mm512_cvtps_epi32((__m512)a.v);
#elif RNNKERN_VECTOR_BYTES == 32
  return (Ints)_mm256_cvtps_epi32((__m256)a.v);
#else
  Ints result;
  for (int i = 0; i < Vec<float>::lanes; ++i) result[i] = int32_t(__builtin_lrintf(a.v[i]));
  return result;
#endif
}

RNNKERN_INLINE int32_t largest(Ints a) {
#if RNNKERN_VECTOR_BYTES == 64
  return _mm512_reduce_max_epi32((__m512i)a);
#else
  int32_t result = a[0];
  for (int i = 1; i < Vec<float>::lanes; ++i) result = std::max(result, int32_t(a[i]));
  return result;
#endif
}

// Room for a quantised operand: whole quads for each head, and a vector beyond.
inline int64_t quantized_bytes(int64_t heads, int64_t depth) {
  return heads * int8_quads(depth) * kInt8Depth + Vec<float>::lanes;
}

// `heads` slices of `depth` values as bytes, each slice to whole quads; returns what one step of a byte is worth:
// the largest magnitude / 127, NaN where a value is NaN or infinite.
inline float quantize(const float* from, int64_t heads, int64_t depth, uint8_t* to) {
  using V = Vec<float>;
  constexpr int lanes = V::lanes;
  constexpr int32_t kInfinity = 0x7f800000;
  // Magnitudes compare as their bits do, NaN above all.
  Ints most{};
  int64_t const count = heads * depth;
  for (int64_t k = 0; k < count; k += lanes) {
    Ints const magnitude = bits(load<V>(from + k, int(std::min<int64_t>(lanes, count - k)))) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  int32_t const top = largest(most);
  float magnitude;
  std::memcpy(&magnitude, &top, sizeof magnitude);
  V const scale(magnitude > 0 ? 127.0f / magnitude : 0.0f);
  int64_t const pitch = int8_quads(depth) * kInt8Depth;
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t k = 0; k < depth; k += lanes) {  // the last vector of a slice may reach into the next, written later
      V const value = load<V>(from + head * depth + k, int(std::min<int64_t>(lanes, depth - k)));
      Bytes const bytes = __builtin_convertvector(rounded(value * scale) + kByteZero, Bytes);
      std::memcpy(to + head * pitch + k, &bytes, sizeof bytes);
    }
  return top < kInfinity ? magnitude / 127.0f : __builtin_nanf("");
}

// out[r][b][g] = sum over the quads of a[r] * panel[b][g]; a block's gates are 64 bytes apart, its quads GATES * 64.
template <int GATES, int BLOCKS, int ROWS>
void int8_tile(const int8_t* const* panel, int64_t quads, const uint8_t* const* a, int32_t* out) {
  constexpr int64_t kPart = kInt8Units * kInt8Depth;
  constexpr int lanes = Vec<float>::lanes;
  Ints sum[ROWS][BLOCKS][GATES];
  const int8_t* block[BLOCKS];
  const uint8_t* row[ROWS];
#pragma GCC unroll 8
  for (int b = 0; b < BLOCKS; ++b) block[b] = panel[b];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    row[r] = a[r];
#pragma GCC unroll 8
    for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 8
      for (int g = 0; g < GATES; ++g) sum[r][b][g] = Ints{};
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < quads; ++k) {
    Ints w[BLOCKS][GATES];
#pragma GCC unroll 8
    for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 8
      for (int g = 0; g < GATES; ++g) std::memcpy(&w[b][g], block[b] + (k * GATES + g) * kPart, sizeof w[b][g]);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      int32_t quad;
      std::memcpy(&quad, row[r] + k * kInt8Depth, sizeof quad);
      Ints const operand = quad - Ints{};
#pragma GCC unroll 8
      for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 8
        for (int g = 0; g < GATES; ++g) sum[r][b][g] = dot(sum[r][b][g], operand, w[b][g]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 8
      for (int g = 0; g < GATES; ++g)
        std::memcpy(out + ((r * BLOCKS + b) * GATES + g) * lanes, &sum[r][b][g], sizeof sum[r][b][g]);
}

using Int8Tile = void (*)(const int8_t* const* panel, int64_t quads, const uint8_t* const* a, int32_t* out);

// int8_tiles.at[gates][blocks][rows]; null where the accumulators do not fit.
struct Int8TileTable {
  static constexpr int kMaxGates = 4;
  Int8Tile at[kMaxGates + 1][kMaxColumns + 1][kMaxRows + 1] = {};

  template <int I>
  constexpr void fill() {
    constexpr int rows = I % kMaxRows + 1, blocks = I / kMaxRows % kMaxColumns + 1,
                  gates = I / kMaxRows / kMaxColumns + 1;
    if constexpr (gates * blocks <= kMaxColumns && gates * blocks * rows <= kMaxAccumulators)
      at[gates][blocks][rows] = &int8_tile<gates, blocks, rows>;
  }
  template <int... I>
  constexpr Int8TileTable(std::integer_sequence<int, I...>) {
    (fill<I>(), ...);
  }
};
constexpr Int8TileTable int8_tiles{
    std::make_integer_sequence<int, Int8TileTable::kMaxGates * kMaxColumns * kMaxRows>{}};

}  // namespace rnnkern::RNNKERN_ISA
