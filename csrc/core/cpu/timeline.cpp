#include "timeline.h"

#include <algorithm>
#include <numeric>

namespace rnnkern {

Timeline make_timeline(const Problem& problem, const Schedule& schedule, int64_t* storage) {
  Timeline time;
  time.steps = problem.steps;
  time.batch = problem.batch;
  time.reset = schedule.reset;
  int64_t* const lengths = storage;
  int64_t* const order = lengths + problem.batch;
  int64_t* const offsets = order + problem.batch;
  std::fill_n(lengths, problem.batch, problem.steps);
  std::iota(order, order + problem.batch, int64_t(0));
  if (schedule.batch_sizes) {
    int64_t next = 0, live = problem.batch;
    for (int64_t t = 0; t < problem.steps; ++t) {
      offsets[t] = next;
      next += schedule.batch_sizes[t];
      while (live > schedule.batch_sizes[t]) lengths[--live] = t;
    }
    time.offsets = offsets;
    time.uniform = problem.steps == 0 || schedule.batch_sizes[problem.steps - 1] == problem.batch;
  } else if (schedule.lengths) {
    std::copy_n(schedule.lengths, problem.batch, lengths);
    std::stable_sort(order, order + problem.batch, [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    time.uniform = false;
  }
  time.lengths = lengths;
  time.order = order;
  return time;
}

}  // namespace rnnkern
