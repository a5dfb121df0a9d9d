// Which strategy a GPU plan chooses, why, and how its predictions compare with the modelled floors.
#include "plan_check.h"

using namespace rnnkern;
using namespace rnnkern::test;

namespace {

Problem layer(CellKind cell, int64_t hidden, int64_t batch, Dtype dtype, int64_t steps = 100) {
  Problem p = SuiteProblem{"", cell, hidden, batch, steps, false}.problem(dtype, false);
  p.save = true;
  return p;
}

std::string reason(const SweepPlan& plan, const std::string& strategy) {
  for (const auto& [name, text] : plan.rejected) {
    if (name == strategy) return text;
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void check_choices() {
  struct Expected {
    const DeviceFacts* device;
    CellKind cell;
    int64_t hidden, batch;
    Dtype dtype;
    const char *forward, *backward;
  };
  CellKind const lstm = CellKind::lstm, gru = CellKind::gru;
  Dtype const bf16 = Dtype::bfloat16, fp32 = Dtype::float32;
  const char *const block = "stationary:block", *const cluster = "stationary:cluster", *const grid = "stationary:grid";
  for (const Expected& one : std::initializer_list<Expected>{
           {&kH100, lstm, 64, 1, bf16, block, block},
           {&kA100, lstm, 64, 1, bf16, block, block},
           {&kRtx4090, lstm, 64, 1, bf16, block, block},
           {&kT4, lstm, 64, 1, bf16, "stepwise", "stepwise"},
           {&kH100, lstm, 32, 256, bf16, block, block},  // each block has its rows of the batch
           {&kH100, lstm, 256, 16, bf16, cluster, cluster},
           {&kH100, gru, 256, 64, bf16, cluster, cluster},
           {&kA100, lstm, 256, 16, bf16, grid, grid},  // has no clusters
           {&kH100, lstm, 1024, 16, bf16, grid, grid},
           {&kA100, lstm, 1024, 16, bf16, grid, grid},
           {&kH100, lstm, 512, 16, fp32, grid, grid},
           {&kH100, lstm, 4096, 16, fp32, "stepwise", "stepwise"},  // 268 MB of weights
           {&kH100, lstm, 4096, 1, bf16, "stepwise", "stepwise"},
           {&kA100, gru, 2816, 32, bf16, "stepwise", "stepwise"},
           {&kH100, lstm, 1024, 256, bf16, "stepwise", "stepwise"},  // enough rows for a GEMM's full speed
       }) {
    Problem const p = layer(one.cell, one.hidden, one.batch, one.dtype);
    for (Sweep sweep : {Sweep::forward, Sweep::backward}) {
      SweepPlan const made = check(p, sweep, *one.device);
      const char* const expected = sweep == Sweep::forward ? one.forward : one.backward;
      expect(made.strategy == expected, "expected " + std::string(expected) + ", got " + made.strategy,
             describe(p, sweep, *one.device));
    }
  }
  Problem const once = layer(lstm, 512, 32, bf16, 1);
  expect(plan_sweep(once, Sweep::forward, kH100).stepwise(), "weights are packed for one step", "one step");
  for (int64_t batch : {16, 64}) {  // blocks that would be idle take some of the rows
    Tiling const t = plan_sweep(layer(lstm, 64, batch, bf16), Sweep::forward, kH100).stationary.tiling;
    expect(t.tile_rows < 8 && t.teams > batch / 8 && t.teams <= kH100.multiprocessors, "tiles of 8 rows",
           "small layer");
  }
  Problem const exact = layer(lstm, 256, 16, fp32);
  expect(plan_sweep(exact, Sweep::forward, kH100, "stationary").stationary.exact, "no 3xTF32", "fast tensor cores");
  expect(plan_sweep(exact, Sweep::forward, kRtx4090, "stationary").stationary.math == Math::fma, "no plain float",
         "slow tensor cores");
}

// Whatever the kernels do not support runs stepwise, and says why.
void check_unsupported() {
  auto const refuses = [](const Problem& p, const DeviceFacts& device, const std::string& part) {
    for (Sweep sweep : {Sweep::forward, Sweep::backward}) {
      SweepPlan const made = check(p, sweep, device);
      std::string const where = describe(p, sweep, device);
      expect(made.stepwise(), made.strategy + " is chosen", where);
      for (size_t i = 1; i < kStrategies.size(); ++i) {
        std::string const why = reason(made, kStrategies[i]);
        expect(contains(why, part) || contains(why, "no clusters"), "'" + why + "' does not say '" + part + "'", where);
      }
    }
  };
  Problem const p = layer(CellKind::lstm, 64, 4, Dtype::float32);
  Problem other = p;
  other.dtype = Dtype::float64;
  refuses(other, kH100, "float64");
  other = p, other.cell = CellKind::gru_v1;
  refuses(other, kH100, "gru_v1");
  other = p, other.proj_size = 16;
  refuses(other, kH100, "projection");
  refuses(p, kT4, "needs compute capability 8.0, this is 7.5");
  other = p, other.steps = other.rows = 0;
  refuses(other, kH100, "nothing to do");
  other = p, other.batch = other.rows = 0;
  refuses(other, kA100, "nothing to do");
  other = p, other.groups = 0;
  refuses(other, kH100, "nothing to do");
  other = layer(CellKind::lstm, 1, 1, Dtype::float16, int64_t(1) << 31);
  refuses(other, kH100, "32 bits");
  DeviceFacts nothing = kA100;
  nothing.shared_bytes = 0;
  refuses(p, nothing, "shared memory");
  DeviceFacts unknown;
  unknown.capability = 90;
  refuses(p, unknown, "needs ");

  SweepPlan const large = plan_sweep(layer(CellKind::lstm, 2048, 4, Dtype::float32), Sweep::forward, kH100);
  expect(contains(reason(large, "stationary:grid"), "bytes of shared memory, a block has 232448"),
         "'" + reason(large, "stationary:grid") + "' is not what is missing", "H 2048");
  SweepPlan const slow = plan_sweep(p, Sweep::forward, kH100);
  expect(contains(reason(slow, "stepwise"), "slower") && contains(reason(slow, "stepwise"), " us a step"),
         "'" + reason(slow, "stepwise") + "' is not a time", "H 64");
}

void check_forcing() {
  Problem const p = layer(CellKind::gru, 256, 16, Dtype::bfloat16), large = layer(CellKind::gru, 4096, 1, p.dtype);
  SweepPlan const free = plan_sweep(p, Sweep::forward, kH100);
  expect(plan_sweep(p, Sweep::forward, kH100, "stationary").strategy == free.strategy, "not the best exchange",
         "force");
  SweepPlan const forced = plan_sweep(p, Sweep::forward, kH100, "stepwise");
  expect(forced.stepwise() && reason(forced, free.strategy) == "'stepwise' is forced", "stepwise is not forced",
         "force");
  for (std::string const name : {"stationary", "stationary:block", "stationary:cluster", "stationary:grid"}) {
    std::string error;
    try {
      plan_sweep(large, Sweep::backward, kH100, name);
    } catch (const Error& caught) {
      error = caught.message;
    }
    expect(contains(error, "'" + name + "'") && contains(error, "needs"), "'" + error + "'", name);
  }
}

// All kinds of sizes; each GPU also with parts of it missing.
void check_sizes() {
  int plans = 0;
  DeviceFacts portable = kH100, part = kH100, slice = kA100;
  portable.max_cluster = 8;
  part.multiprocessors = 17, part.max_cluster = 16;
  slice.multiprocessors = 14, slice.clock_ghz = slice.bandwidth_gbs = 0;
  DeviceFacts const devices[] = {kH100, kA100, kRtx4090, portable, part, slice};
  for (CellKind cell : {CellKind::lstm, CellKind::gru, CellKind::rnn}) {
    for (int64_t hidden : {1, 7, 24, 33, 250, 360, 1000, 2500, 20000}) {
      for (int64_t batch : {1, 3, 8, 17, 100, 5000, 3000000}) {
        for (int64_t heads : {1, 5, 40}) {
          for (int64_t groups : {1, 2, 19}) {
            if (hidden % heads != 0) continue;
            Problem p = layer(cell, hidden, batch, plans % 3 == 0 ? Dtype::float16 : Dtype::float32);
            p.tf32 = plans % 3 == 1, p.heads = heads, p.groups = groups, p.recompute = batch == 8;
            for (int i : {0, 1, 2}) {  // half of the GPUs, by turns
              const DeviceFacts& device = devices[(plans + 2 * i + plans / 6) % 6];
              check(p, i % 2 ? Sweep::backward : Sweep::forward, device);
              check(p, i % 2 ? Sweep::forward : Sweep::backward, device);
            }
            ++plans;
          }
        }
      }
    }
  }
  std::printf("%d plans of all sizes keep within their GPU\n", 6 * plans);
}

// The floors that the project models for an LSTM's forward recurrence on an H100, us a step.
void print_floors() {
  constexpr int64_t sizes[] = {64, 128, 256, 512, 768, 1024, 2048};
  struct Row {
    Dtype dtype;
    int64_t batch;
    double floor[7];
  };
  std::printf("\nLSTM forward on the H100, predicted us a step / modelled floor\n%-14s", "");
  for (int64_t hidden : sizes) std::printf("  H %-13lld", (long long)hidden);
  for (const Row& row : std::initializer_list<Row>{{Dtype::bfloat16, 1, {.26, .40, .45, .64, .91, .97, 1.35}},
                                                   {Dtype::bfloat16, 16, {.26, .44, .57, .88, 1.3, 1.6, 3.3}},
                                                   {Dtype::bfloat16, 64, {.26, .44, .62, 1.1, 2.2, 4.2, 10.6}},
                                                   {Dtype::bfloat16, 256, {.26, .44, 1.05, 2.5, 5.0, 9.5, 30}},
                                                   {Dtype::float32, 16, {.50, .63, 1.0, 1.9, 2.7, 3.7, 28}}}) {
    std::printf("\n%-8s B %-4lld", row.dtype == Dtype::float32 ? "float32" : "16-bit", (long long)row.batch);
    for (int i = 0; i < 7; ++i) {
      Problem const p = layer(CellKind::lstm, sizes[i], row.batch, row.dtype);
      SweepPlan const made = check(p, Sweep::forward, kH100);
      double const ratio = made.us_per_step / row.floor[i];
      std::printf("  %5.2f/%-5.2f %.1fx", made.us_per_step, row.floor[i], ratio);
      expect(ratio > 0.5 && ratio < 7, "the prediction is far from the floor", describe(p, Sweep::forward, kH100));
    }
  }
  std::printf("\n\n");
}

// Through the door that callers use.
void check_door() {
  std::string const where = "plan()";
  Problem p = layer(CellKind::lstm, 256, 16, Dtype::bfloat16);
  Plan const both = plan(p, 1, &kH100);
  expect(both.forward && both.backward, "a sweep has no plan", where);
  expect(both.strategy == both.forward->strategy && both.floor_us > 0, "not the forward sweep's", where);
  expect(both.bytes >= both.forward->bytes && both.bytes >= both.backward->bytes, "bytes", where);
  expect(both.floor_us < both.forward->us + both.backward->us, "the prediction is below the floor", where);
  auto const known = cuda_plan(p, Sweep::forward, kH100);
  expect(known->strategy == both.forward->strategy && known->us_per_step == both.forward->us_per_step,
         "another plan is run than the one that is shown", where);
  Problem shorter = p;
  shorter.steps = 90, shorter.rows = 90 * p.batch;
  expect(cuda_plan(shorter, Sweep::forward, kH100) == known, "each length is searched anew", where);
  shorter.batch = 15;
  expect(cuda_plan(shorter, Sweep::forward, kH100) != known, "another batch has the same plan", where);
  expect(cuda_plan(p, Sweep::forward, kA100) != known, "another GPU has the same plan", where);
  expect(typical_steps(0) == 0 && typical_steps(1) == 1 && typical_steps(65) == 128, "typical steps", where);
  Problem cut = p;
  cut.reset = true;
  expect(cuda_plan(cut, Sweep::forward, kH100)->us_per_step > known->us_per_step, "a schedule costs nothing", where);
  p.save = false;
  expect(!plan(p, 1, &kH100).backward, "inference plans a backward sweep", where);
}

}  // namespace

int main() {
  check_choices();
  check_unsupported();
  check_forcing();
  check_sizes();
  check_door();
  print_floors();
  return 0;
}
