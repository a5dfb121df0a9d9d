// What lets a CUDA strategy's driver run on the host, beside the emulated device: a platform with a plain GEMM. All
// memory starts as NaN.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "platform.h"
#include "tensor.h"

namespace host {

using namespace rnnkern;

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
            sum += operand(a[p.transpose_a ? k * p.lda + i : i * p.lda + k], p.tf32) *
                   operand(b[p.transpose_b ? j * p.ldb + k : k * p.ldb + j], p.tf32);
          }
          c[i * p.ldc + j] = from_compute<Out>(sum);
        }
      }
    }
  }

  template <class T>
  static compute_t<T> operand(T value, bool) {
    return to_compute(value);
  }
  static float operand(float value, bool tf32) {  // 10 bits of mantissa
    if (!tf32) return value;
    float const scaled = value * (1 + (1 << 13)), rest = value - scaled;
    return scaled + rest;
  }

  std::vector<std::unique_ptr<std::vector<char>>> blocks_;
};

}  // namespace host
