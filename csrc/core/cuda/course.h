// The course of a recurrence through time, as kernels see it: which rows live at a step, where they lie, and what came
// before.
#pragma once

#include "../host_device.h"
#include "../types.h"

namespace rnnkern::stepwise {

// One step: rows b < rows may live, row b lies at offset + b. Outside the sequence there are no rows.
struct Moment {
  int64_t t = 0;
  int64_t offset = 0;
  int64_t rows = 0;
};

// `offsets` [T + 1] is null for a padded sequence; host memory for the driver, device memory for kernels.
struct Calendar {
  int64_t steps = 0;
  int64_t batch = 0;
  const int64_t* offsets = nullptr;

  RNNKERN_HD Moment at(int64_t t) const {
    if (t < 0 || t >= steps) return {t, 0, 0};
    if (offsets == nullptr) return {t, t * batch, batch};
    return {t, offsets[t], offsets[t + 1] - offsets[t]};
  }
};

// A step with its neighbours in the order of the recurrence: `before` is t - 1, in reverse t + 1.
struct Course {
  bool reverse = false;
  const int64_t* lengths = nullptr;  // [B]
  const bool* reset = nullptr;       // [rows]
  Moment before, now, after;

  RNNKERN_HD bool live(const Moment& moment, int64_t b) const {
    return b < moment.rows && (lengths == nullptr || moment.t < lengths[b]);
  }
  RNNKERN_HD bool live(int64_t b) const { return live(now, b); }

  // The state is the initial one: nothing of this row lived before.
  RNNKERN_HD bool first(int64_t b) const { return !live(before, b); }

  // The state is zero instead of what the step before left. Asked of live rows only.
  RNNKERN_HD bool cut(int64_t b) const { return cut(before, now, b); }
  RNNKERN_HD bool cut_after(int64_t b) const { return cut(now, after, b); }

 private:
  // A segment starts at `to`; in reverse time it ended at `from`, which says so by starting one.
  RNNKERN_HD bool cut(const Moment& from, const Moment& to, int64_t b) const {
    if (reset == nullptr) return false;
    return reverse ? live(from, b) && reset[from.offset + b] : reset[to.offset + b];
  }
};

}  // namespace rnnkern::stepwise
