// A layer forward, in phases that all workers run together: pack the weights, the input product, the time loops.
#pragma once

#include "forward_sweep.h"
#include "sweep.h"

namespace rnnkern::RNNKERN_ISA {

// Panels, biases, states and gates of one group, and its input product. `gates` is where the gates go, or null.
template <class Cell, class T>
ForwardBuffers<T> forward_buffers(const Problem& problem, const Group& group, T* gates, int64_t rows_together,
                                  bool states, Platform& platform) {
  using C = compute_t<T>;
  constexpr int lanes = Vec<C>::lanes;
  bool const two_stage_gru = Cell::kind == CellKind::gru_v1, projection = problem.proj_size > 0;
  int64_t const hidden = problem.hidden_size, head = problem.head_size();
  ForwardBuffers<T> buffers;
  buffers.first = PanelSet<C>::make(platform, hidden, problem.heads, two_stage_gru ? 2 : Cell::gates,
                                    projection ? problem.proj_size : head, rows_together);
  if (two_stage_gru) buffers.second = PanelSet<C>::make(platform, hidden, problem.heads, 1, head, rows_together);
  if (projection) buffers.second = PanelSet<C>::make(platform, problem.proj_size, 1, 1, hidden, rows_together);
  buffers.bias_x = zeros<C>(platform, problem.gate_size() + lanes);
  if (Cell::split_gate) buffers.bias_h = zeros<C>(platform, problem.gate_size() + lanes);
  buffers.gates_stride = gates ? problem.saved_size() : problem.gate_size();
  buffers.gates = gates ? gates : scratch<T>(platform, problem.rows * problem.gate_size());
  buffers.pitch = pitch_for(problem, lanes);
  int64_t const size = problem.batch * buffers.pitch;
  buffers.zeros = zeros<C>(platform, buffers.pitch);
  if (two_stage_gru || projection) buffers.middle = scratch<C>(platform, size);
  if (!states) return buffers;
  for (int parity = 0; parity < 2; ++parity) {
    for (int i = 0; i < Cell::states; ++i) buffers.state[i][parity] = scratch<C>(platform, size);
    if (group.mask) buffers.operand[parity] = scratch<C>(platform, size);
  }
  if (two_stage_gru) buffers.z = scratch<C>(platform, size);
  return buffers;
}

template <class T>
PackedGemm<T> input_product(const Problem& problem, const Group& group, const ForwardBuffers<T>& buffers) {
  int64_t const in = problem.input_size;
  return {.m = problem.rows,
          .n = problem.gate_size(),
          .k = in,
          .a = {static_cast<const T*>(group.x), in},
          .b = {static_cast<const T*>(group.w_ih), in, true},
          .c = buffers.gates,
          .c_stride = buffers.gates_stride};
}

template <class Cell, class T>
void pack_forward(const Problem& problem, const Group& group, const ForwardBuffers<T>& buffers, int worker,
                  int workers) {
  const T* const w_hh = static_cast<const T*>(group.w_hh);
  int64_t const hidden = problem.hidden_size;
  for (int p = worker; p < buffers.first.count; p += workers) buffers.first.pack_forward(p, w_hh, hidden);
  const T* const second =
      problem.proj_size > 0 ? static_cast<const T*>(group.w_hr) : w_hh + 2 * hidden * problem.head_size();
  for (int p = worker; p < buffers.second.count; p += workers) buffers.second.pack_forward(p, second, hidden);
  if (worker != 0 || !group.b_ih) return;
  for (int64_t i = 0; i < problem.gate_size(); ++i) {
    bool const split = Cell::split_gate && i >= (Cell::gates - 1) * hidden;
    auto const b_x = to_compute(static_cast<const T*>(group.b_ih)[i]),
               b_h = to_compute(static_cast<const T*>(group.b_hh)[i]);
    buffers.bias_x[i] = split ? b_x : b_x + b_h;
    if (split) buffers.bias_h[i] = b_h;
  }
}

template <class Cell, class T>
void forward(const Cell& cell, const Problem& problem, const Group* groups, int count, const Plan& plan,
             CpuPlatform& platform) {
  using Sweep = ForwardSweep<Cell, T>;
  Timeline* const time = scratch<Timeline>(platform, count);
  make_timelines(problem, groups, count, time, platform);
  auto* const buffers = scratch<ForwardBuffers<T>>(platform, count);
  auto* const products = scratch<PackedGemm<T>>(platform, count);
  int const sharing = plan.split == Split::rows ? plan.workers : 1;
  int64_t const together =
      std::max<int64_t>(1, std::min(problem.batch, (problem.batch * count + sharing - 1) / sharing));
  for (int g = 0; g < count; ++g) {
    new (&buffers[g]) ForwardBuffers<T>(
        forward_buffers<Cell, T>(problem, groups[g], static_cast<T*>(groups[g].gates), together, true, platform));
    new (&products[g]) PackedGemm<T>(input_product(problem, groups[g], buffers[g]));
  }
  share_scratch(products, count, plan.workers, platform);
  int64_t const row_slots = problem.batch * (plan.split == Split::units ? count : 1);
  auto* const rows = scratch<ForwardRow<T>>(platform, row_slots * plan.workers);
  auto* const row_storage = scratch<int64_t>(platform, problem.batch * plan.workers);
  auto* const sweeps = scratch<Sweep>(platform, count * plan.workers);
  Barrier barrier;
  platform.parallel(plan.workers, [&](int worker, int workers) {
    for (int g = 0; g < count; ++g) pack_forward<Cell, T>(problem, groups[g], buffers[g], worker, workers);
    for (int g = 0; g < count; ++g) products[g].run(barrier, worker, workers);
    run_sweeps<Sweep>(
        problem, time, count, plan.split, worker, workers, row_storage + worker * problem.batch,
        sweeps + worker * count, barrier,
        [&](int g, const int64_t* mine, int64_t n, int slot) {
          return Sweep(cell, problem, groups[g], buffers[g], time[g], mine, n,
                       rows + worker * row_slots + slot * problem.batch);
        },
        [&](int g, int stage) { return stage == 0 ? buffers[g].first.count : buffers[g].second.count; },
        [](Sweep& sweep, int, int first, int stride) { sweep.end(first, stride); });
  });
}

}  // namespace rnnkern::RNNKERN_ISA
