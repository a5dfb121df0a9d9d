// The fixed list of cases that the kernels on CUDA are checked by. Every cell with every arithmetic and every way to
// run it stands with every schedule, every hidden size and every batch; and so do schedules, hidden sizes and batches
// with each other.
#pragma once

#include <array>
#include <set>
#include <tuple>

#include "layer_case.h"
#include "stationary_layouts.h"

namespace check {

struct Arithmetic {
  const char* name;
  Dtype dtype;
  Math math;
  bool exact, tf32;
};
inline constexpr Arithmetic kArithmetic[] = {{"float", Dtype::float32, Math::fma, false, false},
                                             {"TF32", Dtype::float32, Math::tf32, false, true},
                                             {"3xTF32", Dtype::float32, Math::tf32, true, false},
                                             {"bfloat16", Dtype::bfloat16, Math::bfloat16, false, false},
                                             {"float16", Dtype::float16, Math::float16, false, false}};

enum class Way { block, cluster, grid, stepwise };
inline constexpr const char* kWayNames[] = {"block", "cluster", "grid", "stepwise"};
inline constexpr int kWays = 4, kArithmetics = 5;

struct ScheduleKind {
  const char* name;
  Rows rows;
  bool reverse, both_directions, masks;
};
inline constexpr ScheduleKind kSchedules[] = {{"plain", Rows::plain, false, false, false},
                                              {"reverse", Rows::plain, true, false, false},
                                              {"lengths", Rows::lengths, false, false, false},
                                              {"reset", Rows::reset, false, false, false},
                                              {"lengths+reset", Rows::lengths_reset, false, false, false},
                                              {"packed", Rows::packed, false, false, false},
                                              {"packed+reset", Rows::packed_reset, false, false, false},
                                              {"both directions", Rows::lengths, false, true, false},
                                              {"masks", Rows::plain, false, false, true}};
inline constexpr int64_t kHidden[] = {1, 7, 16, 33, 64, 129, 256}, kBatches[] = {1, 3, 8, 17};

// Indices into the lists above.
struct Place {
  int cell, arithmetic, way, schedule, hidden, batch;
};

inline Problem problem_of(const CellName& cell, const Arithmetic& arithmetic, int64_t hidden, int64_t batch) {
  Problem p;
  p.cell = cell.kind, p.activation = cell.activation, p.dtype = arithmetic.dtype, p.tf32 = arithmetic.tf32;
  p.backend = Backend::cuda;
  p.steps = 4, p.batch = batch, p.rows = 4 * batch, p.hidden_size = hidden, p.input_size = 3;
  return p;
}

// Is there a kernel, and a layout in which this runs? Whether there is one never depends on the batch.
inline bool runs(const CellName& cell, const Arithmetic& arithmetic, Way way, Sweep sweep, int64_t hidden) {
  if (way == Way::stepwise) return !arithmetic.exact;  // products of full precision are cuBLAS's own affair
  Problem const p = problem_of(cell, arithmetic, hidden, 1);
  return !layouts(p, sweep, static_cast<Exchange>(way)).empty();
}

// Pairs that no case has yet. Each is a tuple of what is paired.
class Pairs {
 public:
  using Pair = std::array<int, 3>;
  enum Kind { with_schedule, with_hidden, with_batch, schedule_hidden, schedule_batch, hidden_batch };

  // `forward`, `backward`: which sweeps would run this place's strategy.
  std::set<Pair> of(const Place& place, bool forward, bool backward) const {
    std::set<Pair> pairs;
    for (int sweep = 0; sweep < 2; ++sweep) {
      if (!(sweep == 0 ? forward : backward)) continue;
      int const with = (place.arithmetic * kWays + place.way) * 2 + sweep;
      pairs.insert({with_schedule, with, place.schedule});
      pairs.insert({with_hidden, with, place.hidden});
      pairs.insert({with_batch, with, place.batch});
    }
    if (!pairs.empty()) {
      pairs.insert({schedule_hidden, place.schedule, place.hidden});
      pairs.insert({schedule_batch, place.schedule, place.batch});
      pairs.insert({hidden_batch, place.hidden, place.batch});
    }
    return pairs;
  }
  int fresh(const std::set<Pair>& pairs) const {
    return static_cast<int>(std::count_if(pairs.begin(), pairs.end(), [&](const Pair& p) { return !had_.count(p); }));
  }
  void add(const std::set<Pair>& pairs) { had_.insert(pairs.begin(), pairs.end()); }
  size_t size() const { return had_.size(); }

 private:
  std::set<Pair> had_;
};

struct CaseList {
  std::vector<Place> places;
  std::vector<std::string> refused;  // arithmetic, way, direction and hidden size for which there is no kernel
  size_t pairs = 0;                  // that the places cover: all that are not refused
};

// The cases of one cell. Greedy: each next place has the most pairs that are new, and of those the least work.
inline CaseList list_cases(int cell) {
  CaseList list;
  Pairs pairs;
  constexpr int schedules = std::size(kSchedules), hiddens = std::size(kHidden), batches = std::size(kBatches);
  for (int arithmetic = 0; arithmetic < kArithmetics; ++arithmetic) {
    for (int way = 0; way < kWays; ++way) {
      bool can[hiddens][2];
      for (int h = 0; h < hiddens; ++h) {
        for (Sweep sweep : {Sweep::forward, Sweep::backward}) {
          bool const ok = can[h][static_cast<int>(sweep)] =
              runs(kCellNames[cell], kArithmetic[arithmetic], static_cast<Way>(way), sweep, kHidden[h]);
          if (ok) continue;
          list.refused.push_back(std::string(kArithmetic[arithmetic].name) + " " + kWayNames[way] +
                                 (sweep == Sweep::forward ? " forward" : " backward") + " H " +
                                 std::to_string(kHidden[h]));
        }
      }
      while (true) {
        Place best = {};
        int most = 0;
        for (int h = 0; h < hiddens; ++h) {
          for (int b = 0; b < batches; ++b) {
            // Begins with another schedule each time, so that ties do not always fall to the same.
            for (int i = 0; i < schedules; ++i) {
              Place const place{cell, arithmetic, way, (i + arithmetic + 2 * way + 3 * h + b) % schedules, h, b};
              int const fresh = pairs.fresh(pairs.of(place, can[h][0], can[h][1]));
              if (fresh > most) most = fresh, best = place;
            }
          }
        }
        if (most == 0) break;
        pairs.add(pairs.of(best, can[best.hidden][0], can[best.hidden][1]));
        list.places.push_back(best);
      }
    }
  }
  list.pairs = pairs.size();
  return list;
}

// What the place leaves open is drawn.
inline Case case_of(const Place& place, uint64_t seed) {
  const CellName& cell = kCellNames[place.cell];
  const Arithmetic& arithmetic = kArithmetic[place.arithmetic];
  const ScheduleKind& schedule = kSchedules[place.schedule];
  Case c;
  c.seed = seed;
  Random random(seed + 5000);
  for (int i = 0; i < 8; ++i) random.bits();  // neighbouring seeds begin alike
  Setting& s = c.setting;
  c.backend = Backend::cuda;
  s.cell = cell.kind, s.activation = cell.activation;
  c.dtype = arithmetic.dtype, c.tf32 = arithmetic.tf32;
  c.together = c.tf32 || size_of(c.dtype) == 2;
  c.away_from_kink =
      cell.kind == CellKind::rnn && cell.activation == Activation::relu && (c.tf32 || size_of(c.dtype) == 2);
  s.H = kHidden[place.hidden], s.B = kBatches[place.batch], s.I = 1 + random.below(3);
  s.T = random.one_in(8) ? 1 : s.H > 64 ? 3 : 3 + random.below(3);
  if (s.H == 1 || s.H * s.B < 16) {  // a result of few numbers may be a small difference of larger ones
    s.T = 12;
    c.together = true;
  }
  c.weight_scale = c.away_from_kink ? 0.15 : s.H == 1 ? 0.5 : 1.5;
  s.reverse = schedule.reverse;
  c.directions = schedule.both_directions ? 2 : 1;
  if (s.H % 2 == 0 && random.one_in(5)) s.heads = 2;
  c.bias = c.away_from_kink || !random.one_in(5);
  c.mode = random.one_in(3) ? Mode::recompute : Mode::save;
  if (schedule.masks) {
    s.mask.assign(s.B * s.H, 1);
    c.masks_per_step = random.one_in(2);
    s.zoneout = c.masks_per_step ? 0 : 0.25;
  }
  set_rows(c, schedule.rows, random);
  c.name = std::string(cell.name) + " " + arithmetic.name + " " + kWayNames[place.way] + ", " + schedule.name +
           (c.mode == Mode::save ? ", save" : ", recompute") + ", T " + std::to_string(s.T) + " B " +
           std::to_string(s.B) + " H " + std::to_string(s.H) + (s.heads > 1 ? " heads 2" : "");
  return c;
}

}  // namespace check
