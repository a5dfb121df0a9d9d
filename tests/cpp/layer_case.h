// One layer to check: its sizes and options; and the cases that every strategy goes through.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "reference.h"
#include "tensor.h"

namespace check {

using namespace rnnkern;
using host::Random;
using reference::Setting;

enum class Mode { infer, save, recompute };

struct Case {
  Setting setting;  // of the forward direction
  Backend backend = Backend::cpu;
  Dtype dtype = Dtype::float64;
  Mode mode = Mode::save;
  int directions = 1;
  bool bias = true, packed = false, given_lengths = false, masks_per_step = false;
  bool per_sample = false;      // gradients of the weights for each row of the batch
  bool from_zero = false;       // no initial states are given
  bool tf32 = false;            // products may round to TF32
  double weight_scale = 1.5;    // weights and biases are at most this / sqrt(H)
  bool together = false;        // compare all results as one
  bool away_from_kink = false;  // relu: inputs for which rounding cannot cross zero, where the derivative jumps
  uint64_t seed = 1;
  std::string name;
};

[[noreturn]] inline void fail(const Case& c, const std::string& what) {
  std::printf("FAILED %s seed %llu: %s\n", c.name.c_str(), static_cast<unsigned long long>(c.seed), what.c_str());
  std::exit(1);
}

enum class Rows { plain, lengths, reset, lengths_reset, packed, packed_reset };
inline constexpr Rows kRows[] = {Rows::plain,         Rows::lengths, Rows::reset,
                                 Rows::lengths_reset, Rows::packed,  Rows::packed_reset};
inline constexpr const char* kRowsNames[] = {"plain", "lengths", "reset", "lengths+reset", "packed", "packed+reset"};

// Draws which rows live at which step; the sizes must be set.
inline void set_rows(Case& c, Rows kind, Random& random) {
  Setting& s = c.setting;
  c.packed = kind == Rows::packed || kind == Rows::packed_reset;
  c.given_lengths = kind == Rows::lengths || kind == Rows::lengths_reset;
  s.lengths.assign(s.B, s.T);
  if (c.given_lengths) {
    // On CUDA nobody reads lengths before the kernels do, so some are outside of [0, T].
    int64_t const outside = c.backend == Backend::cuda ? 1 : 0;
    for (int64_t& length : s.lengths) length = random.below(s.T + 1 + 3 * outside) - outside;
  }
  if (c.packed) {
    for (int64_t b = 1; b < s.B; ++b) s.lengths[b] = s.T - random.below(std::max<int64_t>(s.T, 1));
    std::sort(s.lengths.rbegin(), s.lengths.rend());
  }
  s.offsets.assign(1, 0);
  for (int64_t t = 0; t < s.T; ++t) {
    int64_t live = s.B;
    if (c.packed) live = std::count_if(s.lengths.begin(), s.lengths.end(), [&](int64_t length) { return length > t; });
    s.offsets.push_back(s.offsets.back() + live);
  }
  if (kind == Rows::reset || kind == Rows::lengths_reset || kind == Rows::packed_reset) {
    bool const all = random.one_in(6);
    s.reset.resize(s.rows());
    for (char& flag : s.reset) flag = all || random.one_in(3);
  }
}

// Draws what the sizes leave open. Gradients of relu are not checked in 16 bits: rounding may cross zero, where its
// derivative jumps.
inline void set_options(Case& c, Rows rows, Random& random) {
  Setting& s = c.setting;
  c.bias = !random.one_in(4);
  c.mode = static_cast<Mode>(random.below(3));
  if (s.activation == Activation::relu && size_of(c.dtype) == 2) c.mode = Mode::infer;
  if (random.one_in(3)) s.mask.assign(s.B * s.R(), 1);
  int64_t const zoneout = random.below(4);
  c.masks_per_step = zoneout == 1;
  s.zoneout = zoneout == 2 ? 0.25 : 0;
  set_rows(c, rows, random);
  c.per_sample = !c.packed && random.one_in(4);
  c.from_zero = random.one_in(4);
}

inline void set_name(Case& c, const char* cell, Rows rows) {
  const Setting& s = c.setting;
  c.name = std::string(cell) + " " + kDtypeNames[static_cast<int>(c.dtype)].name + " " +
           kRowsNames[static_cast<int>(rows)] +
           (c.directions == 2 ? " both directions"
            : s.reverse       ? " reverse"
                              : "");
  auto const size = [&](const char* what, int64_t value) { c.name += std::string(what) + std::to_string(value); };
  size(" T ", s.T), size(" B ", s.B), size(" I ", s.I), size(" H ", s.H), size(" P ", s.P), size(" heads ", s.heads);
  const char* const modes[] = {" infer", " save", " recompute"};
  c.name += modes[static_cast<int>(c.mode)];
  if (c.per_sample) c.name += " per sample";
}

// Every cell x dtype x kind of rows, `repeats` times, the directions in turn and the other options drawn. Returns the
// number of cases.
template <class Body>
int for_each_case(Backend backend, int repeats, Body&& body) {
  int cases = 0;
  for (const CellName& cell : kCellNames) {
    for (const DtypeName& dtype : kDtypeNames) {
      for (Rows rows : kRows) {
        for (int repeat = 0; repeat < repeats; ++repeat) {
          Case c;
          c.seed = static_cast<uint64_t>(++cases);
          Random random(c.seed + 1000);
          Setting& s = c.setting;
          c.backend = backend;
          s.cell = cell.kind, s.activation = cell.activation;
          c.dtype = dtype.dtype;
          c.directions = repeat % 3 == 2 ? 2 : 1;
          s.reverse = repeat % 3 == 1;
          int64_t const steps[] = {5, 4, 3, 2, 1, 0}, batches[] = {3, 4, 5, 2, 1, 0};
          s.T = steps[random.one_in(2) ? 0 : random.below(6)];
          s.B = batches[random.one_in(2) ? 0 : random.below(6)];
          s.I = 1 + random.below(4);
          s.H = 4 + 2 * random.below(2);
          if (cell.kind == CellKind::lstm && random.one_in(3)) {
            s.P = s.H - 1 - random.below(2);
          } else if (random.one_in(3)) {
            s.heads = 2;
          }
          set_options(c, rows, random);
          set_name(c, cell.name, rows);
          body(c);
        }
      }
    }
  }
  return cases;
}

}  // namespace check
