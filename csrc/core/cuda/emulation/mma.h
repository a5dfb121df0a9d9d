// A warp's matrix product on fragments, as the PTX manual lays them out ("Matrix Fragments for mma.m16n8k16" and
// "mma.m16n8k8"). With g = lane / 4 and q = lane % 4:
//   A [16, K]  registers 0..3 hold row g, row g + 8, row g, row g + 8; the last two from column K / 2 on
//   B [K, 8]   registers 0, 1 hold column g; the second from row K / 2 on
//   C [16, 8]  c0 c1: row g, columns 2q and 2q + 1; c2 c3: row g + 8
// A register holds 2 elements of 16 bits at 2q and 2q + 1, or one of 32 bits at q.
#pragma once

#include <cstdint>
#include <cstring>

namespace rnnkern::emulation {

struct Fragments {
  float (&c)[4];
  const uint32_t (&a)[4];
  const uint32_t (&b)[2];
};

// How an element is read from the register that holds it.
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
struct Bf16 {
  static constexpr int per_register = 2;
  static float read(uint32_t word, int i) { return float_of(i == 0 ? word << 16 : word & 0xffff0000); }
};
struct Fp16 {
  static constexpr int per_register = 2;
  static float read(uint32_t word, int i) {
    uint32_t const half = i == 0 ? word & 0xffff : word >> 16, magnitude = half & 0x7fff;
    uint32_t const sign = (half & 0x8000) << 16;
    if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);  // infinity, NaN
    float const value = float_of(magnitude << 13) * 0x1p112f;  // the exponent's bias; subnormals too
    return sign == 0 ? value : -value;
  }
};
struct Tf32 {
  static constexpr int per_register = 1;
  static float read(uint32_t word, int) { return float_of(word & 0xffffe000); }
};

// c += a b for the 32 lanes. The products of a sum are added in float, in order, and then to c.
template <class Element>
void multiply(const Fragments* const (&lanes)[32]) {
  constexpr int pack = Element::per_register, depth = 8 * pack;
  typedef float Row __attribute__((vector_size(32)));  // 8 columns
  float a[16][depth];
  alignas(32) float b[depth][8];
  for (int lane = 0; lane < 32; ++lane) {
    int const g = lane / 4, q = lane % 4;
    Fragments const& own = *lanes[lane];
    for (int i = 0; i < pack; ++i) {
      for (int r = 0; r < 4; ++r) a[g + r % 2 * 8][r / 2 * depth / 2 + q * pack + i] = Element::read(own.a[r], i);
      for (int r = 0; r < 2; ++r) b[r * depth / 2 + q * pack + i][g] = Element::read(own.b[r], i);
    }
  }
  alignas(32) float sum[16][8];
  for (int row = 0; row < 16; ++row) {
    Row total = {};
    for (int k = 0; k < depth; ++k) {
      Row columns;
      std::memcpy(&columns, b[k], sizeof columns);
      total += a[row][k] * columns;
    }
    std::memcpy(sum[row], &total, sizeof total);
  }
  for (int lane = 0; lane < 32; ++lane) {
    int const g = lane / 4, q = lane % 4;
    float (&c)[4] = lanes[lane]->c;
    for (int i = 0; i < 4; ++i) c[i] += sum[g + i / 2 * 8][2 * q + i % 2];
  }
}

}  // namespace rnnkern::emulation
