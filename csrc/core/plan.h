// From a problem to how it is run: a pure host function, so that it can be printed and tested on any machine.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/share.h"
#include "cuda/sweep_plan.h"
#include "types.h"

namespace rnnkern {

struct Plan : Sharing {  // that of the `simd` strategy; one worker elsewhere
  std::string strategy;  // of the forward sweep
  size_t bytes = 0;      // on a GPU: memory beside the results, while it runs; on the CPU simd_bytes() finds it
  double floor_us = 0;   // what the hardware needs at least: weights streamed once a step, products at peak beside them
  std::vector<std::pair<std::string, std::string>> rejected;  // the other strategies, and why not
  std::optional<SweepPlan> forward, backward;  // on a GPU whose facts are known; backward where gates are kept
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

}  // namespace rnnkern
