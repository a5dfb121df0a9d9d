// How a sweep runs on a GPU: a pure function of the problem and the GPU's numbers, compiled with or without CUDA.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "stationary/stationary_plan.h"

namespace rnnkern {

using stationary::Sweep;

struct SweepPlan {
  std::string strategy;           // stepwise, stationary:block, stationary:cluster, stationary:grid
  stationary::Choice stationary;  // of a stationary strategy: how
  size_t bytes = 0;               // memory beside the results, while it runs
  double us_per_step = 0;         // predicted, of the recurrence
  double us = 0;                  // ... and of all steps
  std::vector<std::pair<std::string, std::string>> rejected;  // the other strategies, and why not

  bool stepwise() const { return strategy == "stepwise"; }
};

// The number of steps that a choice is made for, at least `steps`: a program with sequences of many lengths should not
// search again for each.
int64_t typical_steps(int64_t steps);

// `forced`: empty, or the strategy to take, where "stationary" leaves the exchange open; throws Error where that one
// does not fit.
SweepPlan plan_sweep(const Problem& problem, Sweep sweep, const DeviceFacts& device, const std::string& forced = "");

// Memory beside the results, while it runs; without a choice that of `stepwise`.
size_t sweep_bytes(const Problem& problem, Sweep sweep, const stationary::Choice* choice);

// What the GPU needs at least for the sweeps of this problem: products at peak; a step's weights are on chip, and its
// units are exchanged once.
double cuda_floor_us(const Problem& problem, const DeviceFacts& device);

const char* name(stationary::Exchange exchange);
const char* name(stationary::Math math, bool exact);

}  // namespace rnnkern
