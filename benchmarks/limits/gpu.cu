// What a GPU does at most, as JSON: microseconds of a launch, of a launch inside a graph, of one hop of a flag between
// two blocks, of one step inside a block, of a barrier of the whole grid; GB/s of reading from the L2 cache and from
// memory. Where it has clusters also microseconds of a cluster's barrier, of a load from another block's shared memory
// that the next load waits for, and of one hop of 16 bytes into it, whose arrival a barrier counts. floors.py compiles
// it with nvcc for the machine's GPU and runs it. Every figure is the best of some runs.

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>

namespace cg = cooperative_groups;

static void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "%s\n", cudaGetErrorString(error));
  exit(1);
}

static double best_us(cudaStream_t stream, const std::function<void()>& enqueue) {
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&stop));
  double best = 1e30;
  for (int run = 0; run < 6; ++run) {  // the first warms up
    check(cudaEventRecord(start, stream));
    enqueue();
    check(cudaEventRecord(stop, stream));
    check(cudaEventSynchronize(stop));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, stop));
    if (run > 0) best = std::min(best, ms * 1e3);
  }
  check(cudaGetLastError());
  return best;
}

__global__ void nothing() {}

__device__ int load_acquire(const int* flag) {
  int value;
  asm volatile("ld.acquire.gpu.b32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

__device__ void store_release(int* flag, int value) {
  asm volatile("st.release.gpu.b32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// Two blocks wake each other in turn: 2 * rounds hops. Both fit on any GPU at once.
__global__ void ping_pong(int* flags, int base, int rounds) {
  int* mine = flags + 32 * blockIdx.x;
  int* theirs = flags + 32 * (1 - blockIdx.x);
  for (int round = 1; round <= rounds; ++round) {
    if (blockIdx.x == 0) store_release(theirs, base + round);
    while (load_acquire(mine) < base + round) {
    }
    if (blockIdx.x == 1) store_release(theirs, base + round);
  }
}

// What a step in one block cannot do without: a value through shared memory to another warp, and back.
__global__ void block_steps(float* out, int steps) {
  __shared__ float values[2][256];
  float value = threadIdx.x;
  for (int step = 0; step < steps; ++step) {
    values[step & 1][threadIdx.x] = value;
    __syncthreads();
    value = values[step & 1][(threadIdx.x + 32) & 255] * 0.5f + 1.0f;
  }
  out[threadIdx.x] = value;
}

__global__ void grid_steps(int steps) {
  for (int step = 0; step < steps; ++step) cg::this_grid().sync();
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__global__ void cluster_steps(int steps) {
  for (int step = 0; step < steps; ++step) cg::this_cluster().sync();
}

// Each load's address comes from the one before.
__global__ void remote_loads(int* out, int loads) {
  __shared__ int next[32];
  auto const cluster = cg::this_cluster();
  if (threadIdx.x < 32) next[threadIdx.x] = (threadIdx.x + 7) % 32;
  cluster.sync();
  if (cluster.block_rank() == 0) {
    const int* const remote = cluster.map_shared_rank(next, 1);
    int at = 0;
    for (int i = 0; i < loads; ++i) at = const_cast<const volatile int*>(remote)[at];
    *out = at;
  }
  cluster.sync();
}

__device__ unsigned shared_window(const void* at) { return static_cast<unsigned>(__cvta_generic_to_shared(at)); }

__device__ unsigned remote_window(unsigned local, int rank) {
  unsigned remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
  return remote;
}

// Two blocks of a cluster send each other 16 bytes in turn: 2 * rounds hops.
__global__ void cluster_ping_pong(int rounds) {
  __shared__ alignas(16) int words[4];
  __shared__ unsigned long long barrier;
  auto const cluster = cg::this_cluster();
  int const rank = static_cast<int>(cluster.block_rank());
  unsigned const mine = shared_window(&barrier);
  if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(mine) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  cluster.sync();
  unsigned const place = remote_window(shared_window(words), 1 - rank), theirs = remote_window(mine, 1 - rank);
  auto const send = [&](int word) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %1, %1, %1}, [%2];" ::"r"(place),
        "r"(word), "r"(theirs)
        : "memory");
  };
  for (int round = 0; threadIdx.x == 0 && round < rounds; ++round) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 16;" ::"r"(mine) : "memory");
    if (rank == 0) send(round);
    unsigned done = 0;
    while (done == 0) {
      asm volatile(
          "{\n\t.reg .pred done;\n\t"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, done;\n\t}"
          : "=r"(done)
          : "r"(mine), "r"(round & 1)
          : "memory");
    }
    if (rank == 1) send(round);
  }
  cluster.sync();
}
#else
__global__ void cluster_steps(int) {}
__global__ void remote_loads(int*, int) {}
__global__ void cluster_ping_pong(int) {}
#endif

template <class... Args>
static void launch_cluster(cudaStream_t stream, int blocks, int threads, void (*kernel)(Args...), Args... args) {
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = blocks, cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks), config.blockDim = dim3(threads), config.stream = stream;
  config.attrs = &cluster, config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, args...));
}

__global__ void read_all(const float4* data, size_t count, int repeats, float* out) {
  float total = 0;
  for (int repeat = 0; repeat < repeats; ++repeat)
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
      float4 value;
      asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"  // past the L1 cache
                   : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                   : "l"(data + i));
      total += value.x + value.y + value.z + value.w;
    }
  if (total == 1.2345f) *out = total;  // never: the data is zero
}

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  const size_t large = size_t(1) << 30, small = device.l2CacheSize / 4;
  float4* data;
  float* out;
  int* flags;
  check(cudaMalloc(&data, large));
  check(cudaMemset(data, 0, large));
  check(cudaMalloc(&out, 4096));
  check(cudaMalloc(&flags, 4096));
  check(cudaMemset(flags, 0, 4096));
  check(cudaDeviceSynchronize());

  const int launches = 1000, rounds = 1000, steps = 10000, repeats = 20;
  const double launch = best_us(stream, [&] {
    for (int i = 0; i < launches; ++i) nothing<<<1, 32, 0, stream>>>();
  });

  cudaGraph_t graph;
  cudaGraphExec_t ready;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < launches; ++i) nothing<<<1, 32, 0, stream>>>();
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiateWithFlags(&ready, graph, 0));
  const double in_graph = best_us(stream, [&] { check(cudaGraphLaunch(ready, stream)); });

  int base = 0;
  const double hops = best_us(stream, [&] {
    ping_pong<<<2, 1, 0, stream>>>(flags, base, rounds);
    base += rounds;
  });
  const double block = best_us(stream, [&] { block_steps<<<1, 256, 0, stream>>>(out, steps); });

  void* grid_arguments[] = {const_cast<int*>(&rounds)};
  const double grid = best_us(stream, [&] {
    check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(grid_steps), dim3(device.multiProcessorCount),
                                      dim3(256), grid_arguments, 0, stream));
  });
  printf("{\"launch_us\": %.4f, \"graph_launch_us\": %.4f, \"flag_us\": %.4f, \"block_us\": %.4f, \"grid_us\": %.4f, ",
         launch / launches, in_graph / launches, hops / (2.0 * rounds), block / steps, grid / rounds);
  if (device.major >= 9) {
    const double barrier = best_us(stream, [&] { launch_cluster(stream, 8, 256, cluster_steps, steps); });
    const double load = best_us(stream, [&] { launch_cluster(stream, 2, 32, remote_loads, (int*)out, steps); });
    const double hop = best_us(stream, [&] { launch_cluster(stream, 2, 32, cluster_ping_pong, steps); });
    printf("\"cluster_us\": %.4f, \"remote_load_us\": %.4f, \"remote_hop_us\": %.4f, ", barrier / steps, load / steps,
           hop / (2.0 * steps));
  }

  const int blocks = 4 * device.multiProcessorCount;
  auto read = [&](size_t bytes, int times) {
    const double us = best_us(stream, [&] { read_all<<<blocks, 512, 0, stream>>>(data, bytes / 16, times, out); });
    return bytes * double(times) / us / 1e3;
  };
  const double l2 = read(small, repeats), memory = read(large, 1);

  printf("\"l2_gbs\": %.1f, \"memory_gbs\": %.1f, \"multiprocessors\": %d, \"l2_bytes\": %d}\n", l2, memory,
         device.multiProcessorCount, device.l2CacheSize);
  return 0;
}
