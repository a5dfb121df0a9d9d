// What the sweeps forward and backward share: their scratch memory, and how workers divide a layer's time loops.
#pragma once

#include "gemm.h"
#include "run_panels.h"

namespace rnnkern::RNNKERN_ISA {

template <class E>
E* scratch(Platform& platform, int64_t count) {
  static_assert(alignof(E) <= kLine);
  return static_cast<E*>(platform.scratch(size_t(count) * sizeof(E)));
}
template <class E>
E* zeros(Platform& platform, int64_t count) {
  E* const data = scratch<E>(platform, count);
  std::memset(static_cast<void*>(data), 0, size_t(count) * sizeof(E));
  return data;
}

// Row b of [B][size], or zeros where there is none.
template <class T>
void load_row(compute_t<T>* to, const void* from, int64_t b, int64_t size) {
  for (int64_t j = 0; j < size; ++j)
    to[j] = from ? to_compute(static_cast<const T*>(from)[b * size + j]) : compute_t<T>(0);
}
template <class T>
const T* mask_of(const Group& group, int64_t b, int64_t size) {
  return group.mask ? static_cast<const T*>(group.mask) + b * size : nullptr;
}
// 1 where it is true, else 0.
template <class V>
RNNKERN_INLINE V flags(const bool* from, int n) {
  typename V::Scalar values[V::lanes] = {};
  for (int i = 0; i < n; ++i) values[i] = from[i];
  return load<V>(values);
}

inline int64_t pitch_for(const Problem& problem, int64_t lanes) {  // room for a whole vector at any unit
  return (std::max(problem.hidden_size, problem.state_size()) + 2 * lanes - 1) / lanes * lanes;
}

// Between what workers that run rows of their own keep for them there is a gap: prefetchers that run on behind the last
// row would take the other's lines away in every step.
inline int64_t gap_of(int64_t row) {
  constexpr int64_t kElements = 4096;
  return (kElements - 1) / row + 1;  // rows
}

// Rows of the time loops keep their states in places, as many as the batch where all workers run all rows.
struct Places {
  int64_t gap = 0, count;

  Places(const Problem& problem, const Sharing& sharing, int64_t lanes) : count(problem.batch) {
    if (sharing.split != Split::rows || sharing.workers == 1) return;
    gap = gap_of(pitch_for(problem, lanes));
    count += sharing.workers * gap + 1;
  }
};

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

// Scratch that several products may use one after the other; panels that are kept, and sums between turns, belong to
// one product alone.
template <class T>
struct ProductScratch {
  packed_t<T>*panels, *copies;
  compute_t<T>* partial;

  static ProductScratch make(const PackedGemm<T>* products, int count, int workers, Platform& platform) {
    int64_t panels = 0, partial = 0, copies = 0;
    for (int i = 0; i < count; ++i) {
      panels = std::max(panels, products[i].panel_elements(workers));
      if (!products[i].partial) partial = std::max(partial, products[i].partial_elements());
      copies = std::max(copies, products[i].copy_elements(workers));
    }
    return {scratch<packed_t<T>>(platform, panels), scratch<packed_t<T>>(platform, copies),
            scratch<compute_t<T>>(platform, partial)};
  }
  void give(PackedGemm<T>& product) const {
    product.panels = panels, product.copies = copies;
    if (!product.partial && product.partial_elements() > 0) product.partial = partial;
  }
};

// How groups share memory (Sharing::whole_groups): group g works in `slot(g)`. Where all workers run all groups, each
// group is a slot. `together`: 2 where every second group adds to what the one before it made, so that one worker runs
// both, or all workers, in this order.
struct Slots {
  int together;
  bool whole;
  int count;

  Slots(const Sharing& sharing, int groups, int together = 1)
      : together(together), whole(sharing.whole_groups(groups / together)),
        count(whole ? std::min(sharing.workers * together, groups) : groups) {}
  int slot(int g) const { return g % count; }
  int workers(const Sharing& sharing) const { return whole ? 1 : sharing.workers; }  // that run a group

  // Gives scratch to products that their workers run one after the other; group g's begin at first(g).
  template <class T, class First>
  void share(PackedGemm<T>* products, First first, int groups, const Sharing& sharing, Platform& platform) const {
    int const shares = whole ? count : 1;
    for (int share = 0; share < shares; ++share) {
      auto const memory = ProductScratch<T>::make(products, first(groups), workers(sharing), platform);
      for (int g = share; g < groups; g += shares)
        for (int i = first(g); i < first(g + 1); ++i) memory.give(products[i]);
    }
  }

  // run(first, groups, place, worker, workers, barrier): by one of the workers that run these groups; no two that run
  // at the same time have the same place.
  template <class Run>
  void run(int groups, const Sharing& sharing, CpuPlatform& platform, Run run) const {
    int const among = workers(sharing);
    Barrier barrier(scratch<Barrier::Line>(platform, Barrier::lines(among)), among);
    platform.parallel(sharing.workers, [&](int worker, int workers) {
      if (!whole) return run(0, groups, worker, worker, workers, barrier);
      for (int place = worker; place * together < count; place += workers)
        for (int g = place * together; g < groups; g += count) run(g, together, place, 0, 1, barrier);
    });
  }
};

// Whether each worker makes a product's rows that its own time loops use. It reads all of the packed weight then, a
// part of which others packed, and nobody else's rows. Of a packed sequence the same row of two turns may be another
// worker's.
template <class T>
bool makes_own_rows(const PackedGemm<T>& product, const Problem& problem, const Sharing& sharing, int workers) {
  return workers > 1 && sharing.split == Split::rows && !problem.packed && !product.unpacked() &&
         problem.rows >= workers * problem.input_size;
}

// Says what of a group's buffers `workers` share: with rows of their own, all panels, too.
template <class Buffers>
void set_shared(Buffers& buffers, const Sharing& sharing, int workers) {
  buffers.shared = workers > 1 && simd_streams_shared();
  buffers.first.shared = buffers.second.shared = buffers.shared && sharing.split == Split::rows;
}

// How the workers divide the time loops of all groups. With Split::units every worker runs all rows of a part of the
// panels, and waits for the others after each stage; otherwise each worker runs its own rows alone.
template <class Sweep>
struct Team {
  const Problem& problem;
  const Timeline* time;
  int groups;
  const Sharing& sharing;
  Places const& places;
  int worker, workers;
  Barrier& barrier;
  Sweep* sweeps;         // [groups]
  int64_t* row_storage;  // [groups][B]

  bool shares_units() const { return sharing.split == Split::units && workers > 1; }
  int first() const { return shares_units() ? worker : 0; }
  int stride() const { return shares_units() ? workers : 1; }

  Share share(int g) const {
    int64_t const batch = time[g].batch;
    if (shares_units()) return {time[g].order, batch};
    if (sharing.split != Split::rows) return {time[g].order, worker == 0 ? batch : 0};
    if (groups % workers == 0) return {time[g].order, g % workers == worker ? batch : 0};
    if (!time[g].uniform) {  // dealt out, so that long and short ones go to all
      int64_t count = 0;
      int64_t* const rows = row_storage + g * batch;
      for (int64_t i = worker; i < batch; i += workers) rows[count++] = time[g].order[i];
      int64_t const before = batch / workers * worker + std::min(batch % workers, int64_t(worker));
      return {rows, count, before, before + worker * places.gap};
    }
    int64_t const all = groups * batch, from = all * worker / workers - g * batch,
                  to = all * (worker + 1) / workers - g * batch;
    int64_t const begin = std::clamp<int64_t>(from, 0, batch);
    return {time[g].order + begin, std::clamp<int64_t>(to, 0, batch) - begin, begin, begin + worker * places.gap};
  }

  // From the first to the last unit of which this worker, if it runs rows, makes gates in any stage.
  template <class Buffers>
  Units units(const Buffers& buffers) const {
    if (!shares_units()) return {0, problem.hidden_size};
    Units all{problem.hidden_size, 0};
    for (auto const* set : {&buffers.first, &buffers.second}) {
      if (set->gates == 0 || set->units != problem.hidden_size) continue;
      Part const mine(set->count, worker, workers);
      if (mine.begin == mine.end) continue;
      Panel const& last = set->panels[mine.end - 1];
      all.begin = std::min(all.begin, set->panels[mine.begin].unit);
      all.end = std::max(all.end, last.unit + last.units);
    }
    return all;
  }

  // A turn's rows for a product: all, or with memory for a list this worker's own.
  RowsOf rows(int g, const Turn& turn, int64_t* list) const {
    if (!list) return {turn.count};
    return {sweeps[g].rows().of_turn(turn, list), 0, list};
  }

  // `make(g, share)` builds a group's sweep.
  template <class Make>
  void begin(Make make) const {
    for (int g = 0; g < groups; ++g) {
      new (&sweeps[g]) Sweep(make(g, share(g)));
      sweeps[g].begin(first(), stride());
    }
    if (shares_units()) barrier.wait(worker, workers);
  }

  // Steps [from, to) in the order of processing.
  void run(int64_t from, int64_t to) const {
    int const stages = problem.stages();
    auto const unit = sweeps[0].matrix_unit();
    if (!shares_units()) {
      for (int g = 0; g < groups; ++g)
        for (int64_t s = from; s < to && sweeps[g].rows().count > 0; ++s) {
          sweeps[g].prepare(s);
          for (int stage = 0; stage < stages; ++stage) sweeps[g].run(stage, 0, sweeps[g].panels(stage));
        }
      return;
    }
    for (int64_t s = from; s < to; ++s) {
      for (int g = 0; g < groups; ++g) sweeps[g].prepare(s);
      for (int stage = 0; stage < stages; ++stage) {
        for (int g = 0; g < groups; ++g) {
          Part const mine(sweeps[g].panels(stage), worker, workers);
          sweeps[g].run(stage, mine.begin, mine.end);
        }
        barrier.wait(worker, workers);
      }
    }
  }
};

}  // namespace rnnkern::RNNKERN_ISA
