// What the core asks of its caller: memory, threads, and on CUDA a stream and a GEMM library.
#pragma once

#include "types.h"

namespace rnnkern {

class Platform {
 public:
  virtual ~Platform() = default;
  // Memory on the problem's backend, aligned to 64 bytes, uninitialised, valid until the call into the core returns.
  virtual void* scratch(size_t bytes) = 0;
};

class CpuPlatform : public Platform {
 public:
  // Runs `work(worker, workers)` once on each of `workers` <= wanted threads; all of them run at the same time, so that
  // they may wait for each other. One worker inside a parallel region and after a fork.
  virtual void parallel(int wanted, const std::function<void(int worker, int workers)>& work) = 0;
};

// C[m, n] (+)= op(A)[m, k] op(B)[k, n], row-major, `count` times with strides.
struct Gemm {
  bool transpose_a = false, transpose_b = false;
  int64_t m = 0, n = 0, k = 0;
  const void *a = nullptr, *b = nullptr;
  void* c = nullptr;
  int64_t lda = 0, ldb = 0, ldc = 0;  // elements between rows as stored
  bool accumulate = false;
  Dtype dtype = Dtype::float32;      // of A and B
  Dtype out_dtype = Dtype::float32;  // of C: dtype, or float32
  bool tf32 = false;
  int64_t count = 1;
  int64_t stride_a = 0, stride_b = 0, stride_c = 0;
};

class CudaPlatform : public Platform {
 public:
  virtual void* stream() const = 0;  // cudaStream_t
  virtual void gemm(const Gemm& product) = 0;
};

}  // namespace rnnkern
