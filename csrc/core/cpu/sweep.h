// What the sweeps forward and backward share: their scratch memory, and how workers divide a layer's time loops.
#pragma once

#include "gemm.h"
#include "panels.h"

namespace rnnkern::RNNKERN_ISA {

template <class E>
E* scratch(Platform& platform, int64_t count) {
  return static_cast<E*>(platform.scratch(size_t(count) * sizeof(E)));
}
template <class E>
E* zeros(Platform& platform, int64_t count) {
  E* const data = scratch<E>(platform, count);
  std::memset(static_cast<void*>(data), 0, size_t(count) * sizeof(E));
  return data;
}

inline int64_t pitch_for(const Problem& problem, int64_t lanes) {  // room for a whole vector at any unit
  return (std::max(problem.hidden_size, problem.state_size()) + 2 * lanes - 1) / lanes * lanes;
}

// One timeline for groups that share a schedule.
inline void make_timelines(const Problem& problem, const Group* groups, int count, Timeline* time, Platform& platform) {
  for (int g = 0; g < count; ++g) {
    Schedule const& now = groups[g].schedule;
    bool const same = g > 0 && now.lengths == groups[g - 1].schedule.lengths &&
                      now.reset == groups[g - 1].schedule.reset &&
                      now.batch_sizes == groups[g - 1].schedule.batch_sizes;
    time[g] = same ? time[g - 1]
                   : make_timeline(problem, now, scratch<int64_t>(platform, 2 * problem.batch + problem.steps + 1));
  }
}

// Scratch of several products that are run one after the other.
template <class T>
void share_scratch(PackedGemm<T>* products, int count, int workers, Platform& platform) {
  using C = compute_t<T>;
  int64_t panels = 0, partial = 0, strips = 0;
  for (int i = 0; i < count; ++i) {
    panels = std::max(panels, products[i].panel_elements());
    partial = std::max(partial, products[i].partial_elements());
    strips = std::max(strips, products[i].strip_elements());
  }
  C* const all = scratch<C>(platform, panels + partial + strips * workers);
  for (int i = 0; i < count; ++i) {
    products[i].panels = all;
    products[i].partial = all + panels;
    products[i].strips = all + panels + partial;
  }
}

// The rows of group `g` that a worker runs when rows are shared out: by ranges, or dealt out where lengths differ.
struct Share {
  const int64_t* rows;
  int64_t count;
};
inline Share share(const Timeline& time, int g, int groups, int worker, int workers, int64_t* storage) {
  int64_t const batch = time.batch;
  if (groups % workers == 0) return {time.order, g % workers == worker ? batch : 0};
  if (!time.uniform) {
    int64_t count = 0;
    for (int64_t i = worker; i < batch; i += workers) storage[count++] = time.order[i];
    return {storage, count};
  }
  int64_t const all = groups * batch, from = all * worker / workers - g * batch,
                to = all * (worker + 1) / workers - g * batch;
  int64_t const first = std::clamp<int64_t>(from, 0, batch);
  return {time.order + first, std::clamp<int64_t>(to, 0, batch) - first};
}

// Runs the sweeps of all groups: `make(g, rows, count, worker)` builds one. With Split::units every worker runs all
// rows of a part of the panels, and waits for the others after each stage; otherwise each worker runs its own rows
// alone.
template <class Sweep, class Make, class Count, class End>
void run_sweeps(const Problem& problem, const Timeline* time, int groups, Split split, int worker, int workers,
                int64_t* row_storage, Sweep* sweeps, Barrier& barrier, Make make, Count panels, End end) {
  int const stages = Sweep::stages(problem);
  if (split == Split::units && workers > 1) {
    for (int g = 0; g < groups; ++g) {
      new (&sweeps[g]) Sweep(make(g, time[g].order, time[g].batch, g));
      sweeps[g].begin(worker, workers);
    }
    barrier.wait(workers);
    for (int64_t s = 0; s < problem.steps; ++s) {
      for (int g = 0; g < groups; ++g) sweeps[g].prepare(s);
      for (int stage = 0; stage < stages; ++stage) {
        for (int g = 0; g < groups; ++g) {
          int const count = panels(g, stage);
          sweeps[g].run(stage, count * worker / workers, count * (worker + 1) / workers);
        }
        barrier.wait(workers);
      }
    }
    for (int g = 0; g < groups; ++g) end(sweeps[g], g, worker, workers);
    return;
  }
  if (split == Split::none) {
    if (worker > 0) return;
    workers = 1;
  }
  for (int g = 0; g < groups; ++g) {
    Share const mine = share(time[g], g, groups, worker, workers, row_storage);
    if (mine.count == 0) continue;
    new (&sweeps[0]) Sweep(make(g, mine.rows, mine.count, 0));
    sweeps[0].begin(0, 1);
    for (int64_t s = 0; s < problem.steps; ++s) {
      sweeps[0].prepare(s);
      for (int stage = 0; stage < stages; ++stage) sweeps[0].run(stage, 0, panels(g, stage));
    }
    end(sweeps[0], g, 0, 1);
  }
}

}  // namespace rnnkern::RNNKERN_ISA
