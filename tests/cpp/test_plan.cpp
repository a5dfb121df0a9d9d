// What a plan promises, over layers from tiny to large.
#include "plan.h"

#include <cstdio>
#include <cstdlib>

#include "cpu/share.h"
#include "cpu/simd.h"

using namespace rnnkern;

namespace {

std::string describe(const Problem& p, int threads) {
  return std::string(facts(p.cell).name) + " T " + std::to_string(p.steps) + " B " + std::to_string(p.batch) + " I " +
         std::to_string(p.input_size) + " H " + std::to_string(p.hidden_size) + " threads " + std::to_string(threads);
}

void expect(bool condition, const std::string& what, const std::string& where) {
  if (condition) return;
  std::printf("FAILED %s: %s\n", where.c_str(), what.c_str());
  std::exit(1);
}

template <class Body>
std::string error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.message;
  }
  return "";
}

Problem layer(CellKind cell, int64_t steps, int64_t batch, int64_t input, int64_t hidden) {
  Problem p;
  p.cell = cell;
  p.steps = steps, p.batch = batch, p.rows = steps * batch;
  p.input_size = input, p.hidden_size = hidden;
  return p;
}

bool same(const Plan& a, const Plan& b) {
  return a.strategy == b.strategy && a.workers == b.workers && a.split == b.split && a.bytes == b.bytes &&
         a.floor_us == b.floor_us && a.rejected == b.rejected;
}

void check_plan(const Problem& p, int threads) {
  std::string const where = describe(p, threads);
  Plan const made = plan(p, threads);
  expect(made.strategy == "simd", "the CPU runs " + made.strategy, where);
  expect(made.workers >= 1 && made.workers <= threads, std::to_string(made.workers) + " workers", where);
  expect(made.split == Split::none || made.workers > 1, "one worker has nobody to share with", where);
  expect(made.split != Split::rows || p.batch * p.groups >= made.workers, "some workers have no row", where);
  if (made.split == Split::units && p.steps > 1) {  // vectors of 64 bytes, that AVX-512 has
    int64_t const lanes = 64 / (p.dtype == Dtype::float64 ? 8 : 4), blocks = (p.hidden_size + lanes - 1) / lanes;
    bool const two_stages = p.cell == CellKind::gru_v1;
    int const forward = two_stages ? 2 : int(p.gates());
    for (int gates : {forward, p.save || two_stages ? 1 : forward})
      expect(panels_of(blocks, 1, gates, 8, made.workers, p.batch) >= made.workers, "some workers have no unit", where);
  }
  expect(made.floor_us > 0, "no time", where);
  expect(made.rejected.size() + 1 == strategies().size(), "a strategy is neither chosen nor rejected", where);
  for (const auto& [strategy, reason] : made.rejected) {
    expect(strategy != made.strategy && !reason.empty(), strategy + " is rejected without a reason", where);
  }
  expect(same(made, plan(p, threads)), "the same problem has two plans", where);

  Problem longer = p;
  longer.steps *= 2, longer.rows *= 2;
  expect(plan(longer, 1).floor_us > plan(p, 1).floor_us, "twice the steps take no longer", where);
}

void check_sharing() {
  std::string const where = "sharing";
  Plan const tiny = plan(layer(CellKind::lstm, 10, 1, 4, 4), 16);
  expect(tiny.workers == 1, "threads are woken for a tiny layer", where);
  Plan const many_rows = plan(layer(CellKind::lstm, 100, 64, 128, 256), 4);
  expect(many_rows.split == Split::rows && many_rows.workers == 4, "many rows are not shared out", where);
  Plan const one_row = plan(layer(CellKind::lstm, 100, 1, 128, 512), 4);
  expect(one_row.split == Split::units && one_row.workers == 4, "one row of a large layer is not shared out", where);
  Problem few_rows = layer(CellKind::lstm, 100, 16, 128, 512);
  expect(plan(few_rows, 2).split == Split::units, "each thread reads all of many weights", where);
  few_rows.save = true;
  expect(plan(few_rows, 2).split == Split::rows, "backward waits for others' units", where);
  few_rows.batch = 4, few_rows.rows = 400;
  expect(plan(few_rows, 2).split == Split::units, "each thread reads all of many weights for two rows", where);
  Problem pair = layer(CellKind::lstm, 100, 2, 128, 128);
  expect(plan(pair, 2).split == Split::units, "a row alone waits for all weights", where);
  pair.save = true;
  expect(plan(pair, 2).split == Split::units, "a row alone waits for all weights backward", where);
  pair.save = false;
  pair.batch = 8, pair.rows = 800;
  expect(plan(pair, 8).split == Split::rows, "a thread has too few units", where);
  Problem both = layer(CellKind::lstm, 100, 2, 128, 128);
  both.groups = 2;
  expect(plan(both, 4).split == Split::rows, "the rows of both directions are not counted", where);
}

// With many threads: no more than help, and none idle that could have a row.
void check_many_threads() {
  for (int64_t hidden : {128, 192, 256, 512, 1024}) {
    Problem const p = layer(CellKind::lstm, 100, 1, hidden, hidden);
    std::string const where = "many threads, H " + std::to_string(hidden);
    int before = 1;
    for (int threads = 2; threads <= 128; ++threads) {
      Plan const made = plan(p, threads);
      expect(made.split == Split::units, "a row is not shared", where);
      expect(made.workers >= before, "fewer workers of " + std::to_string(threads) + " threads", where);
      before = made.workers;
    }
    expect(before <= hidden / 16, "a worker of " + std::to_string(before) + " has less than a line of units", where);
    expect(before >= hidden / 64, "only " + std::to_string(before) + " share", where);
  }
  std::string const where = "few rows, many threads";
  Plan const short_steps = plan(layer(CellKind::lstm, 100, 8, 64, 64), 16);
  expect(short_steps.split == Split::rows && short_steps.workers == 8, "one worker runs all rows", where);
  Plan const rows = plan(layer(CellKind::lstm, 100, 16, 128, 128), 16);
  expect(rows.split == Split::rows && rows.workers == 16, "a row each is slower than barriers", where);
  Plan const units = plan(layer(CellKind::lstm, 100, 16, 512, 512), 16);
  expect(units.split == Split::units, "each of 16 threads reads 4 MB in each step", where);
  Plan const brief = plan(layer(CellKind::lstm, 4, 64, 64, 64), 64);
  expect(brief.workers > 1 && brief.workers < 32, std::to_string(brief.workers) + " threads for 0.14 ms", where);
  Plan const step = plan(layer(CellKind::lstm, 1, 8, 1024, 1024), 16);
  expect(step.split == Split::units && step.workers == 8, "one worker runs the one step", where);
  Problem pair = layer(CellKind::lstm, 100, 2, 112, 112);
  pair.save = true;
  for (int threads : {2, 3, 16}) expect(plan(pair, threads).split == Split::units, "two rows, two workers", where);
}

void check_panels() {
  for (int64_t blocks : {1, 2, 7, 8, 9, 16, 33, 64})
    for (int64_t heads : {1, 3})
      for (int gates : {1, 2, 3, 4})
        for (int64_t rows : {1, 16})
          for (int workers : {1, 2, 3, 5, 8, 16, 64}) {
            std::string const where = std::to_string(heads) + " times " + std::to_string(blocks) + " blocks of " +
                                      std::to_string(gates) + " gates, " + std::to_string(workers) + " workers";
            int64_t const panels = panels_of(blocks, heads, gates, 8, workers, rows), most = 8 / gates;
            expect(panels >= 1 && panels <= blocks && panels * most >= blocks, "not that many panels", where);
            // As many as the workers can share evenly, as far as there are blocks.
            int64_t const a_panel = gates == 1 && rows == 1 ? 2 : 1, whole = std::max<int64_t>(1, blocks / a_panel);
            expect(heads * panels >= std::min<int64_t>(workers, heads * whole), "workers without a panel", where);
            expect(workers == 1 || heads > 1 || panels % workers == 0 || panels >= whole, "uneven", where);
          }
}

// One turn's gates, whatever the number of steps; what is kept for backward is a result, what is made again is not.
void check_memory() {
  std::string const where = "memory";
  auto const bytes = [](const Problem& p) { return simd_bytes(p, plan(p, 2)); };
  Problem p = layer(CellKind::lstm, 1000, 16, 64, 64);
  Problem longer = p;
  longer.steps *= 10, longer.rows *= 10;
  expect(bytes(p) > 2 * 4 * 64 * 64 * 4, "less than both weights", where);
  expect(bytes(longer) < bytes(p) * 3 / 2, "gates that nobody keeps take memory for every step", where);
  Problem kept = p;
  kept.save = true;
  Problem again = kept;
  again.recompute = true;
  size_t const gates = size_t(p.rows) * p.saved_size() * 4;
  expect(bytes(kept) < gates, "gates that are kept count as memory beside the results", where);
  expect(bytes(again) >= gates + bytes(kept) / 2, "gates that are made again take no memory", where);
  p.int8 = true;
  expect(bytes(p) > size_t(p.rows) * p.input_size, "an input in bytes takes no memory", where);
}

void check_forcing() {
  std::string const where = "forcing a strategy", known = strategies().front();
  expect(known == "simd", "the CPU's strategy is not listed first", where);
  expect(force_strategy("simd").empty(), "a strategy was in force before", where);
  expect(plan(layer(CellKind::gru, 5, 2, 4, 8), 2).strategy == "simd", "another one is planned", where);
  std::string const unknown = error_of([] { force_strategy("warp"); });
  expect(unknown.find("'warp'") != std::string::npos && unknown.find(known) != std::string::npos,
         "the error of an unknown name is '" + unknown + "'", where);
  expect(force_strategy("") == "simd", "an unknown name ended the one in force", where);
  expect(force_strategy("").empty(), "an empty name does not end it", where);
}

void check_names() {
  std::string const where = "names";
  expect(name(Split::none) == std::string("none") && name(Split::rows) == std::string("rows") &&
             name(Split::units) == std::string("units"),
         "a split has another name", where);
  for (const CellName& cell : kCellNames) {
    expect(find_name(kCellNames, "cell", cell.name).kind == cell.kind, cell.name, where);
  }
  std::string const unknown = error_of([] { find_name(kDtypeNames, "dtype", "int8"); });
  expect(unknown.find("dtype") == 0 && unknown.find("float16") != std::string::npos &&
             unknown.find("'int8'") != std::string::npos,
         "the error of an unknown dtype is '" + unknown + "'", where);
}

void check_devices() {
  Problem p = layer(CellKind::lstm, 5, 2, 4, 8);
  p.backend = Backend::cuda;
  std::string const error = error_of([&] { plan(p, 1); });
  bool const compiled = strategies().size() > 1;
  expect(compiled == error.empty(), "the CUDA problem's error is '" + error + "'", "devices");
  expect(compiled || error.find("'cuda'") != std::string::npos, "the error does not name the device", "devices");
}

}  // namespace

int main() {
  int plans = 0;
  for (CellKind cell : {CellKind::rnn, CellKind::lstm, CellKind::gru, CellKind::gru_v1}) {
    for (int64_t steps : {1, 10, 1000}) {
      for (int64_t batch : {1, 3, 64}) {
        for (int64_t hidden : {1, 33, 256, 1024}) {
          for (int threads : {1, 2, 3, 64}) {
            for (int64_t groups : {1, 2}) {
              for (Dtype dtype : {Dtype::float64, Dtype::float32, Dtype::float16}) {
                Problem p = layer(cell, steps, batch, 40, hidden);
                p.groups = groups, p.dtype = dtype, p.save = plans % 5 > 2;
                check_plan(p, threads);
                ++plans;
              }
            }
          }
        }
      }
    }
  }
  check_sharing();
  check_many_threads();
  check_panels();
  check_memory();
  check_forcing();
  check_names();
  check_devices();
  std::printf("%d plans keep what they promise\n", plans);
  return 0;
}
