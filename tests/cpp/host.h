// What lets a CUDA strategy's driver and functors run on the host: tensors, a platform with a plain GEMM, and two loops
// in the place of a launch. All memory starts as NaN.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dispatch.h"
#include "platform.h"

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

// A tensor of a dtype that is known at run time; NaN at first.
class Tensor {
 public:
  Tensor(Dtype dtype, int64_t count) : dtype_(dtype), count_(count), bytes_(count * size_of(dtype), '\xff') {}
  Tensor(Dtype dtype, const std::vector<double>& values) : Tensor(dtype, static_cast<int64_t>(values.size())) {
    for (int64_t i = 0; i < count_; ++i) set(i, values[i]);
  }

  void* data() { return bytes_.data(); }
  const std::vector<char>& bytes() const { return bytes_; }
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

class HostPlatform : public CudaPlatform {
 public:
  void* scratch(size_t bytes) override {
    blocks_.push_back(std::make_unique<std::vector<char>>(bytes, '\xff'));
    return blocks_.back()->data();
  }
  void* stream() const override { return nullptr; }
  void gemm(const Gemm& p) override {
    dispatch(p.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      if (p.out_dtype == p.dtype) {
        multiply<T, T>(p);
      } else {
        multiply<T, compute_t<T>>(p);
      }
    });
  }

 private:
  template <class T, class Out>
  static void multiply(const Gemm& p) {
    for (int64_t batch = 0; batch < p.count; ++batch) {
      const T* const a = static_cast<const T*>(p.a) + batch * p.stride_a;
      const T* const b = static_cast<const T*>(p.b) + batch * p.stride_b;
      Out* const c = static_cast<Out*>(p.c) + batch * p.stride_c;
      for (int64_t i = 0; i < p.m; ++i) {
        for (int64_t j = 0; j < p.n; ++j) {
          compute_t<T> sum = p.accumulate ? to_compute(c[i * p.ldc + j]) : 0;
          for (int64_t k = 0; k < p.k; ++k) {
            sum += to_compute(a[p.transpose_a ? k * p.lda + i : i * p.lda + k]) *
                   to_compute(b[p.transpose_b ? j * p.ldb + k : k * p.ldb + j]);
          }
          c[i * p.ldc + j] = from_compute<Out>(sum);
        }
      }
    }
  }

  std::vector<std::unique_ptr<std::vector<char>>> blocks_;
};

// Visits all (row, column) of a launch: forwards, backwards or inside out.
struct HostForEach {
  mutable int64_t launches = 0;

  template <class Functor>
  void operator()(int64_t rows, int64_t columns, const Functor& functor) const {
    ++launches;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) functor(visit(i, rows), visit(j, columns));
    }
  }
  int64_t visit(int64_t i, int64_t count) const {
    if (launches % 3 == 0) return i;
    return launches % 3 == 1 ? count - 1 - i : (i + count / 2) % count;
  }
};

}  // namespace host
