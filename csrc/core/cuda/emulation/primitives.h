// The primitives of ../primitives.cuh on a host without a GPU: the same names, each with checks. Those that wait, or
// that touch memory, also take where they were called.
#pragma once

#include <cstdint>
#include <cstring>

#include "thread.h"

#define RNNKERN_DEVICE inline
#define RNNKERN_KERNEL(threads)
#define RNNKERN_PARAMETER
#define RNNKERN_UNROLL
#define RNNKERN_ROLL
#define RNNKERN_UNROLL_BY_4

namespace rnnkern::device {

using emulation::Site;

// --- Places ---

inline int thread_index() { return emulation::running->index; }
inline int lane_index() { return emulation::running->index % 32; }
inline int warp_index() { return emulation::running->index / 32; }
inline int uniform(int value) { return value; }
inline int block_index() { return emulation::running->block; }
inline int cluster_rank() { return emulation::running->cluster_rank; }

// --- Memory ---

struct alignas(16) Quad {
  uint32_t word[4];
};

namespace detail {

[[noreturn]] void out_of_bounds(int i, int count, uint32_t address, Site site);
[[noreturn]] void misplaced(uint32_t address, int64_t bytes, uint32_t alignment, Site site);
void check_shared(uint32_t address, uint32_t bytes, bool write, Site site);     // races
void check_global(const void* address, uint32_t bytes, bool write, Site site);  // alignment, races, endless loops

}  // namespace detail

// An array in dynamic shared memory, which knows where it ends.
template <class T>
struct Shared {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  uint32_t address = 0;  // in bytes, within dynamic shared memory
  int count = 0;

  T ld(int i, Site site = Site::current()) const {
    T value;
    std::memcpy(&value, at(i, false, site), sizeof(T));
    return value;
  }
  void st(int i, T value, Site site = Site::current()) const { std::memcpy(at(i, true, site), &value, sizeof(T)); }
  Shared from(int i, Site site = Site::current()) const {
    if (i < 0 || i > count) detail::out_of_bounds(i, count, address, site);
    return {address + static_cast<uint32_t>(i * sizeof(T)), count - i};
  }
  template <class U>
  Shared<U> as(Site site = Site::current()) const {
    if (address % sizeof(U) != 0) detail::misplaced(address, count * int64_t{sizeof(T)}, sizeof(U), site);
    return {address, static_cast<int>(count * sizeof(T) / sizeof(U))};
  }
  uint32_t place(int i, Site site) const {
    if (static_cast<uint32_t>(i) >= static_cast<uint32_t>(count)) [[unlikely]] {
      detail::out_of_bounds(i, count, address, site);
    }
    return address + static_cast<uint32_t>(i) * static_cast<uint32_t>(sizeof(T));
  }

 private:
  unsigned char* at(int i, bool write, Site site) const {
    uint32_t const byte = place(i, site);
    if (emulation::running->race_check) [[unlikely]]
      detail::check_shared(byte, sizeof(T), write, site);
    return emulation::running->shared + byte;
  }
};

template <class T>
Shared<T> carve(int byte_offset, int count, Site site = Site::current()) {
  int64_t const bytes = int64_t{count} * static_cast<int64_t>(sizeof(T));
  if (byte_offset < 0 || count < 0 || byte_offset + bytes > emulation::running->shared_bytes ||
      (count > 0 && byte_offset % sizeof(T) != 0)) {
    detail::misplaced(static_cast<uint32_t>(byte_offset), bytes, sizeof(T), site);
  }
  return {static_cast<uint32_t>(byte_offset), count};
}

// Global memory through which blocks exchange data while they run.
template <class T>
struct Global {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  T* base;

  T ld(int64_t i, Site site = Site::current()) const {
    detail::check_global(base + i, sizeof(T), false, site);
    return base[i];
  }
  void st(int64_t i, T value, Site site = Site::current()) const {
    detail::check_global(base + i, sizeof(T), true, site);
    base[i] = value;
  }
};

void copy_async(Shared<Quad> to, int i, Global<Quad> from, int64_t j, Site site = Site::current());
void copy_async_wait(Site site = Site::current());

// --- Barriers, warps ---

void sync_threads(Site site = Site::current());
void sync_warp(Site site = Site::current());
float shuffle_xor(float value, int mask, Site site = Site::current());

// --- Tensor cores ---

void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::current());
void mma_fp16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::current());
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::current());
float round_tf32(float value);

// --- Flags between blocks ---

void flag_release(uint32_t* flag, uint32_t value, Site site = Site::current());
void flag_wait(const uint32_t* flag, uint32_t at_least, Site site = Site::current());

// --- Clusters ---

void cluster_sync(Site site = Site::current());
void mbarrier_init(Shared<uint64_t> b, int i, int arrivals, Site site = Site::current());
void mbarrier_init_done(Site site = Site::current());
void mbarrier_expect(Shared<uint64_t> b, int i, uint32_t bytes, Site site = Site::current());
void mbarrier_arrive(Shared<uint64_t> b, int i, int rank, Site site = Site::current());
void mbarrier_wait(Shared<uint64_t> b, int i, int parity, Site site = Site::current());
void store_async(Shared<Quad> to, int i, int rank, Quad value, Shared<uint64_t> b, int j, Site site = Site::current());

}  // namespace rnnkern::device
