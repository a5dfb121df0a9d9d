// Launches kernels: the only place that does. emulation/launch.h is the same on a host without a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "launch_shape.h"
#include "primitives.cuh"

namespace rnnkern {

inline constexpr int kForEachThreads = 128;  // of a block; few, so that a batch of one spreads over multiprocessors
inline constexpr int64_t kMaxGridY = 65535;

// Where a kernel is compiled: the sources of `stationary` may be for other architectures than the others
// (cmake/cuda.cmake), and a symbol that both have would be the code of one of them for both.
enum class Sources { all, stationary };

// Rows beyond the grid's second axis go on along its third, which holds more rows than fit in a GPU's memory. No thread
// has a second row: a loop here made the compiler keep addresses in registers across it until it spilled.
template <class Functor, Sources>
__global__ void __launch_bounds__(kForEachThreads, 8)
    for_each_kernel(int64_t rows, int64_t columns, const __grid_constant__ Functor functor) {
  int64_t const row = device::grid_thread_yz(), column = device::grid_thread_x();
  if (row < rows && column < columns) functor(row, column);
}

// What a launch may take without asking for more first.
inline constexpr size_t kPortableSharedBytes = 48 * 1024;
inline constexpr int kPortableCluster = 8;

// One stream of a GPU: runs functor(row, column) for all rows x columns, in any order, and launches kernels.
template <Sources SOURCES>
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
    check(cudaLaunchKernelEx(&config, for_each_kernel<Functor, SOURCES>, rows, columns, functor));
  }

  template <class Args>
  void launch(void (*kernel)(Args), const LaunchShape& shape, const Args& args) const {
    const void* const function = reinterpret_cast<const void*>(kernel);
    if (shape.shared_bytes > kPortableSharedBytes) allow_shared_bytes(function, shape.shared_bytes);
    if (shape.cluster > kPortableCluster) {
      check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    }
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream_;
    config.attrs = attributes;
    if (shape.cluster > 1) {
      auto& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
    }
    if (shape.cooperative) {
      auto& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    check(cudaLaunchKernelEx(&config, kernel, args));
  }

 private:
  // Raises what a kernel may ask for, to the most there is: a smaller value could come between another thread's own and
  // its launch.
  static void allow_shared_bytes(const void* function, size_t wanted) {
    cudaFuncAttributes now;
    check(cudaFuncGetAttributes(&now, function));
    if (static_cast<size_t>(now.maxDynamicSharedSizeBytes) >= wanted) return;
    int device = 0, most = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    most = std::max(static_cast<int>(wanted), most - static_cast<int>(now.sharedSizeBytes));
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  }

  static void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // else whoever asks next, for a kernel of their own, would be told of this one
    throw std::runtime_error(std::string("rnnkern: a CUDA kernel could not be launched: ") + cudaGetErrorString(error));
  }

  cudaStream_t stream_;
};

}  // namespace rnnkern
