// Launches kernels: the only place that does.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "primitives.cuh"

namespace rnnkern {

inline constexpr int kForEachThreads = 128;  // of a block; few, so that a batch of one spreads over multiprocessors
inline constexpr int64_t kMaxGridY = 65535;

// Rows beyond the grid's second axis go on along its third, which holds more rows than fit in a GPU's memory. No thread
// has a second row: a loop here made the compiler keep addresses in registers across it until it spilled.
template <class Functor>
__global__ void __launch_bounds__(kForEachThreads, 8)
    for_each_kernel(int64_t rows, int64_t columns, const __grid_constant__ Functor functor) {
  int64_t const row = device::grid_thread_yz(), column = device::grid_thread_x();
  if (row < rows && column < columns) functor(row, column);
}

// Runs functor(row, column) for all rows x columns, in any order, on one stream.
class CudaForEach {
 public:
  explicit CudaForEach(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <class Functor>
  void operator()(int64_t rows, int64_t columns, const Functor& functor) const {
    if (rows <= 0 || columns <= 0) return;
    unsigned width = 32;
    while (width < kForEachThreads && width < columns) width *= 2;
    unsigned const height = kForEachThreads / width;
    int64_t const blocks = (rows + height - 1) / height, blocks_y = std::min(blocks, kMaxGridY);
    cudaLaunchConfig_t config = {};
    config.blockDim = dim3(width, height);
    config.gridDim = dim3(static_cast<unsigned>((columns + width - 1) / width), static_cast<unsigned>(blocks_y),
                          static_cast<unsigned>((blocks + blocks_y - 1) / blocks_y));
    config.stream = stream_;
    cudaError_t const error = cudaLaunchKernelEx(&config, for_each_kernel<Functor>, rows, columns, functor);
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string("rnnkern: a CUDA kernel could not be launched: ") +
                               cudaGetErrorString(error));
    }
  }

 private:
  cudaStream_t stream_;
};

}  // namespace rnnkern
