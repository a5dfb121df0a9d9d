// The CPU strategy `simd`, every instruction set of this machine, against the layer by definition; and the promise that
// neither the number of workers nor the way in which they share the work changes one bit of a result.
#include <cstring>
#include <iterator>
#include <new>
#include <thread>

#include "cpu/simd.h"
#include "layer_check.h"

using namespace check;

namespace {

// Workers are threads of their own, all of which run; `granted` may be fewer than a plan asks for. Scratch memory is
// NaN at first, and each piece is an allocation of its exact size, so that a sanitizer sees what goes beyond.
class ThreadPlatform final : public CpuPlatform {
 public:
  size_t used = 0;

  explicit ThreadPlatform(int granted) : granted_(granted) {}
  ThreadPlatform(const ThreadPlatform&) = delete;
  ~ThreadPlatform() override {
    for (void* block : blocks_) operator delete(block, kAlign);
  }

  void* scratch(size_t bytes) override {
    used += (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
    blocks_.push_back(operator new(bytes, kAlign));
    return std::memset(blocks_.back(), 0xff, bytes);
  }
  void parallel(int wanted, const std::function<void(int worker, int workers)>& work) override {
    int const workers = std::min(wanted, granted_);
    std::vector<std::thread> threads;
    for (int worker = 1; worker < workers; ++worker) threads.emplace_back(work, worker, workers);
    work(0, workers);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  int granted_;
  std::vector<void*> blocks_;
};

// How workers share a layer, and how many of them there are.
struct SimdRunner {
  Sharing sharing;
  int granted;

  std::string name() const {
    return cpu_isa() + ", " + std::to_string(granted) + " of " + std::to_string(sharing.workers) + " workers, split " +
           rnnkern::name(sharing.split);
  }
  void forward(const Problem& problem, const std::vector<Group>& groups) const {
    ThreadPlatform platform(granted);
    simd_forward(problem, groups, sharing, platform);
    check_memory(problem, platform);
  }
  void backward(const Problem& problem, const std::vector<Group>& groups,
                const std::vector<GroupGradients>& gradients) const {
    ThreadPlatform platform(granted);
    simd_backward(problem, groups, gradients, sharing, platform);
    check_memory(problem, platform);
  }
  void check_memory(const Problem& problem, const ThreadPlatform& platform) const {
    size_t const planned = simd_bytes(problem, sharing);
    if (platform.used <= planned) return;
    std::printf("FAILED: %s: %zu bytes of scratch where %zu were planned\n", name().c_str(), platform.used, planned);
    std::exit(1);
  }
};

constexpr SimdRunner kAlone{{1, Split::none}, 1};
constexpr SimdRunner kShared[] = {
    {{2, Split::none}, 2},  {{2, Split::rows}, 2},  {{2, Split::units}, 2}, {{3, Split::none}, 3},
    {{3, Split::rows}, 3},  {{3, Split::units}, 3}, {{3, Split::rows}, 2},  {{3, Split::units}, 2},
    {{3, Split::rows}, 1},  {{3, Split::units}, 1}, {{6, Split::units}, 6}, {{9, Split::rows}, 9},
    {{9, Split::units}, 7},
};
constexpr size_t kWays = std::size(kShared);

// One case by every instruction set: alone, and shared in `ways` of the ways, in turn from case to case.
void check_case(const Case& c, size_t ways) {
  static size_t turn = 0;
  Check check(c);
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    std::vector<char> const alone = check.run(kAlone);
    for (size_t way = 0; way < ways; ++way) {
      const SimdRunner& runner = kShared[turn++ % kWays];
      if (check.run(runner) != alone) fail(c, runner.name() + ": a result differs from one worker's bits");
    }
  }
}

// Sizes about those of vectors, tiles and panels.
int check_sizes() {
  int cases = 0;
  constexpr int64_t kHidden[] = {1, 7, 16, 33, 64, 129}, kBatch[] = {1, 3, 8, 17}, kInput[] = {1, 5, 16, 40};
  constexpr int64_t kSteps[] = {1, 2, 9};  // with a row or three: weights that are packed, and weights that are not
  for (const CellName& cell : kCellNames) {
    for (const DtypeName& dtype : kDtypeNames) {
      for (int64_t hidden : kHidden) {
        Case c;
        c.seed = static_cast<uint64_t>(++cases);
        Random random(c.seed + 2000);
        Setting& s = c.setting;
        s.cell = cell.kind, s.activation = cell.activation;
        c.dtype = dtype.dtype;
        c.directions = random.one_in(3) ? 2 : 1;
        s.reverse = random.one_in(2);
        s.H = hidden;
        s.B = kBatch[random.below(hidden > 64 ? 2 : 4)];  // the definition is slow
        s.T = kSteps[random.below(hidden > 1 ? 3 : 2)];   // a state of one unit comes to pass near zero
        s.I = kInput[random.below(4)];
        if (cell.kind == CellKind::lstm && hidden > 1 && random.one_in(2)) {
          s.P = 1 + random.below(hidden - 1);
        } else if (random.one_in(2)) {
          s.heads = hidden == 129 ? 3 : hidden == 33 ? 11 : hidden == 7 ? 7 : hidden == 1 ? 1 : 4;
        }
        Rows const rows = kRows[random.below(std::size(kRows))];
        set_options(c, rows, random);
        set_name(c, cell.name, rows);
        check_case(c, 3);
      }
    }
  }
  return cases;
}

// The products over all rows sum 512 terms at a time (1024 of bfloat16's dot products): inputs, rows or gates beyond
// that take several parts.
int check_long_sums() {
  struct Sizes {
    int64_t T, B, I, H;
  };
  constexpr Sizes kSizes[] = {{2, 3, 1100, 3}, {3, 3, 1100, 3}, {1, 2, 600, 5}, {1, 20, 600, 5},
                              {5, 120, 3, 3},  {3, 400, 2, 1},  {2, 2, 5, 200}, {5, 2, 5, 200}};
  int cases = 0;
  for (const CellName& cell : kCellNames) {
    if (cell.kind == CellKind::rnn && cell.activation != Activation::tanh) continue;
    for (const DtypeName& dtype : kDtypeNames) {
      for (const Sizes& sizes : kSizes) {
        Case c;
        c.seed = static_cast<uint64_t>(++cases);
        Random random(c.seed + 3000);
        Setting& s = c.setting;
        s.cell = cell.kind, s.activation = cell.activation;
        c.dtype = dtype.dtype;
        c.directions = 1 + cases % 2;
        s.T = sizes.T, s.B = sizes.B, s.I = sizes.I, s.H = sizes.H;
        Rows const rows = kRows[random.below(std::size(kRows))];
        set_options(c, rows, random);
        set_name(c, cell.name, rows);
        check_case(c, 2);
      }
    }
  }
  return cases;
}

// Directions that share x's gradient in the 16-bit types, with more gates than the product sums at once, in turns that
// fall on another turn's steps of the other direction in part.
int check_shared_turns() {
  struct Sizes {
    Dtype dtype;
    int64_t B, H;
  };
  int cases = 0;
  for (const Sizes& sizes : {Sizes{Dtype::float16, 128, 136}, Sizes{Dtype::bfloat16, 256, 264}}) {
    Case c;
    c.seed = static_cast<uint64_t>(++cases);
    Random random(c.seed + 5000);
    Setting& s = c.setting;
    c.dtype = sizes.dtype;
    c.directions = 2;
    s.T = 11, s.B = sizes.B, s.I = 2, s.H = sizes.H, s.heads = 8;
    s.reverse = cases % 2 == 0;
    c.mode = Mode::save;
    set_rows(c, Rows::plain, random);
    set_name(c, "lstm", Rows::plain);
    check_case(c, 3);
  }
  return cases;
}

void check_same_bits(const Case& c, std::initializer_list<SimdRunner> runners) {
  Check check(c);
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    std::vector<char> const alone = check.run(kAlone);
    for (const SimdRunner& runner : runners)
      if (check.run(runner) != alone) fail(c, runner.name() + ": other bits than one worker's");
  }
}

// Workers who share units, and so make the gates of theirs: some panels a gate, strips of rows and parts of a sum.
int check_shared_units() {
  int cases = 0;
  for (const CellName& cell : kCellNames) {
    for (Dtype dtype : {Dtype::float32, Dtype::bfloat16}) {
      Case c;
      c.seed = static_cast<uint64_t>(++cases);
      Setting& s = c.setting;
      s.cell = cell.kind, s.activation = cell.activation;
      c.dtype = dtype;
      s.T = 3, s.B = 17, s.I = 520, s.H = 128;
      c.mode = Mode::infer;
      Random random(c.seed + 7000);
      set_rows(c, Rows::plain, random);
      set_name(c, cell.name, Rows::plain);
      check_same_bits(c, {{{2, Split::units}, 2}, {{3, Split::units}, 3}});
    }
  }
  return cases;
}

// Workers who make the gates of x of their own rows, in two turns and each sum in parts.
int check_own_rows() {
  int cases = 0;
  for (Dtype dtype : {Dtype::float32, Dtype::bfloat16}) {
    Case c;
    c.seed = static_cast<uint64_t>(++cases);
    c.dtype = dtype;
    c.setting.T = 240, c.setting.B = 13, c.setting.I = 1030, c.setting.H = 24;
    c.mode = Mode::infer;
    Random random(c.seed + 8000);
    Rows const rows = cases == 1 ? Rows::plain : Rows::lengths;
    set_rows(c, rows, random);
    set_name(c, "lstm", rows);
    check_same_bits(c, {{{3, Split::rows}, 3}});
  }
  return cases;
}

// A single row, whose gates of x are made beside the steps of the turn before: turns and panels that are whole and not,
// sums in two parts, pairs of an odd number, steps that multiply nothing; and inputs of none, whose product is not.
int check_beside() {
  constexpr int64_t kInput[] = {0, 33, 64, 71, 520}, kHidden[] = {96, 132, 150};
  constexpr SimdRunner kRunners[] = {{{2, Split::units}, 2}, {{3, Split::units}, 3}, {{3, Split::units}, 2},
                                     {{4, Split::units}, 4}, {{7, Split::units}, 6}, {{2, Split::rows}, 2},
                                     {{3, Split::rows}, 3}};
  int cases = 0;
  for (const CellName& cell : kCellNames) {
    for (Dtype dtype : {Dtype::float32, Dtype::bfloat16}) {
      for (int64_t input : kInput) {
        Case c;
        c.seed = static_cast<uint64_t>(++cases);
        Random random(c.seed + 9000);
        Setting& s = c.setting;
        s.cell = cell.kind, s.activation = cell.activation;
        c.dtype = dtype;
        c.directions = 1 + random.below(2);
        s.reverse = random.one_in(2);
        s.T = 40 + random.below(45), s.B = 1, s.I = input, s.H = kHidden[random.below(3)];
        if (cell.kind == CellKind::rnn) s.H *= 2;
        if (cell.kind == CellKind::lstm && random.one_in(2)) {
          s.P = 90;
        } else if (s.H != 96 && random.one_in(2)) {
          s.heads = 3;
        }
        Rows const rows = kRows[random.below(std::size(kRows))];
        set_options(c, rows, random);
        c.together = true;
        set_name(c, cell.name, rows);
        check_same_bits(c, {kRunners[0], kRunners[1 + cases % 4], kRunners[5 + cases % 2]});
      }
    }
  }
  return cases;
}

// Weights that few rows read in 16 bits, and workers who were not granted, so that the others run more rows than that.
int check_fewer_workers() {
  struct Work {
    int64_t B;
    SimdRunner runner;
  };
  const Work kWork[] = {{2, {{2, Split::rows}, 1}}, {3, {{3, Split::rows}, 2}}, {8, {{4, Split::rows}, 1}}};
  int cases = 0;
  for (const CellName& cell : kCellNames) {
    if (cell.kind == CellKind::rnn) continue;
    for (Dtype dtype : {Dtype::bfloat16, Dtype::float16}) {
      for (const Work& work : kWork) {
        Case c;
        c.seed = static_cast<uint64_t>(++cases);
        Setting& s = c.setting;
        s.cell = cell.kind;
        c.dtype = dtype;
        s.T = 5, s.B = work.B, s.I = 2, s.H = cases % 2 == 0 ? 96 : 129;
        c.mode = Mode::save;
        Random random(c.seed + 6000);
        set_rows(c, Rows::plain, random);
        set_name(c, cell.name, Rows::plain);
        check_same_bits(c, {work.runner});
      }
    }
  }
  return cases;
}

// More gates than forward makes at a time (2^18), in turns that differ in their number of steps. In float64, since the
// rounding of a narrower type grows from step to step.
int check_long_sequences() {
  int cases = 0;
  for (Rows rows : kRows) {
    Case c;
    c.seed = static_cast<uint64_t>(++cases);
    Random random(c.seed + 4000);
    Setting& s = c.setting;
    c.directions = 1 + cases % 2;
    s.reverse = cases % 4 == 2;
    s.T = 41, s.B = 1700, s.I = s.H = 1;
    set_options(c, rows, random);
    c.mode = static_cast<Mode>(cases % 3);
    set_name(c, "lstm", rows);
    check_case(c, 1);
  }
  return cases;
}

}  // namespace

int main() {
  int cases = for_each_case(Backend::cpu, 6, [](const Case& c) { check_case(c, 2); });
  cases += check_sizes() + check_long_sums() + check_shared_turns() + check_shared_units() + check_own_rows() +
           check_beside() + check_fewer_workers() + check_long_sequences();
  std::printf("simd equals its definition, and its own bits, in %d cases\n", cases);
  return 0;
}
