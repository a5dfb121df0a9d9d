// A schedule as the time loop reads it: lengths of all rows, where each row of each step lies, and the rows by falling
// length.
#pragma once

#include "../types.h"

namespace rnnkern {

struct Timeline {
  int64_t steps = 0, batch = 0;
  const int64_t* lengths = nullptr;  // [B]
  const int64_t* offsets = nullptr;  // [T] of a packed sequence, or null
  const int64_t* order = nullptr;    // [B] rows by falling length
  const bool* reset = nullptr;       // [rows]
  bool uniform = true;               // every row lives for T steps

  int64_t row(int64_t t, int64_t b) const { return offsets ? offsets[t] + b : t * batch + b; }

  // The row's own step.
  int64_t own_step(int64_t t, int64_t b, bool reverse) const { return reverse ? lengths[b] - 1 - t : t; }

  // Is the state replaced by zero before step t? In reverse it is cut on its way from t + 1 to t, unless t + 1 is
  // padding.
  bool cut(int64_t t, int64_t b, bool reverse) const {
    if (!reset) return false;
    if (!reverse) return reset[row(t, b)];
    return t + 1 < lengths[b] && reset[row(t + 1, b)];
  }
};

// Fills the arrays from a schedule in host memory; storage: 2 * B + T elements.
Timeline make_timeline(const Problem& problem, const Schedule& schedule, int64_t* storage);

// The rows of steps [first_step, last_step).
struct Turn {
  int64_t first_step, last_step, first, count;
};
// Of the `steps` steps from `s` on in the order of processing.
inline Turn turn_of(const Problem& problem, const Timeline& time, bool last_first, int64_t s, int64_t steps) {
  int64_t const t = last_first ? problem.steps - s - steps : s;
  auto const at = [&](int64_t step) { return step == problem.steps ? problem.rows : time.row(step, 0); };
  return {t, t + steps, at(t), at(t + steps) - at(t)};
}

// The rows of one group that a worker runs; how many the workers before it run; and the place where the first of them
// keeps its states.
struct Share {
  const int64_t* rows;
  int64_t count, before = 0, place = 0;
};

// They are in order of falling length: a prefix is live at each step.
struct LiveRows : Share {
  const Timeline* time;
  int64_t live = 0;

  int64_t at(int64_t t) {
    while (live > 0 && time->lengths[rows[live - 1]] <= t) --live;
    while (live < count && time->lengths[rows[live]] > t) ++live;
    return live;
  }

  // Where its rows of a turn lie, padding too, counted from the turn's first. Returns how many there are. Not packed.
  int64_t of_turn(const Turn& turn, int64_t* out) const {
    int64_t n = 0;
    for (int64_t t = turn.first_step; t < turn.last_step; ++t)
      for (int64_t i = 0; i < count; ++i) out[n++] = time->row(t, rows[i]) - turn.first;
    return n;
  }
};

}  // namespace rnnkern
