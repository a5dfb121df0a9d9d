// Products of bfloat16 pairs on the processor's matrix unit (Intel AMX), where RNNKERN_MATRIX_UNIT says that there is
// one: 16 rows by 16 columns by 32 steps of k in an instruction. It has eight registers of 16 lines of 64 bytes: here
// four hold sums, two rows of the operand, two weights. Weights are packed as for the vectors' dot products; operands
// are copied, 16 rows side by side. A sum is made of 32 steps at a time, in the same order for any number of rows.
#pragma once

#include "product.h"

namespace rnnkern::RNNKERN_ISA {

constexpr int kUnitRows = 16, kUnitPairs = 16;
constexpr int64_t kUnitElements = kUnitRows * kUnitPairs;  // pairs in a register, 1 KB
constexpr int kSumRegister = 0, kOperandRegister = 4, kWeightRegister = 6, kRegisters = 8;

#if defined(RNNKERN_MATRIX_UNIT)
constexpr bool kMatrixUnit = true;
#else
constexpr bool kMatrixUnit = false;
#endif
template <class P>
constexpr bool on_matrix_unit = kMatrixUnit && std::is_same_v<P, Pair>;

// A depth's blocks of 32 steps of k, and what lies between two groups of rows of such an operand.
template <class P>
constexpr int64_t unit_blocks(int64_t depth) {
  return packed_steps<P>(depth) / kUnitPairs;
}
template <class P>
constexpr int64_t unit_pitch(int64_t depth) {
  return unit_blocks<P>(depth) * kUnitElements;
}

// The shape of its registers, for as long as this lives: operands and sums have `rows` rows. Whoever multiplies makes
// one, for any other library's code on this thread leaves its own.
template <class P>
class MatrixUnit {
 public:
  explicit MatrixUnit(int) {}
  ~MatrixUnit() {}
};

#if defined(RNNKERN_MATRIX_UNIT)
template <>
class MatrixUnit<Pair> {
 public:
  explicit MatrixUnit(int rows) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t lines[16] = {};
    } shape;
    for (int i = 0; i < kRegisters; ++i) {
      shape.bytes[i] = 64;
      shape.lines[i] = uint8_t(i < kWeightRegister ? rows : kUnitPairs);
    }
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~MatrixUnit() { asm volatile("tilerelease"); }
  MatrixUnit(const MatrixUnit&) = delete;
};

template <int REGISTER>
RNNKERN_INLINE void unit_load(const Pair* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * int64_t(sizeof(Pair))), "i"(REGISTER)
               : "memory");
}
template <int REGISTER>
RNNKERN_INLINE void unit_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(REGISTER));
}
template <int REGISTER>
RNNKERN_INLINE void unit_store(float* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * int64_t(sizeof(float))), "i"(REGISTER)
               : "memory");
}
template <int SUM, int OPERAND, int WEIGHT>
RNNKERN_INLINE void unit_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(OPERAND), "i"(WEIGHT));
}

// Rows of an operand as the unit takes them: out [group][block of k][row of the group][pair]. Rows of the last group
// that are not there, and steps past the depth, are zero.
template <class Row>
void pack_for_unit(Row row, int64_t count, int group, int64_t depth, Pair* out) {
  int64_t const blocks = unit_blocks<Pair>(depth), whole = depth / (2 * kUnitPairs);
  for (int64_t r = 0; r < count; r += group, out += blocks * kUnitElements) {
    for (int i = 0; i < group; ++i) {
      Pair* const to = out + i * kUnitPairs;
      bool const there = r + i < count;
      const BFloat16* const from = there ? row(r + i) : nullptr;
      int64_t k = 0;
      for (; there && k < whole; ++k) store_packed(to + k * kUnitElements, load_steps<Pair>(from + k * 2 * kUnitPairs));
      for (; k < blocks; ++k)
        store_packed(to + k * kUnitElements, there ? load_steps<Pair>(from, k * kUnitPairs, depth) : Vec<float>(0.0f));
    }
  }
}

// The same of some of `all` rows whose steps lie `stride` apart, step 0 of row 0 at `from`: some blocks of k, of groups
// of kUnitRows.
inline void pack_steps_for_unit(const BFloat16* from, int64_t stride, Part blocks, RowsOf const& some, int64_t all,
                                int64_t depth, Pair* out) {
  for (int64_t i = blocks.begin; i < blocks.end; ++i)
    for (int64_t r = some.begin; r < some.begin + some.count; r += kUnitRows) {
      auto const row = [&](int64_t step) { return from + step * stride + r; };
      int const count = int(std::min<int64_t>(kUnitRows, all - r));
      Vec<float> steps[kUnitRows];
      for (int s = 0; s < kUnitRows; ++s)
        steps[s] = load_columns<Pair, BFloat16>(row, i * kUnitPairs + s, depth, count);
      transpose(steps, std::make_index_sequence<kUnitRows>{});
      Pair* const to = out + r / kUnitRows * unit_pitch<Pair>(depth) + i * kUnitElements;
      for (int s = 0; s < kUnitRows; ++s) store_packed(to + s * kUnitPairs, steps[s]);
    }
}

// Sums of GROUPS groups of `group` rows by COLS vectors of columns. The weights' steps, and the sums' rows, lie `width`
// vectors apart.
template <int GROUPS, int COLS>
void unit_tile(const Pair* panel, int width, const Pair* operand, int64_t blocks, float* out, int group) {
  static_assert(GROUPS * COLS <= 4 && GROUPS <= 2);
  constexpr auto each = [](auto f) __attribute__((always_inline)) {
    [&]<int... C>(std::integer_sequence<int, C...>) __attribute__((always_inline)) {
      (f(std::integral_constant<int, C>{}), ...);
    }(std::make_integer_sequence<int, COLS>{});
  };
  int64_t const stride = width * kUnitPairs;
  const Pair* second = operand + blocks * kUnitElements;
  each([](auto c) __attribute__((always_inline)) {
    unit_zero<kSumRegister + c>();
    if constexpr (GROUPS == 2) unit_zero<kSumRegister + COLS + c>();
  });
  for (int64_t k = 0; k < blocks; ++k, operand += kUnitElements, panel += stride * kUnitPairs) {
    unit_load<kOperandRegister>(operand, kUnitPairs);
    if constexpr (GROUPS == 2) unit_load<kOperandRegister + 1>(second, kUnitPairs), second += kUnitElements;
    each([&](auto c) __attribute__((always_inline)) {
      unit_load<kWeightRegister + c % 2>(panel + c * kUnitPairs, stride);
      unit_multiply<kSumRegister + c, kOperandRegister, kWeightRegister + c % 2>();
      if constexpr (GROUPS == 2)
        unit_multiply<kSumRegister + COLS + c, kOperandRegister + 1, kWeightRegister + c % 2>();
    });
  }
  each([&](auto c) __attribute__((always_inline)) {
    unit_store<kSumRegister + c>(out + c * kUnitPairs, stride);
    if constexpr (GROUPS == 2) unit_store<kSumRegister + COLS + c>(out + group * stride + c * kUnitPairs, stride);
  });
}

// The same for one or two groups and any number of columns: out[row][columns]. Two groups take two columns at a time,
// so that each weight is loaded once for both.
inline void unit_product(const Pair* panel, int columns, const Pair* operand, int groups, int64_t blocks, float* out,
                         int group) {
  using Function = decltype(&unit_tile<1, 1>);
  static constexpr Function one[] = {&unit_tile<1, 1>, &unit_tile<1, 2>, &unit_tile<1, 3>, &unit_tile<1, 4>},
                            two[] = {&unit_tile<2, 1>, &unit_tile<2, 2>};
  int const most = groups == 1 ? 4 : 2;
  for (int c = 0, now; c < columns; c += now) {
    now = std::min(most, columns - c);
    (groups == 1 ? one : two)[now - 1](panel + c * kUnitPairs, columns, operand, blocks, out + c * kUnitPairs, group);
  }
}

#endif

}  // namespace rnnkern::RNNKERN_ISA
