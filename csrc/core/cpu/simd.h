// The `simd` strategy's entry points, and the choice of the instruction set.
#pragma once

#include <string>
#include <vector>

#include "../plan.h"
#include "../platform.h"

namespace rnnkern {

void simd_forward(const Problem& problem, const std::vector<Group>& groups, const Plan& plan, CpuPlatform& platform);
void simd_backward(const Problem& problem, const std::vector<Group>& groups,
                   const std::vector<GroupGradients>& gradients, const Plan& plan, CpuPlatform& platform);

// One instruction set's kernels.
struct SimdKernels {
  const char* name;
  void (*forward)(const Problem&, const Group*, int count, const Plan&, CpuPlatform&);
  void (*backward)(const Problem&, const Group*, const GroupGradients*, int count, const Plan&, CpuPlatform&);
};

// Those that this machine can run, fastest first; the one in use; and the choice of another (Error on an unknown name).
// RNNKERN_CPU_ISA chooses at the first use.
std::vector<std::string> cpu_isas();
std::string cpu_isa();
void set_cpu_isa(const std::string& name);

#if defined(__x86_64__)
extern const SimdKernels avx512_bf16_kernels, avx512_kernels, avx2_kernels;
#endif
extern const SimdKernels portable_kernels;

}  // namespace rnnkern
