// How a warp multiplies one slab of weights with one slab of the operand, for each kind of arithmetic.
//
// Lane 4 * g + q holds, of each tile of 16 weight rows, 16 bytes of row g and 16 bytes of row g + 8: piece q of the
// slab's depth. A tensor core sums over the depth in any order as long as both operands use the same, so these 16 bytes
// are the fragments of two products one after the other, and the operand's are one load.
#pragma once

#include "../../dtype.h"
#include "../primitives.cuh"
#include "tiling.h"

namespace rnnkern::stationary {

using device::Quad;
using device::Shared;

namespace detail {
template <Math math>
struct Storage {
  using type = float;
};
template <>
struct Storage<Math::bfloat16> {
  using type = BFloat16;
};
template <>
struct Storage<Math::float16> {
  using type = Float16;
};
}  // namespace detail

template <Math math>
using storage_t = typename detail::Storage<math>::type;

// Rounds to TF32's 10 bits of mantissa, ties away from zero, as the hardware's conversion does.
RNNKERN_HD float round_to_tf32(float value) {
  uint32_t const bits = rnnkern::detail::float_bits(value);
  bool const special = (bits & 0x7f800000) == 0x7f800000;  // infinity, NaN
  return special ? value : rnnkern::detail::float_of_bits((bits + 0x1000) & 0xffffe000);
}

// The 16 bytes of weights that a lane holds of one tile of 16 rows: of row g, and of row g + 8.
struct WeightTile {
  Quad upper, lower;
};

// How a product is made, besides its Math: each is a loop of its own, without a branch in it.
enum class Way {
  plain,
  exact,    // tf32: three products in the place of one
  one_row,  // fma: of one batch row instead of up to 8
};

// Sums of one tile of 16 weight rows and 8 batch rows. After finish(), total[0..3] are (row g, batch 2q), (g, 2q + 1),
// (g + 8, 2q), (g + 8, 2q + 1). A tensor core's product waits for the sum that it adds to, so that there are several
// sums, taken in turn.
template <Math math, int chains>
struct Sum {
  float sum[chains][4] = {};
  float total[4];

  // `operand`: this slab, from its first Quad on. `turn`: of the slab; a constant once the loop is unrolled.
  template <Way way>
  RNNKERN_DEVICE void add(const WeightTile& weight, Shared<Quad> operand, int turn, int) {
    Quad const h = operand.ld(device::lane_index());
    RNNKERN_UNROLL for (int j = 0; j < 2; ++j) {
      uint32_t const a[4] = {weight.upper.word[2 * j], weight.lower.word[2 * j], weight.upper.word[2 * j + 1],
                             weight.lower.word[2 * j + 1]};
      uint32_t const b[2] = {h.word[2 * j], h.word[2 * j + 1]};
      float (&to)[4] = sum[(2 * turn + j) % chains];
      if constexpr (math == Math::bfloat16) {
        device::mma_bf16(to, a, b);
      } else if constexpr (math == Math::float16) {
        device::mma_fp16(to, a, b);
      } else if constexpr (way == Way::exact) {
        add_exact(to, a, b);
      } else {
        device::mma_tf32(to, a, b);
      }
    }
  }

  RNNKERN_DEVICE void finish() {
    RNNKERN_UNROLL for (int i = 0; i < 4; ++i) {
      total[i] = sum[0][i];
      RNNKERN_UNROLL for (int chain = 1; chain < chains; ++chain) total[i] += sum[chain][i];
    }
  }

 private:
  // 3xTF32: each value is a TF32 value and a remainder; the product of the remainders is below float's rounding.
  RNNKERN_DEVICE static void add_exact(float (&to)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    uint32_t a_rest[4], b_rest[2];
    RNNKERN_UNROLL for (int i = 0; i < 4; ++i) a_rest[i] = rest(a[i]);
    RNNKERN_UNROLL for (int i = 0; i < 2; ++i) b_rest[i] = rest(b[i]);
    device::mma_tf32(to, a_rest, b);
    device::mma_tf32(to, a, b_rest);
    device::mma_tf32(to, a, b);
  }
  // What the tensor core cuts off when it reads these bits.
  RNNKERN_DEVICE static uint32_t rest(uint32_t bits) {
    using namespace rnnkern::detail;
    return float_bits(float_of_bits(bits) - float_of_bits(bits & 0xffffe000));
  }
};

// Plain float: a lane sums its piece of the depth for both rows and the `rows` batch rows that there are; the four
// lanes of a row add up at the end.
template <int chains>
struct Sum<Math::fma, chains> {
  float part[2][kTileRows] = {};
  float total[4];

  template <Way way>
  RNNKERN_DEVICE void add(const WeightTile& weight, Shared<Quad> operand, int, int rows) {
    using rnnkern::detail::float_of_bits;
    RNNKERN_UNROLL for (int n = 0; n < (way == Way::one_row ? 1 : kTileRows); ++n) {
      if (way != Way::one_row && n >= rows) continue;
      Quad const h = operand.ld(n * kChunks + device::lane_index() % kChunks);
      RNNKERN_UNROLL for (int k = 0; k < 4; ++k) {
        float const value = float_of_bits(h.word[k]);
        part[0][n] += float_of_bits(weight.upper.word[k]) * value;
        part[1][n] += float_of_bits(weight.lower.word[k]) * value;
      }
    }
  }

  // Lane q keeps batch rows 2q and 2q + 1: in two exchanges each lane gives away the half that it does not keep.
  RNNKERN_DEVICE void finish() {
    int const q = device::lane_index() % kChunks;
    RNNKERN_UNROLL for (int row = 0; row < 2; ++row) {
      float half[4];
      RNNKERN_UNROLL for (int n = 0; n < 4; ++n) half[n] = trade(part[row][n], part[row][n + 4], q / 2 != 0, 2);
      RNNKERN_UNROLL for (int n = 0; n < 2; ++n) total[2 * row + n] = trade(half[n], half[n + 2], q % 2 != 0, 1);
    }
  }

 private:
  RNNKERN_DEVICE static float trade(float low, float high, bool keep_high, int mask) {
    float const other = device::shuffle_xor(keep_high ? low : high, mask);
    return (keep_high ? high : low) + other;
  }
};

}  // namespace rnnkern::stationary
