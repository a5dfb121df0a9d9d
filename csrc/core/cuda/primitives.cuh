// The hardware's own names, each behind a function: nothing else in this folder says threadIdx or asm. A host compiler
// finds the same names in the emulator, so that the kernels' source runs without a GPU.
#pragma once

#include <cstdint>

namespace rnnkern::device {

// Whether what is being compiled has clusters. A kernel that needs them is empty where there are none.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kHasClusters = false;
#else
inline constexpr bool kHasClusters = true;
#endif

}  // namespace rnnkern::device

#if !defined(__CUDACC__)
#include "emulation/primitives.h"
#else

#include <cstdio>

#define RNNKERN_DEVICE __device__ __forceinline__
#define RNNKERN_KERNEL(threads) __global__ __launch_bounds__(threads, 1)
#define RNNKERN_PARAMETER __grid_constant__
#define RNNKERN_UNROLL _Pragma("unroll")
#define RNNKERN_ROLL _Pragma("unroll 1")
#define RNNKERN_UNROLL_BY_4 _Pragma("unroll 4")

namespace rnnkern::device {

// Declared and never defined: an architecture that lacks a primitive fails to assemble a kernel that uses it, and the
// unresolved name says which.
namespace missing {
__device__ void mma_needs_sm_80();
__device__ void round_tf32_needs_sm_80();
__device__ void copy_async_needs_sm_80();
__device__ void cluster_rank_needs_sm_90();
__device__ void cluster_sync_needs_sm_90();
__device__ void mbarrier_needs_sm_90();
__device__ void store_async_needs_sm_90();
}  // namespace missing

// --- Places ---

// Place of this thread in the whole grid: along the first axis, and along the second and third as one.
RNNKERN_DEVICE int64_t grid_thread_x() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
RNNKERN_DEVICE int64_t grid_thread_yz() {
  return (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * blockDim.y + threadIdx.y;
}

// Of launches along one axis.
RNNKERN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
RNNKERN_DEVICE int lane_index() { return static_cast<int>(threadIdx.x & 31); }
RNNKERN_DEVICE int warp_index() { return static_cast<int>(threadIdx.x >> 5); }
// A value that is the same in all lanes of a warp: told so, the compiler keeps it once for the warp.
RNNKERN_DEVICE int uniform(int value) { return __shfl_sync(0xffffffff, value, 0); }
RNNKERN_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }

// --- Memory ---

struct alignas(16) Quad {
  uint32_t word[4];
};

namespace detail {

RNNKERN_DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char rnnkern_dynamic_shared[];
  return rnnkern_dynamic_shared;
}

// Built-in words, so that each access is one instruction of the whole width.
template <size_t bytes>
struct Word;
template <>
struct Word<2> {
  using type = uint16_t;
};
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <class T>
RNNKERN_DEVICE T load(const unsigned char* from) {
  auto const word = *reinterpret_cast<const typename Word<sizeof(T)>::type*>(from);
  T value;
  __builtin_memcpy(&value, &word, sizeof(T));
  return value;
}
template <class T>
RNNKERN_DEVICE void store(unsigned char* to, T value) {
  typename Word<sizeof(T)>::type word;
  __builtin_memcpy(&word, &value, sizeof(T));
  *reinterpret_cast<typename Word<sizeof(T)>::type*>(to) = word;
}

}  // namespace detail

// An array in dynamic shared memory.
template <class T>
struct Shared {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  uint32_t address;  // in bytes, within dynamic shared memory

  RNNKERN_DEVICE T ld(int i) const { return detail::load<T>(at(i)); }
  RNNKERN_DEVICE void st(int i, T value) const { detail::store(at(i), value); }
  RNNKERN_DEVICE Shared from(int i) const { return {address + i * static_cast<uint32_t>(sizeof(T))}; }
  template <class U>
  RNNKERN_DEVICE Shared<U> as() const {
    return {address};
  }
  RNNKERN_DEVICE unsigned char* at(int i) const {
    return detail::dynamic_shared() + (address + i * static_cast<uint32_t>(sizeof(T)));
  }
  RNNKERN_DEVICE uint32_t window(int i) const {  // address in the shared window, as instructions take it
    return static_cast<uint32_t>(__cvta_generic_to_shared(at(i)));
  }
};

template <class T>
RNNKERN_DEVICE Shared<T> carve(int byte_offset, int /*count*/) {
  return {static_cast<uint32_t>(byte_offset)};
}

// Global memory through which blocks exchange data while they run.
template <class T>
struct Global {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  T* base;

  RNNKERN_DEVICE T ld(int64_t i) const {
    const T* const from = base + i;
    T value;
    if constexpr (sizeof(T) == 2) {
      uint16_t bits;
      asm volatile("ld.relaxed.gpu.global.b16 %0, [%1];" : "=h"(bits) : "l"(from) : "memory");
      __builtin_memcpy(&value, &bits, sizeof bits);
    } else if constexpr (sizeof(T) == 4) {
      uint32_t bits;
      asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(bits) : "l"(from) : "memory");
      __builtin_memcpy(&value, &bits, sizeof bits);
    } else if constexpr (sizeof(T) == 8) {
      uint64_t bits;
      asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(bits) : "l"(from) : "memory");
      __builtin_memcpy(&value, &bits, sizeof bits);
    } else {
      Quad bits;
      asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(bits.word[0]), "=r"(bits.word[1]), "=r"(bits.word[2]), "=r"(bits.word[3])
                   : "l"(from)
                   : "memory");
      __builtin_memcpy(&value, &bits, sizeof bits);
    }
    return value;
  }
  RNNKERN_DEVICE void st(int64_t i, T value) const { detail::store(reinterpret_cast<unsigned char*>(base + i), value); }
};

// Copies 16 bytes past the registers. They have landed for this thread after its copy_async_wait, and for the others
// after a barrier that follows.
RNNKERN_DEVICE void copy_async(Shared<Quad> to, int i, Global<Quad> from, int64_t j) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to.window(i)), "l"(from.base + j) : "memory");
#else
  missing::copy_async_needs_sm_80();
#endif
}
RNNKERN_DEVICE void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#else
  missing::copy_async_needs_sm_80();
#endif
}

// --- Barriers, warps ---

RNNKERN_DEVICE void sync_threads() { __syncthreads(); }
RNNKERN_DEVICE void sync_warp() { __syncwarp(); }
RNNKERN_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// --- Tensor cores: c += a b, of a warp, in the fragments of the PTX manual ---

// m16n8k16, two elements a register.
RNNKERN_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  missing::mma_needs_sm_80();
#endif
}

RNNKERN_DEVICE void mma_fp16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  missing::mma_needs_sm_80();
#endif
}

// m16n8k8, one float a register, whose low 13 bits are ignored.
RNNKERN_DEVICE void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  missing::mma_needs_sm_80();
#endif
}

// To the nearest value of 10 mantissa bits, ties away from zero.
RNNKERN_DEVICE float round_tf32(float value) {
#if __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
#else
  missing::round_tf32_needs_sm_80();
  return value;
#endif
}

// --- Flags between blocks ---

namespace detail {

// Counts the turns of a waiting loop where RNNKERN_DEBUG_SPIN is defined; otherwise nothing.
struct Spin {
#if defined(RNNKERN_DEBUG_SPIN)
  static constexpr uint32_t kLimit = 1u << 24;
  uint32_t turns = 0;
  RNNKERN_DEVICE void turn(const char* what, unsigned long long place, uint32_t wanted, uint32_t got) {
    if (++turns < kLimit) return;
    printf("rnnkern: block %d, thread %d waits in vain for %s %llx: wanted %u, got %u\n", block_index(), thread_index(),
           what, place, wanted, got);
    __trap();
  }
#else
  RNNKERN_DEVICE void turn(const char*, unsigned long long, uint32_t, uint32_t) {}
#endif
};

}  // namespace detail

// What this thread wrote or saw written before is seen by whoever then sees the value in flag_wait, and looks past its
// L1 cache (Global, copy_async). An acquire would invalidate that cache, and for this wait for every load under way.
RNNKERN_DEVICE void flag_release(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
RNNKERN_DEVICE void flag_wait(const uint32_t* flag, uint32_t at_least) {
  detail::Spin spin;
  for (;;) {
    uint32_t value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    if (value >= at_least) return;
    spin.turn("flag", reinterpret_cast<unsigned long long>(flag), at_least, value);
  }
}

// --- Clusters ---

RNNKERN_DEVICE int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#else
  missing::cluster_rank_needs_sm_90();
  return 0;
#endif
}

RNNKERN_DEVICE void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  missing::cluster_sync_needs_sm_90();
#endif
}

// A barrier in shared memory: a phase ends once all its arrivals and all bytes that they expect have come. What it
// orders is shared memory alone, which no cache holds: the scope of a block does. That of a cluster would make an
// arrival wait for this thread's stores to global memory, and a wait invalidate the L1 cache.
RNNKERN_DEVICE void mbarrier_init(Shared<uint64_t> b, int i, int arrivals) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b.window(i)), "r"(arrivals) : "memory");
#else
  missing::mbarrier_needs_sm_90();
#endif
}

// By the thread that initialised; a cluster_sync follows before other blocks store.
RNNKERN_DEVICE void mbarrier_init_done() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  missing::mbarrier_needs_sm_90();
#endif
}

RNNKERN_DEVICE void mbarrier_expect(Shared<uint64_t> b, int i, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b.window(i)), "r"(bytes) : "memory");
#else
  missing::mbarrier_needs_sm_90();
#endif
}

// Arrives at the barrier of block `rank` of the cluster; what this thread knows of happened before the phase ends.
RNNKERN_DEVICE void mbarrier_arrive(Shared<uint64_t> b, int i, int rank) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .b32 barrier;\n\t"
      "mapa.shared::cluster.u32 barrier, %0, %1;\n\t"
      "mbarrier.arrive.release.cta.shared::cluster.b64 _, [barrier];\n\t}" ::"r"(b.window(i)),
      "r"(rank)
      : "memory");
#else
  missing::mbarrier_needs_sm_90();
#endif
}

// Waits for the end of the phase of this parity; the first phase's is 0.
RNNKERN_DEVICE void mbarrier_wait(Shared<uint64_t> b, int i, int parity) {
#if __CUDA_ARCH__ >= 900
  detail::Spin spin;
  for (;;) {
    uint32_t done;
    asm volatile(
        "{\n\t.reg .pred done;\n\t"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, done;\n\t}"
        : "=r"(done)
        : "r"(b.window(i)), "r"(parity)
        : "memory");
    if (done != 0) return;
    spin.turn("the mbarrier at", b.address + i * sizeof(uint64_t), static_cast<uint32_t>(parity), 0);
  }
#else
  missing::mbarrier_needs_sm_90();
#endif
}

// Stores to the same place in block `rank` of the cluster, and completes 16 bytes on that block's barrier j.
RNNKERN_DEVICE void store_async(Shared<Quad> to, int i, int rank, Quad value, Shared<uint64_t> b, int j) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .b32 place, barrier;\n\t"
      "mapa.shared::cluster.u32 place, %0, %2;\n\t"
      "mapa.shared::cluster.u32 barrier, %1, %2;\n\t"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [place], {%3, %4, %5, %6}, [barrier];\n\t}" ::
          "r"(to.window(i)),
      "r"(b.window(j)), "r"(rank), "r"(value.word[0]), "r"(value.word[1]), "r"(value.word[2]), "r"(value.word[3])
      : "memory");
#else
  missing::store_async_needs_sm_90();
#endif
}

}  // namespace rnnkern::device

#endif
