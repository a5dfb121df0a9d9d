// From a problem to how it is run: a pure host function, so that it can be printed and tested on any machine.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/sweep_plan.h"
#include "types.h"

namespace rnnkern {

// How the workers of the `simd` strategy share the time loop.
enum class Split { none, rows, units };

struct Plan {
  std::string strategy;  // of the forward sweep
  int workers = 1;
  Split split = Split::none;
  size_t bytes = 0;     // on a GPU: memory beside the results, while it runs; on the CPU simd_bytes() finds it
  double floor_us = 0;  // what the hardware needs at least: weights streamed once a step, products at peak beside them
  std::vector<std::pair<std::string, std::string>> rejected;  // the other strategies, and why not
  std::optional<SweepPlan> forward, backward;  // on a GPU whose facts are known; backward where gates are kept

  int sharing_units() const { return split == Split::units ? workers : 1; }  // workers that do

  // `simd`: with the same number of groups for every worker, each runs its own from beginning to end, one after the
  // other and in the same memory. Otherwise all workers run all groups together.
  bool whole_groups(int64_t groups) const { return workers == 1 || (split == Split::rows && groups % workers == 0); }
};

// Names of the strategies that are compiled in.
std::vector<std::string> strategies();

// Forces a strategy for problems of its backend; an empty name ends that. Returns the name in force before. Throws
// Error on an unknown name; "stationary" leaves the exchange open. Of the process, or from RNNKERN_FORCE_STRATEGY.
std::string force_strategy(const std::string& name);

// Throws Error where a forced strategy does not support the problem. `threads`: workers that may run at once; `device`:
// the GPU that would run it, null: unknown, so that `stepwise` does.
Plan plan(const Problem& problem, int threads, const DeviceFacts* device = nullptr);

// The same on the CPU without what only describes it (the other strategies, floor_us): for every call.
Plan cpu_plan(const Problem& problem, int threads);

// How to run one sweep on a GPU, with the forced strategy; `us` and `bytes` are those of typical_steps(). Asked again,
// it is only looked up.
std::shared_ptr<const SweepPlan> cuda_plan(const Problem& problem, Sweep sweep, const DeviceFacts& device);

const char* name(Split split);

}  // namespace rnnkern
