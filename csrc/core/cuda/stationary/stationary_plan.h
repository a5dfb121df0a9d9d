// Chooses how the stationary kernels run a problem on a GPU. Pure host code.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "device_facts.h"
#include "tiling.h"

namespace rnnkern::stationary {

struct Choice {
  bool fits = false;
  std::string why_not;     // where it does not fit: what is missing, in numbers
  Math math = Math::fma;
  bool exact = false;      // 3xTF32
  Tiling tiling;
  double us_per_step = 0;  // predicted, for all groups together
};

// The best layout for one sweep with this exchange.
Choice choose(const Problem& problem, Sweep sweep, Exchange exchange, const DeviceFacts& device);

}  // namespace rnnkern::stationary
