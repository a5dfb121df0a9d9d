// What the core asks of its caller on CUDA, from torch: its allocator, its current stream, its cuBLAS handle.
#pragma once

#include <memory>

#include "../core/platform.h"

namespace rnnkern {

// For one call into the core. It makes the device current; on its destruction the device, the handle's settings and the
// scratch memory go back. That waits for nothing: torch's allocator orders reuse by stream.
class TorchCudaPlatform : public CudaPlatform {
 public:
  explicit TorchCudaPlatform(int device_index);
  ~TorchCudaPlatform() override;
  TorchCudaPlatform(const TorchCudaPlatform&) = delete;
  TorchCudaPlatform& operator=(const TorchCudaPlatform&) = delete;

  void* scratch(size_t bytes) override;
  void* stream() const override;
  void gemm(const Gemm& product) override;

 private:
  struct State;  // torch's types, kept out of the files that include this one
  std::unique_ptr<State> state_;
};

}  // namespace rnnkern
