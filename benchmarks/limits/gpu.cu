// What a GPU does at most, as JSON: microseconds of a launch, of a launch inside a graph, of one hop of a flag between
// two blocks, of one step inside a block, of a barrier of the whole grid; GB/s of reading from the L2 cache and from
// memory. Where it has clusters also microseconds of a cluster's barrier, of a load from another block's shared memory
// that the next load waits for, and of one hop of 16 bytes into it, whose arrival a barrier counts. Last, of a step in
// which all blocks give each other what they made, in three ways (see `exchange`). floors.py compiles it with nvcc for
// the machine's GPU and runs it. Every figure is the best of some runs.

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

// One step of a sweep over the whole grid, the exchange alone: each block makes its part of an operand of `quads`
// pieces of 16 bytes, and reads all of it. By flags: a block stores its part, then releases a flag, for which the
// others wait; the flags of all blocks lie side by side, or spread out, each in a line of its own. Polled: a piece that
// has not come has all bits set, and each thread reads until its own have come. First: each thread polls the first
// piece of every block that it reads from, and then the others, which were stored together with it.
//
// Whoever reads operand p knows that all have read p - 2, whose memory this block then clears for operand p + 2; the
// fence between that and operand p + 1 is passed while the others' parts come.
enum class Way { flags, spread, polled, first };
constexpr int kExchangeThreads = 256, kSlots = 4;

__device__ uint4 load_relaxed(const uint4* from) {
  uint4 quad;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(quad.x), "=r"(quad.y), "=r"(quad.z), "=r"(quad.w)
               : "l"(from)
               : "memory");
  return quad;
}

__device__ void store_relaxed(uint4* to, uint4 quad) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(quad.x), "r"(quad.y), "r"(quad.z),
               "r"(quad.w)
               : "memory");
}

__device__ uint4 load_when_there(const uint4* from) {
  for (;;) {
    uint4 const quad = load_relaxed(from);
    if (quad.x != ~0u && quad.y != ~0u && quad.z != ~0u && quad.w != ~0u) return quad;
  }
}

template <Way way>
__global__ void __launch_bounds__(kExchangeThreads)
    exchange(uint4* operand, int* flags, int quads, int steps, int* wrong) {
  constexpr int kMost = 8;  // pieces that a thread reads
  __shared__ uint4 copy[kMost * kExchangeThreads];
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = kExchangeThreads / 32;
  int const a_block = quads / gridDim.x, mine = blockIdx.x * a_block;
  int const a_warp = quads / warps, first = warp * a_warp, blocks = a_warp / a_block;
  constexpr bool by_flags = way == Way::flags || way == Way::spread;
  constexpr int pitch = way == Way::spread ? 32 : 1;  // of the flags
  int errors = 0;
  for (int p = 0; p < steps; ++p) {
    uint4* const now = operand + p % kSlots * quads;
    if (warp == 0) {
      for (int i = mine + lane; i < mine + a_block; i += 32)
        store_relaxed(now + i, make_uint4(p, i, p + i, blockIdx.x));
      __syncwarp();
      if (by_flags) {
        if (lane == 0) store_release(flags + pitch * blockIdx.x, p + 1);
      } else {
        uint4* const before = operand + (p + 2) % kSlots * quads;
        for (int i = mine + lane; i < mine + a_block; i += 32)
          store_relaxed(before + i, make_uint4(~0u, ~0u, ~0u, ~0u));
        __threadfence();
      }
    }
    if (by_flags) {
      for (int i = lane; i < blocks; i += 32) {
        while (*const_cast<volatile int*>(flags + pitch * (first / a_block + i)) < p + 1) {
        }
      }
      __syncwarp();
    }
    if (way == Way::first) {
      for (int i = lane; i < blocks; i += 32) load_when_there(now + first + i * a_block);
      __syncwarp();
    }
    uint4 quad[kMost];
#pragma unroll
    for (int k = 0; k < kMost; ++k)
      if (lane + 32 * k < a_warp) quad[k] = load_relaxed(now + first + lane + 32 * k);
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      int const i = first + lane + 32 * k;
      if (lane + 32 * k >= a_warp) continue;
      if (!by_flags && (quad[k].x == ~0u || quad[k].y == ~0u || quad[k].z == ~0u || quad[k].w == ~0u))
        quad[k] = load_when_there(now + i);
      copy[i] = quad[k];
    }
    __syncthreads();  // what a block multiplies
    for (int i = threadIdx.x; i < quads; i += kExchangeThreads) {
      uint4 const got = copy[i];
      errors += got.x != p || got.y != i || got.z != p + i || got.w != i / a_block;
    }
    __syncthreads();  // what it makes of it
  }
  if (errors > 0) atomicAdd(wrong, errors);
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
  check(cudaMalloc(&flags, 1 << 15));
  check(cudaMemset(flags, 0, 1 << 15));
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

  // An LSTM's h in 16 bits: H 1024 on 128 blocks, H 512 on 32, of 16 rows, and of one (of which 8 columns go together).
  printf("\"exchanges\": [");
  for (int const quads : {2048, 128, 1024, 64}) {
    const int team = quads == 2048 || quads == 128 ? 128 : 32, exchanged = 2000;
    if (team > device.multiProcessorCount) continue;
    uint4* const operand = reinterpret_cast<uint4*>(data);
    int* const wrong = flags + 4096;
    check(cudaMemset(wrong, 0, sizeof(int)));
    void* arguments[] = {const_cast<uint4**>(&operand), &flags, const_cast<int*>(&quads), const_cast<int*>(&exchanged),
                         const_cast<int**>(&wrong)};
    auto const time = [&](auto* kernel) {
      return best_us(stream,
                     [&] {
                       check(cudaMemsetAsync(operand, 0xff, size_t(kSlots) * quads * sizeof(uint4), stream));
                       check(cudaMemsetAsync(flags, 0, 1 << 14, stream));
                       check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(team),
                                                         dim3(kExchangeThreads), arguments, 0, stream));
                     }) /
             exchanged;
    };
    const double by_flags = time(exchange<Way::flags>), spread = time(exchange<Way::spread>),
                 polled = time(exchange<Way::polled>), by_first = time(exchange<Way::first>);
    int errors = 0;
    check(cudaMemcpy(&errors, wrong, sizeof errors, cudaMemcpyDeviceToHost));
    printf("%s{\"blocks\": %d, \"bytes\": %d, \"flags_us\": %.4f, \"spread_us\": %.4f, \"polled_us\": %.4f, ",
           quads == 2048 ? "" : ", ", team, 16 * quads, by_flags, spread, polled);
    printf("\"first_us\": %.4f, \"errors\": %d}", by_first, errors);
  }
  printf("], ");
  check(cudaMemset(data, 0, size_t(1) << 20));

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
