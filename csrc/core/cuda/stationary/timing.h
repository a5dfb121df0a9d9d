// The time that a layout takes, by a model of the kernels: costs.h has its constants.
#pragma once

#include <algorithm>

#include "../costs.h"
#include "stationary_plan.h"

namespace rnnkern::stationary {

struct Arithmetic {
  Math math;
  bool exact;
};

class Timing {
 public:
  Timing(const Problem& problem, const DeviceFacts& device) : p_(problem), device_(device), c_(costs(device)) {}

  // Fills us_per_step and fixed_us of a layout that fits.
  void predict(Choice& choice) const;

 private:
  int64_t live_rows(const Tiling& t) const { return std::min<int64_t>(p_.batch, t.tile_rows); }  // of a tile
  double tile(const Choice& choice) const;       // cycles of one block, a step of one tile
  double memory_us(const Tiling& tiling) const;  // gates and outputs of a step, all groups

  const Problem& p_;
  const DeviceFacts& device_;
  Costs c_;
};

}  // namespace rnnkern::stationary
