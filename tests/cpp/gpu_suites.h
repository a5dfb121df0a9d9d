// Problems and GPUs that plans are made for: the suites of benchmarks, and the numbers of four GPUs.
#pragma once

#include <string>
#include <vector>

#include "cuda/stationary/device_facts.h"
#include "types.h"

namespace rnnkern::test {

inline constexpr DeviceFacts kH100{"H100", 90, 132, 232448, 65536, 16, 1.755, 3350, int64_t{50} << 20};
inline constexpr DeviceFacts kA100{"A100", 80, 108, 166912, 65536, 0, 1.41, 1555, int64_t{40} << 20};
inline constexpr DeviceFacts kRtx4090{"RTX 4090", 89, 128, 101376, 65536, 0, 2.52, 1008, int64_t{72} << 20};
inline constexpr DeviceFacts kT4{"T4", 75, 40, 65536, 65536, 0, 1.59, 320, int64_t{4} << 20};

struct SuiteProblem {
  std::string suite;
  CellKind cell;
  int64_t hidden, batch, steps;
  bool training;

  Problem problem(Dtype dtype, bool tf32) const {
    Problem p;
    p.backend = Backend::cuda;
    p.cell = cell, p.dtype = dtype, p.tf32 = tf32;
    p.steps = steps, p.batch = batch, p.rows = steps * batch;
    p.input_size = p.hidden_size = hidden;
    p.save = training;
    return p;
  }
};

// DeepBench's recurrent layers, as many inputs as hidden units.
inline std::vector<SuiteProblem> deepbench() {
  std::vector<SuiteProblem> all;
  std::string const name = "deepbench";
  auto const add = [&](CellKind cell, std::vector<int64_t> sizes, std::vector<int64_t> batches, int64_t steps) {
    for (int64_t hidden : sizes) {
      for (int64_t batch : batches) all.push_back({name, cell, hidden, batch, steps, true});
    }
  };
  add(CellKind::lstm, {512, 1024, 2048, 4096}, {16, 32, 64, 128}, 25);
  add(CellKind::lstm, {1536}, {8, 16, 32}, 50);
  add(CellKind::lstm, {256}, {16, 32, 64}, 150);
  add(CellKind::gru, {2816, 2048, 1536, 2560}, {32}, 187);
  add(CellKind::gru, {1024}, {32}, 187);
  add(CellKind::gru, {1024}, {32}, 1500);
  add(CellKind::gru, {512}, {32}, 1);
  add(CellKind::rnn, {1760, 2048, 2560}, {16, 32, 64, 128}, 50);

  // Inference on a server: the same sizes, a few rows; and on a device.
  std::vector<SuiteProblem> inference;
  for (const SuiteProblem& one : all) {
    bool known = one.cell == CellKind::rnn;
    for (const SuiteProblem& other : inference) {
      known |= other.cell == one.cell && other.hidden == one.hidden && other.steps == one.steps;
    }
    for (int64_t batch : {1, 2, 4}) {
      if (!known) inference.push_back({name, one.cell, one.hidden, batch, one.steps, false});
    }
  }
  all.insert(all.end(), inference.begin(), inference.end());
  all.push_back({name, CellKind::lstm, 256, 1, 150, false});
  return all;
}

inline std::vector<SuiteProblem> grid() {
  std::vector<SuiteProblem> all;
  for (CellKind cell : {CellKind::lstm, CellKind::gru, CellKind::rnn}) {
    for (int64_t hidden : {32, 64, 128, 129, 160, 192, 256, 512, 768, 1024}) {
      for (int64_t batch : {1, 16, 64, 256}) {
        for (bool training : {false, true}) all.push_back({"grid", cell, hidden, batch, 100, training});
      }
    }
  }
  return all;
}

}  // namespace rnnkern::test
