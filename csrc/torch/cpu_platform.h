// The core's memory and threads on the CPU, from torch.
#pragma once

#include <memory>
#include <vector>

#include "../core/cpu/simd.h"

namespace rnnkern {

// Memory from the system, on huge pages where it fills one.
class Pages {
 public:
  Pages() = default;
  explicit Pages(size_t bytes);
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  struct Release {
    size_t size;
    void operator()(void* mapped) const;
  };
  std::unique_ptr<void, Release> mapped_;
  char* data_ = nullptr;
  size_t size_ = 0;
};

// How many threads `parallel` can have: one inside a parallel region and after a fork.
int max_workers();

// Memory comes from what the thread keeps, or is mapped for the call. Threads are torch's.
class TorchCpuPlatform final : public CpuPlatform {
 public:
  ~TorchCpuPlatform() override;
  void* scratch(size_t bytes) override;
  void parallel(int wanted, const std::function<void(int worker, int workers)>& work) override;

 private:
  std::vector<Pages> blocks_;
  char* next_ = nullptr;
  size_t left_ = 0, used_ = 0;
  bool holds_kept_ = false;
};

}  // namespace rnnkern
