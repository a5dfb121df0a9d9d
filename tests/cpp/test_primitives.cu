// The primitives on a GPU: the same kernels and the same results as on the emulator (test_emulation.cpp).
#include <cuda_runtime_api.h>

#include "cuda/launch.cuh"
#include "primitive_checks.h"

namespace {

void must(cudaError_t error) { primitives::expect(error == cudaSuccess, cudaGetErrorString(error)); }

// Memory lives until the program ends.
class Runner {
 public:
  template <class T>
  T* put(const std::vector<T>& values) {
    void* memory = nullptr;
    must(cudaMalloc(&memory, values.size() * sizeof(T)));
    must(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return static_cast<T*>(memory);
  }
  template <class T>
  std::vector<T> get(const T* memory, size_t count) {
    std::vector<T> values(count);
    must(cudaMemcpy(values.data(), memory, count * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }
  template <class Args>
  void launch(void (*kernel)(Args), const rnnkern::LaunchShape& shape, const Args& args) {
    rnnkern::CudaForEach<rnnkern::Sources::all>(nullptr).launch(kernel, shape, args);
    must(cudaDeviceSynchronize());
  }
  bool has_clusters() {
    int major = 0;
    must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    return major >= 9;
  }
};

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: there is no CUDA device\n");
    return 77;
  }
  Runner runner;
  std::printf("%d primitives are right on the GPU\n", primitives::check_all(runner));
  return 0;
}
