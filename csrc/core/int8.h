// int8 weights as rnnkern/int8.py packs them, for any instruction set: whole blocks of 16 units by 4 elements of the
// sum.
#pragma once

#include <cstdint>

namespace rnnkern {

constexpr int kInt8Units = 16, kInt8Depth = 4;  // of a block; what is beyond the weight's size is zero
// Sums of int8 products stay in 32 bits for so many elements.
constexpr int64_t kInt8MostDepth = int64_t(1) << 16;

inline int64_t int8_blocks(int64_t units) { return (units + kInt8Units - 1) / kInt8Units; }
inline int64_t int8_quads(int64_t depth) { return (depth + kInt8Depth - 1) / kInt8Depth; }

// weight[(gate, unit), k] is about scale[gate, unit] * data[...]; every row has a scale of its own, values are from
// -127 to 127.
struct Int8Weight {
  const int8_t* data = nullptr;  // [heads][blocks][quads][gates][16][4]
  const float* scale = nullptr;  // [heads][blocks][gates][16]
  const int32_t* sum = nullptr;  // the same: each row's sum over k
};

// The weights of a group, beside which its own `w_ih`, `w_hh` and `w_hr` are null.
struct Int8Group {
  Int8Weight input, first, second;  // second: the projection, or gru_v1's candidate
};

}  // namespace rnnkern
