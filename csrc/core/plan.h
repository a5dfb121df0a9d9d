// From a problem to how it is run: a pure host function, so that it can be printed and tested on any machine.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "types.h"

namespace rnnkern {

// How the workers of the `simd` strategy share the time loop.
enum class Split { none, rows, units };

struct Plan {
  std::string strategy;
  int workers = 1;
  Split split = Split::none;
  size_t bytes = 0;     // memory beside the results, while it runs
  double floor_us = 0;  // what the hardware needs at least: weights streamed once a step, products at peak
  std::vector<std::pair<std::string, std::string>> rejected;  // the other strategies, and why not
};

// Names of the strategies that are compiled in.
std::vector<std::string> strategies();

// Forces a strategy for problems of its backend; an empty name ends that. Returns the name in force before. Throws
// Error on an unknown name. Per thread, or from RNNKERN_FORCE_STRATEGY.
std::string force_strategy(const std::string& name);

// Throws Error where a forced strategy does not support the problem. `threads`: workers that may run at once.
Plan plan(const Problem& problem, int threads);

const char* name(Split split);

}  // namespace rnnkern
