// What the layer's tests are made of: random numbers, and tensors of a dtype that is known at run time.
#pragma once

#include <cstdint>
#include <vector>

#include "dispatch.h"

namespace host {

using namespace rnnkern;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 1) {}
  uint64_t bits() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return state_ * 0x2545f4914f6cdd1d;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>((bits() >> 33) % static_cast<uint64_t>(n)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-52 - 1; }  // [-1, 1)

 private:
  uint64_t state_;
};

// NaN at first. Its memory is an allocation of its exact size, so that a sanitizer sees what goes beyond.
class Tensor {
 public:
  Tensor(Dtype dtype, int64_t count) : dtype_(dtype), count_(count), bytes_(count * size_of(dtype), '\xff') {}
  Tensor(Dtype dtype, const std::vector<double>& values) : Tensor(dtype, static_cast<int64_t>(values.size())) {
    for (int64_t i = 0; i < count_; ++i) set(i, values[i]);
  }

  void* data() { return bytes_.data(); }
  const std::vector<char>& bytes() const { return bytes_; }
  void poison() { bytes_.assign(bytes_.size(), '\xff'); }
  void set(int64_t i, double value) {
    dispatch(dtype_, [&](auto type) {
      using T = typename decltype(type)::type;
      reinterpret_cast<T*>(bytes_.data())[i] = from_compute<T>(static_cast<compute_t<T>>(value));
    });
  }
  std::vector<double> values() const {
    std::vector<double> result(count_);
    dispatch(dtype_, [&](auto type) {
      using T = typename decltype(type)::type;
      for (int64_t i = 0; i < count_; ++i) result[i] = to_compute(reinterpret_cast<const T*>(bytes_.data())[i]);
    });
    return result;
  }

 private:
  Dtype dtype_;
  int64_t count_;
  std::vector<char> bytes_;
};

}  // namespace host
