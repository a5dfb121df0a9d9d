// The `simd` strategy's entry points, and the choice of the instruction set.
#pragma once

#include <string>
#include <vector>

#include "../int8.h"
#include "../platform.h"
#include "share.h"

namespace rnnkern {

void simd_forward(const Problem& problem, const std::vector<Group>& groups, const Sharing& sharing,
                  CpuPlatform& platform);
void simd_backward(const Problem& problem, const std::vector<Group>& groups,
                   const std::vector<GroupGradients>& gradients, const Sharing& sharing, CpuPlatform& platform);
// `groups` without float weights; inference in float32: nothing is saved.
void simd_int8_forward(const Problem& problem, const std::vector<Group>& groups, const std::vector<Int8Group>& weights,
                       const Sharing& sharing, CpuPlatform& platform);

// One instruction set's kernels.
using Int8Forward = void (*)(const Problem&, const Group*, const Int8Group*, int count, const Sharing&, CpuPlatform&);
struct SimdKernels {
  const char* name;
  void (*forward)(const Problem&, const Group*, int count, const Sharing&, CpuPlatform&);
  void (*backward)(const Problem&, const Group*, const GroupGradients*, int count, const Sharing&, CpuPlatform&);
  Int8Forward int8_forward;
};

// Memory beside the results that a layer, whose groups are its directions, asks for at a time: forward, or, where
// something is kept for it, backward with all gradients wanted.
size_t simd_bytes(const Problem& problem, const Sharing& sharing);

// How many rows a product takes in the time of one, with the instruction set in use; and whether it takes elements in
// pairs, by dot products of the 16-bit type.
int simd_rows_at_once(Dtype dtype);
bool simd_multiplies_pairs(Dtype dtype);

// Whether what a tile streams from beyond the second cache, while it takes all rows at once, is worth asking for before
// it is read: not on Zen 4, whose own prefetchers bring it faster alone.
bool simd_asks_ahead();

// Whether lines that other cores have from before are better written past the caches (store() in vec.h).
bool simd_streams_shared();

// Those compiled in, fastest first; those of them that this machine can run; the one in use; and the choice of another
// (Error on an unknown name). RNNKERN_CPU_ISA chooses at the first use.
std::vector<std::string> compiled_isas();
std::vector<std::string> cpu_isas();
std::string cpu_isa();
void set_cpu_isa(const std::string& name);

extern const SimdKernels avx512_amx_kernels, avx512_bf16_kernels, avx512_kernels, avx2_kernels;  // defined on x86-64
extern const SimdKernels portable_kernels;

// Files of their own: AVX-512 has byte products only with VNNI.
#if defined(__x86_64__)
void avx512_int8_forward(const Problem&, const Group*, const Int8Group*, int count, const Sharing&, CpuPlatform&);
void avx2_int8_forward(const Problem&, const Group*, const Int8Group*, int count, const Sharing&, CpuPlatform&);
#endif
void portable_int8_forward(const Problem&, const Group*, const Int8Group*, int count, const Sharing&, CpuPlatform&);

}  // namespace rnnkern
