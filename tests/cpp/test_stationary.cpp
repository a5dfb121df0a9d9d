// The CUDA strategies on the emulator, against the layer by definition: the list of stationary_cases.h. Small layers
// run under five skewed schedules and the race check as well, with the same bits.
//   test_stationary [cell [case]]
#include <chrono>
#include <cstring>

#include "cuda/emulation/launch.h"
#include "cuda/run.h"
#include "host.h"
#include "layer_check.h"
#include "stationary/emulated.h"
#include "stationary_cases.h"

using namespace check;

namespace {

constexpr int kSkewedSeeds = 5;
constexpr int64_t kSkewedHidden = 64;   // at most
#if defined(RNNKERN_SANITIZED_KERNELS)  // slow: every seventh case, small layers alone
constexpr size_t kStride = 7;
#else
constexpr size_t kStride = 1;
#endif

// An H100 as far as a plan is concerned.
DeviceFacts made_up_device() {
  DeviceFacts device;
  device.name = "made up";
  device.capability = 90;
  device.multiprocessors = kMultiprocessors, device.shared_bytes = kSharedBytes, device.max_cluster = kMaxCluster;
  device.clock_ghz = 1.8, device.bandwidth_gbs = 3000, device.l2_bytes = 50 << 20;
  return device;
}

std::string text(const Tiling& t) {
  return "team " + std::to_string(t.team) + " x " + std::to_string(t.units) + " units, " + std::to_string(t.teams) +
         " teams x " + std::to_string(t.tiles) + " tiles, warps " + std::to_string(t.row_groups) + " x " +
         std::to_string(t.depth_splits) + ", slabs " + std::to_string(t.register_slabs()) + "+" +
         std::to_string(t.shared_slabs());
}

// Runs one case: each sweep by a layout that is drawn, or that the plan chose, and by stepwise where there is none.
class Runner {
 public:
  Runner(const Case& c, const Place& place, Occurrences (&seen)[2]) : case_(c), place_(place) {
    Random random(c.seed + 9000);
    for (int i = 0; i < 8; ++i) random.bits();
    Problem p = problem_of(kCellNames[place.cell], kArithmetic[place.arithmetic], c.setting.H, c.setting.B);
    p.heads = c.setting.heads, p.groups = c.directions, p.steps = c.setting.T;
    for (Sweep sweep : {Sweep::forward, Sweep::backward}) {
      Choice& choice = choices_[static_cast<int>(sweep)];
      if (stepwise()) continue;
      choose(p, sweep, random, choice, seen[static_cast<int>(sweep)]);
      if (choice.fits) seen[static_cast<int>(sweep)].count(choice.tiling, p.head_size());
    }
  }

  bool stepwise() const { return static_cast<Way>(place_.way) == Way::stepwise; }
  std::string name() const { return kWayNames[place_.way]; }
  std::string layouts() const {
    std::string all;
    for (const Choice& choice : choices_) {
      if (!stepwise()) all += " | " + (choice.fits ? text(choice.tiling) : "stepwise");
    }
    return all;
  }

  emulation::Options options;

  void forward(const Problem& problem, const std::vector<Group>& groups) const {
    host::HostPlatform platform;
    // Gates that are not kept are made for two steps at a time.
    int64_t const chunk = 2 * problem.batch * problem.gate_size() * problem.groups;
    emulation::Device const device(options);
    const Choice& choice = choices_[0];
    dispatch_cell([&](const auto& cell) {
      if (!choice.fits) return stepwise::run_forward(cell, problem, groups, platform, device, chunk);
      emulated::forward(cell, problem, groups, platform, device, choice, chunk);
    });
  }
  void backward(const Problem& problem, const std::vector<Group>& groups,
                const std::vector<GroupGradients>& gradients) const {
    host::HostPlatform platform;
    int64_t const chunk = 2 * problem.batch * problem.gate_size();
    emulation::Device const device(options);
    const Choice& choice = choices_[1];
    dispatch_cell([&](const auto& cell) {
      if (!choice.fits) return stepwise::run_backward(cell, problem, groups, gradients, platform, device, chunk);
      emulated::backward(cell, problem, groups, gradients, platform, device, choice, chunk);
    });
  }

 private:
  void choose(const Problem& p, Sweep sweep, Random& random, Choice& choice, Occurrences& seen) const {
    const Arithmetic& arithmetic = kArithmetic[place_.arithmetic];
    auto const exchange = static_cast<Exchange>(place_.way);
    if (random.one_in(4)) {
      choice = stationary::choose(p, sweep, exchange, made_up_device());
      if (choice.fits && choice.math == arithmetic.math && choice.exact == arithmetic.exact) {
        ++seen.planned;
        return;
      }
    }
    choice = {};
    std::vector<Tiling> const all = check::layouts(p, sweep, exchange);
    if (all.empty()) return;
    choice.fits = true;
    choice.math = arithmetic.math, choice.exact = arithmetic.exact;
    // Few layouts have several tiles or teams, tiles of few rows, or weights in shared memory: what has not been seen
    // yet comes first, and
    // half of the other draws are among those few.
    std::vector<Tiling> rare, unseen;
    for (const Tiling& t : all) {
      bool const tiles = t.tiles > 1, teams = t.teams > 1, shared = t.shared_slabs() > 0,
                 few = t.tile_rows < stationary::kTileRows;
      seen.shared_memory_could |= shared;
      if (tiles || shared) rare.push_back(t);
      bool const fresh = (tiles && seen.several_tiles == 0) || (teams && seen.several_teams == 0) ||
                         (few && seen.few_rows == 0) || (shared && seen.weights_in_shared_memory == 0);
      if (fresh) unseen.push_back(t);
    }
    bool const from_rare = !rare.empty() && random.one_in(2);
    const std::vector<Tiling>& from = !unseen.empty() ? unseen : from_rare ? rare : all;
    choice.tiling = from[random.below(static_cast<int64_t>(from.size()))];
    bool const together = exchange != Exchange::grid || p.groups * p.heads * choice.tiling.blocks() <= kMultiprocessors;
    choice.groups_per_launch = together && random.one_in(2) ? static_cast<int>(p.groups) : 1;
    seen.single_group_launches += choice.groups_per_launch < p.groups;
  }

  template <class Body>
  void dispatch_cell(Body&& body) const {
    dispatch(case_.setting.cell, case_.setting.activation, [&](const auto& cell) {
      if constexpr (!std::is_same_v<decltype(cell), const GruV1Cell&>) {
        try {
          body(cell);
        } catch (const emulation::Error& error) {
          fail(case_, (options.skewed ? "schedule " + std::to_string(options.seed) + ": " : "") + error.what());
        }
      }
    });
  }

  const Case& case_;
  Place place_;
  Choice choices_[2];
};

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAILED %s\n", what.c_str());
  std::exit(1);
}

// What the layouts of all cases of a cell must have had, for each way and direction.
void check_occurrences(const Occurrences (&seen)[kWays][2]) {
  int one_by_one = 0;
  for (int way = 0; way < kWays; ++way) {
    if (static_cast<Way>(way) == Way::stepwise) continue;
    bool const block = static_cast<Way>(way) == Way::block, grid = static_cast<Way>(way) == Way::grid;
    for (int sweep = 0; sweep < 2; ++sweep) {
      const Occurrences& o = seen[way][sweep];
      std::string const where = std::string(kWayNames[way]) + (sweep == 0 ? " forward" : " backward");
      std::printf(
          "%s: several blocks %d, teams %d, tiles %d, splits %d, few rows %d, weights in shared memory %d, "
          "idle blocks %d, idle warps %d, planned %d, groups one by one %d\n",
          where.c_str(), o.several_blocks, o.several_teams, o.several_tiles, o.several_splits, o.few_rows,
          o.weights_in_shared_memory, o.idle_blocks, o.idle_warps, o.planned, o.single_group_launches);
      expect(o.several_teams > 0, where + " had no layout with several teams");
      expect(o.several_splits > 0, where + " had no layout that splits the depth");
      expect(grid || o.few_rows > 0, where + " had no layout with tiles of few rows");
      expect(o.weights_in_shared_memory > 0 || !o.shared_memory_could,
             where + " had no layout with weights in shared memory");
      expect(o.planned > 0, where + " had no layout that the plan chose");
      one_by_one += o.single_group_launches;
      expect(o.idle_warps > 0, where + " had no layout with warps without weight rows");
      expect(block || o.several_blocks > 0, where + " had no layout with several blocks");
      expect(way != static_cast<int>(Way::cluster) || o.idle_blocks > 0, where + " had no block without units");
      expect(!grid || o.several_tiles > 0, where + " had no layout with several tiles");
    }
  }
  expect(one_by_one > 0, "no launch was for one of two groups");
}

// Combinations without a kernel, per cell: blocks alone hold the weights up to some size, and stepwise leaves full
// float precision to cuBLAS.
int refused_of(CellKind cell) {
  switch (cell) {
    case CellKind::lstm: return 32;
    case CellKind::gru: return 27;
    default: return 20;
  }
}

void check_cell(int cell, int only) {
  CaseList const list = list_cases(cell);
  const char* const name = kCellNames[cell].name;
  for (const std::string& refused : list.refused) std::printf("refused: %s %s\n", name, refused.c_str());
  int const count = static_cast<int>(list.refused.size()), expected = refused_of(kCellNames[cell].kind);
  expect(count == expected, std::string(name) + " refuses " + std::to_string(count) + " combinations, expected " +
                                std::to_string(expected));

  Occurrences seen[kWays][2];
  int cases = 0, skewed = 0;
  auto const start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < list.places.size(); ++i) {
    if (only >= 0 && only != static_cast<int>(i)) continue;
    const Place& place = list.places[i];
    if (i % kStride != 0 || (kStride > 1 && kHidden[place.hidden] > kSkewedHidden)) continue;
    Case const c = case_of(place, static_cast<uint64_t>(cell) * 1000 + i);
    Runner runner(c, place, seen[place.way]);
    std::printf("%3zu %s%s\n", i, c.name.c_str(), runner.layouts().c_str());
    std::fflush(stdout);
    Check check(c);
    ++cases;
    std::vector<char> const bytes = check.run(runner);
    if (runner.stepwise() || c.setting.H > kSkewedHidden) continue;
    runner.options.skewed = runner.options.race_check = true;
    for (int seed = 1; seed <= kSkewedSeeds; ++seed) {
      runner.options.seed = static_cast<uint64_t>(seed);
      if (check.run(runner) != bytes) fail(c, "a skewed schedule, seed " + std::to_string(seed) + ", gives other bits");
    }
    ++skewed;
  }
  std::chrono::duration<double> const took = std::chrono::steady_clock::now() - start;
  if (only < 0 && kStride == 1) check_occurrences(seen);
  std::printf(
      "%s: %d of %zu cases, which cover %zu pairs; %d of them under %d skewed schedules and the race check; "
      "%d combinations refused; %.0f s\n",
      name, cases, list.places.size(), list.pairs, skewed, kSkewedSeeds, count, took.count());
}

}  // namespace

int main(int count, char** arguments) {
  int const only = count > 2 ? std::atoi(arguments[2]) : -1;
  for (int cell = 0; cell < static_cast<int>(std::size(kCellNames)); ++cell) {
    if (kCellNames[cell].kind == CellKind::gru_v1) continue;
    if (count < 2 || std::strcmp(arguments[1], kCellNames[cell].name) == 0) check_cell(cell, only);
  }
  return 0;
}
