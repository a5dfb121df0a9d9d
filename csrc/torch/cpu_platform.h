// The core's memory and threads on the CPU, from torch.
#pragma once

#include <c10/core/Allocator.h>

#include <vector>

#include "../core/cpu/simd.h"

namespace rnnkern {

// Memory comes from an arena that the thread keeps for small calls, beyond that from torch's allocator. Threads are
// torch's.
class TorchCpuPlatform final : public CpuPlatform {
 public:
  ~TorchCpuPlatform() override;
  void* scratch(size_t bytes) override;
  int max_workers() const override;
  void parallel(int wanted, const std::function<void(int worker, int workers)>& work) override;

 private:
  std::vector<c10::DataPtr> blocks_;
  char* next_ = nullptr;
  size_t left_ = 0;
  bool holds_arena_ = false;
};

}  // namespace rnnkern
