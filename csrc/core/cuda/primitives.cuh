// The hardware's own names, each behind a function: nothing else in this folder says threadIdx.
#pragma once

#include <cstdint>

namespace rnnkern::device {

// Place of this thread in the whole grid: along the first axis, and along the second and third as one.
__device__ __forceinline__ int64_t grid_thread_x() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t grid_thread_yz() {
  return (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * blockDim.y + threadIdx.y;
}

}  // namespace rnnkern::device
