#include "share.h"

#include <algorithm>
#include <limits>

#include "simd.h"

namespace rnnkern {
namespace {

// Streaming rates and peak of one core as measured on 2 Zen 4 cores at 3.67 GHz; a floor is an indication, not a
// promise.
constexpr double kL1 = 221e3, kL2 = 118e3, kL3 = 99e3, kMemory = 20e3;  // bytes per us
constexpr double kFlops = 117e3;                                        // float32 per us

double streaming(double bytes) { return bytes < 32e3 ? kL1 : bytes < 1e6 ? kL2 : bytes < 32e6 ? kL3 : kMemory; }

// Multiply-adds of the time loop, per row.
double recurrent_work(const Problem& p) {
  return double(p.gate_size()) * p.state_size() / p.heads + double(p.proj_size) * p.hidden_size;
}

// As the time loop reads those of many rows.
double weight_bytes(const Problem& p) {
  return p.dtype == Dtype::float64 ? 8 : p.int8 ? 1 : simd_multiplies_pairs(p.dtype) ? 2 : 4;
}

// A multiply-add's time beside float32's.
double slowness(const Problem& p) { return weight_bytes(p) / 4 / simd_rows_at_once(p.dtype); }

// A way to share a step, and what it takes.
struct Way {
  int workers;
  double us;
};

constexpr double kUnitUs = 2e-3;      // a cell's functions
constexpr double kHidden = 0.85;      // of the shorter of reading weights and multiplying them, beside the longer
constexpr double kRoundUs = 0.3;      // of a barrier
constexpr double kLineUs = 0.03;      // of states that another worker made
constexpr double kNearlyBest = 1.03;  // fewer workers may take so much longer

// What a worker takes in a step for `rows` rows of `groups` groups, of whose units it has a `part`.
double step_us(const Problem& p, int64_t rows, int64_t groups, double part) {
  double const flops = 2 * slowness(p), bytes = recurrent_work(p) * weight_bytes(p) * groups * part;
  double const loop = recurrent_work(p) * std::max<int64_t>(rows, simd_rows_at_once(p.dtype)) * part,
               input = double(p.gate_size()) * p.input_size * rows * part;
  double const streams = bytes / streaming(bytes), products = flops * loop / kFlops;
  return std::max(streams, products) + (1 - kHidden) * std::min(streams, products) +
         rows * p.hidden_size * part * kUnitUs + flops * input / kFlops;
}

Way by_rows(const Problem& p, int threads) {
  int64_t const rows = p.batch * p.groups;
  int const workers = int(std::min<int64_t>(threads, rows));
  int64_t const most = (rows + workers - 1) / workers;
  return {workers, step_us(p, most, (most + p.batch - 1) / p.batch, 1)};
}

// A panel of one vector would wait for each of its sums, unless those of several rows are made beside each other.
int64_t fewest_blocks(int gates, int64_t rows) { return gates == 1 && rows < 4 ? 2 : 1; }

// Each worker has a line of the states at least. Backward passes on the gates' gradients, and has one sum for a unit.
Way by_units(const Problem& p, int threads) {
  constexpr int64_t kLine = 64;
  int const least_gates = p.save || p.cell == CellKind::gru_v1 ? 1 : int(p.gates());  // of a stage
  int64_t const rows = p.batch * p.groups, size = p.hidden_size * int64_t(p.int8 ? sizeof(float) : weight_bytes(p)),
                lines = (size + kLine - 1) / kLine,
                shares = std::max<int64_t>(1, lines / fewest_blocks(least_gates, p.batch));
  Way best{1, std::numeric_limits<double>::infinity()};
  int const most = int(std::min<int64_t>(threads, shares));
  for (int workers = 2, rounds = 1; workers <= most; ++workers) {
    if (workers > 1 << rounds) ++rounds;
    double const part = double((shares + workers - 1) / workers) / shares,
                 others = double(rows * lines) * (p.save ? p.gates() : 1) * (workers - 1) / workers;
    double const us = step_us(p, rows, p.groups, part) + p.stages() * rounds * kRoundUs + others * kLineUs;
    if (us * kNearlyBest < best.us) best = {workers, us};
  }
  return best;
}

constexpr double kWorthAThread = 0.5e6;   // multiply-adds: 8 us
constexpr double kManyWeights = 0.7e6;    // bytes: more than stay in a second cache beside all else
constexpr double kFewRows = 8;            // of a thread, at most
constexpr double kFewRowsPerByte = 3e-6;  // of a thread, for each byte of weights
constexpr double kManyWeightsTrained = 2 * kManyWeights;
constexpr int kFewRowsTrained = 2;

}  // namespace

// Threads share rows; or units, where a step is long enough to pay for its barriers; or nothing, where the whole call
// is shorter than waking them takes. Units: a row alone waits for its weights, of which each thread could read a part
// for all rows; so do a few rows with many weights; and a matrix unit takes several rows in the time of one, which a
// thread should have then. Backward does more beside reading weights. How few and how many was measured with two Zen 4
// threads: with 1 MB of weights 4 rows gain a tenth by units and 16 nothing, while cores of different third caches,
// which pass on states slowly, lose a tenth; with 4 MB 8 and 16 rows gain 2 %. With more threads, which were not
// measured, the shorter step decides (but for two rows, which more threads than two would not make faster apart).
Sharing share_work(const Problem& p, int threads) {
  Sharing sharing;
  double const loop = recurrent_work(p), input = double(p.gate_size()) * p.input_size * p.rows * p.groups;
  threads = int(std::min<double>(threads, (loop * p.rows * p.groups + input) / kWorthAThread));
  if (threads <= 1) return sharing;
  int64_t const rows = p.batch * p.groups, at_once = simd_rows_at_once(p.dtype);
  if (p.steps == 1) {
    int const workers = int(std::min<int64_t>(threads, rows));
    if (workers > 1) sharing.split = Split::units, sharing.workers = workers;  // one worker alone reads a weight
  } else {
    double const bytes = loop * weight_bytes(p);
    bool const long_steps = loop >= (p.int8 || at_once > 1 ? 192e3 : 48e3), alone = rows < 2 * threads,
               streams = bytes >= (p.save ? kManyWeightsTrained : kManyWeights) &&
                         rows <= threads * (p.save ? kFewRowsTrained : std::min(kFewRows, kFewRowsPerByte * bytes)),
               on_unit = at_once > 1 && p.batch < threads * at_once;
    Way const shared = by_units(p, threads), apart = by_rows(p, threads);
    if (long_steps && p.groups % threads != 0 && (alone || streams || on_unit) && shared.workers > 1 &&
        (threads == 2 || rows <= 2 || shared.us < apart.us)) {
      sharing.split = Split::units, sharing.workers = shared.workers;
    } else if (apart.workers > 1) {
      sharing.split = Split::rows, sharing.workers = apart.workers;
    }
  }
  // The input product alone.
  if (sharing.split == Split::none && input > 4e6) sharing.workers = int(std::min<double>(threads, input / 2e6));
  return sharing;
}

int64_t panels_of(int64_t blocks, int64_t heads, int gates, int columns, int workers, int64_t rows) {
  int64_t const most = std::max(1, columns / gates), panels = (blocks + most - 1) / most;
  if (workers == 1) return panels;
  int64_t const dealt = (heads * panels + workers - 1) / workers * workers;
  return std::max(panels, std::min((dealt + heads - 1) / heads, blocks / fewest_blocks(gates, rows)));
}

double simd_floor_us(const Problem& p, int workers) {
  double const fewest = p.dtype == Dtype::bfloat16 ? 2 : weight_bytes(p);
  double const weights = recurrent_work(p) * fewest / workers, input = double(p.gate_size()) * p.input_size;
  double const streams = double(p.steps) * p.groups * weights / streaming(weights);
  return std::max(streams, 2 * slowness(p) * p.rows * p.groups * (recurrent_work(p) + input) / kFlops / workers);
}

const char* name(Split split) {
  switch (split) {
    case Split::rows: return "rows";
    case Split::units: return "units";
    default: return "none";
  }
}

}  // namespace rnnkern
