// A layer backward, in phases that all workers run together: pack the weights (and make gates again that were not
// kept), the time loops, the products over all rows for the gradients of the weights and of x.
#pragma once

#include "backward_sweep.h"
#include "layer_forward.h"

namespace rnnkern::RNNKERN_ISA {

template <class Cell, class T>
BackwardBuffers<T> backward_buffers(const Problem& problem, const T* saved, T* rebuilt, int64_t rows_together,
                                    Platform& platform) {
  using C = compute_t<T>;
  using P = packed_t<T>;
  using Operand = operand_t<T>;
  bool const two_stage_gru = Cell::kind == CellKind::gru_v1, projection = problem.proj_size > 0;
  int64_t const hidden = problem.hidden_size, size = problem.state_size(), head = problem.head_size();
  int64_t const gates = two_stage_gru ? 2 : Cell::gates;
  BackwardBuffers<T> buffers;
  buffers.first = PanelSet<P>::make(platform, size, problem.heads, 1, gates * head, rows_together);
  if (two_stage_gru) buffers.second = PanelSet<P>::make(platform, hidden, problem.heads, 1, head, rows_together);
  if (projection) buffers.second = PanelSet<P>::make(platform, hidden, 1, 1, size, rows_together);
  buffers.saved = rebuilt ? rebuilt : saved;
  if (rebuilt) {  // gates that were made again for this backward alone give their place to their gradients
    buffers.d_gates = rebuilt;
    buffers.d_split = Cell::split_gate ? rebuilt + problem.gate_size() : nullptr;
    buffers.d_gates_stride = buffers.d_split_stride = problem.saved_size();
  } else {
    buffers.d_gates = scratch<T>(platform, problem.rows * problem.gate_size());
    buffers.d_split = Cell::split_gate ? scratch<T>(platform, problem.rows * hidden) : nullptr;
    buffers.d_gates_stride = problem.gate_size(), buffers.d_split_stride = hidden;
  }
  buffers.operand = scratch<T>(platform, problem.rows * size);
  if (two_stage_gru) buffers.reset_operand = scratch<T>(platform, problem.rows * hidden);
  if (projection) {
    buffers.d_state = scratch<T>(platform, problem.rows * size);
    buffers.projected = scratch<T>(platform, problem.rows * hidden);
  }
  buffers.pitch = pitch_for(problem, Vec<C>::lanes);
  for (int i = 0; i < Cell::states; ++i) buffers.carry[i] = scratch<C>(platform, problem.batch * buffers.pitch);
  buffers.d_operand_size = gates * hidden;
  for (auto*& d_operand : buffers.d_operand)
    d_operand = scratch<Operand>(platform, problem.batch * buffers.d_operand_size);
  if (two_stage_gru || projection) buffers.middle = scratch<Operand>(platform, problem.batch * buffers.pitch);
  buffers.zeros = zeros<Operand>(platform, std::max(buffers.pitch, buffers.d_operand_size));
  buffers.zero_state = zeros<T>(platform, std::max(hidden, size));
  return buffers;
}

template <class T>
void pack_backward(const Problem& problem, const Group& group, const BackwardBuffers<T>& buffers, int worker,
                   int workers) {
  const T* const w_hh = static_cast<const T*>(group.w_hh);
  int64_t const hidden = problem.hidden_size, width = problem.state_size() / problem.heads;
  for (int p = worker; p < buffers.first.count; p += workers) buffers.first.pack_backward(p, w_hh, hidden, width);
  for (int p = worker; p < buffers.second.count; p += workers) {
    if (problem.proj_size > 0) {
      buffers.second.pack_backward(p, static_cast<const T*>(group.w_hr), problem.proj_size, hidden);
    } else {
      buffers.second.pack_backward(p, w_hh + 2 * hidden * width, hidden, width);
    }
  }
}

// The gradients of the weights and of x: products over all rows, or each sample's. Fills `products` (if not null) and
// returns their number.
template <class Cell, class T>
int gradient_products(const Problem& problem, const Group& group, const GroupGradients& gradients,
                      const BackwardBuffers<T>& buffers, const T* live_x, PackedGemm<T>* products) {
  int64_t const hidden = problem.hidden_size, in = problem.input_size, all = problem.gate_size(),
                size = problem.state_size();
  int64_t const head = problem.head_size(), d_stride = buffers.d_gates_stride, samples = problem.samples();
  int count = 0;
  auto add = [&](PackedGemm<T> product) {
    if (products) new (&products[count]) PackedGemm<T>(product);
    ++count;
  };
  if (gradients.d_x)
    add({problem.rows,
         in,
         all,
         {buffers.d_gates, d_stride},
         {static_cast<const T*>(group.w_ih), in},
         static_cast<T*>(gradients.d_x),
         in,
         gradients.accumulate_x});
  // d_weight[units, width] = d^T operand, of sample b.
  auto weight = [&](int64_t b, const T* d, int64_t stride, int64_t units, const T* operand, int64_t operand_stride,
                    int64_t width, T* out) {
    add({units,
         width,
         problem.sample_rows(),
         {d + b * stride, stride * samples, true},
         {operand + b * operand_stride, operand_stride * samples},
         out,
         width});
  };
  int64_t const width = size / problem.heads;
  // The last gate stands alone where its gradient or its operand differs.
  int64_t const together = Cell::split_gate || buffers.reset_operand ? Cell::gates - 1 : Cell::gates;
  for (int64_t b = 0; b < samples; ++b) {
    if (gradients.d_w_ih)
      weight(b, buffers.d_gates, d_stride, all, live_x, in, in, static_cast<T*>(gradients.d_w_ih) + b * all * in);
    if (gradients.d_w_hh) {
      T* const out = static_cast<T*>(gradients.d_w_hh) + b * all * width;
      auto block = [&](int64_t row, int64_t units, const T* d, int64_t stride, const T* operand, int64_t column) {
        weight(b, d, stride, units, operand + column, size, width, out + row * width);
      };
      if (problem.heads == 1) {
        block(0, together * hidden, buffers.d_gates, d_stride, buffers.operand, 0);
      } else {
        for (int64_t g = 0; g < together; ++g)
          for (int64_t j = 0; j < hidden; j += head)
            block(g * hidden + j, head, buffers.d_gates + g * hidden + j, d_stride, buffers.operand, j);
      }
      if (together < Cell::gates) {
        const T* const d = Cell::split_gate ? buffers.d_split : buffers.d_gates + together * hidden;
        const T* const operand = Cell::split_gate ? buffers.operand : buffers.reset_operand;
        for (int64_t j = 0; j < hidden; j += head)
          block(together * hidden + j, head, d + j, Cell::split_gate ? buffers.d_split_stride : d_stride, operand, j);
      }
    }
    if (gradients.d_w_hr)
      weight(b, buffers.d_state, size, size, buffers.projected, hidden, hidden,
             static_cast<T*>(gradients.d_w_hr) + b * size * hidden);
  }
  return count;
}

// Column sums [first, last) of `rows` rows, 256 rows at a time.
template <class T>
void sum_rows(const T* from, int64_t stride, int64_t rows, int64_t first, int64_t last, T* to) {
  using V = Vec<compute_t<T>>;
  constexpr int kWide = 4;  // vectors at a time: whole cache lines, several of them
  for (int64_t j = first; j < last; j += kWide * V::lanes) {
    V sum[kWide];
    int n[kWide];
    for (int v = 0; v < kWide; ++v) {
      sum[v] = V(compute_t<T>(0));
      n[v] = int(std::clamp<int64_t>(last - j - v * V::lanes, 0, V::lanes));
    }
    for (int64_t r = 0; r < rows; r += 256) {
      V part[kWide];
      for (V& p : part) p = V(compute_t<T>(0));
      for (int64_t i = r; i < std::min(rows, r + 256); ++i) {
        const T* const row = from + i * stride + j;
        __builtin_prefetch(row + 8 * stride);
        for (int v = 0; v < kWide; ++v) part[v] = part[v] + load<V>(row + v * V::lanes, n[v]);
      }
      for (int v = 0; v < kWide; ++v) sum[v] = sum[v] + part[v];
    }
    for (int v = 0; v < kWide; ++v) store(to + j + v * V::lanes, sum[v], n[v]);
  }
}

template <class Cell, class T>
void sum_biases(const Problem& problem, const GroupGradients& gradients, const BackwardBuffers<T>& buffers, int worker,
                int workers) {
  int64_t const all = problem.gate_size(), hidden = problem.hidden_size, split = all - hidden;
  int64_t const samples = problem.samples();
  constexpr int64_t kColumns = 64;  // whole cache lines a worker
  auto const sum = [&](int64_t b, const T* from, int64_t stride, int64_t first, int64_t last, T* to) {
    sum_rows(from + b * stride, stride * samples, problem.sample_rows(), first, last, to);
  };
  for (int64_t b = 0; b < samples; ++b) {
    auto* const d_b_ih = gradients.d_b_ih ? static_cast<T*>(gradients.d_b_ih) + b * all : nullptr;
    auto* const d_b_hh = gradients.d_b_hh ? static_cast<T*>(gradients.d_b_hh) + b * all : nullptr;
    for (int64_t first = worker * kColumns; first < all; first += workers * kColumns) {
      int64_t const last = std::min(all, first + kColumns);
      if (d_b_ih) sum(b, buffers.d_gates, buffers.d_gates_stride, first, last, d_b_ih);
      if (!d_b_hh) continue;
      int64_t const shared = Cell::split_gate ? std::min(last, split) : last;  // columns in which the two are the same
      if (d_b_ih) {
        for (int64_t j = first; j < shared; ++j) d_b_hh[j] = d_b_ih[j];
      } else {
        sum(b, buffers.d_gates, buffers.d_gates_stride, first, shared, d_b_hh);
      }
      if (Cell::split_gate && last > split)
        sum(b, buffers.d_split, buffers.d_split_stride, std::max(first, split) - split, last - split, d_b_hh + split);
    }
  }
}

// x with zeros past the lengths.
template <class T>
void copy_live(const Problem& problem, const Timeline& time, const Group& group, T* copy, int worker, int workers) {
  size_t const bytes = problem.input_size * sizeof(T);
  for (int64_t t = worker; t < problem.steps; t += workers)
    for (int64_t b = 0; b < problem.batch; ++b) {
      int64_t const at = time.row(t, b) * problem.input_size;
      if (t < time.lengths[b])
        std::memcpy(copy + at, static_cast<const T*>(group.x) + at, bytes);
      else
        std::memset(copy + at, 0, bytes);
    }
}

template <class Cell, class T>
void backward(const Cell& cell, const Problem& problem, const Group* groups, const GroupGradients* gradients, int count,
              const Plan& plan, CpuPlatform& platform) {
  using C = compute_t<T>;
  using Sweep = BackwardSweep<Cell, T>;
  using Forward = ForwardSweep<Cell, T>;
  Timeline* const time = scratch<Timeline>(platform, count);
  make_timelines(problem, groups, count, time, platform);
  Slots slots(plan, count);
  for (int g = 0; g < count; ++g)
    if (gradients[g].accumulate_x) slots.keep_order(plan, count);
  int const sharing = plan.split == Split::rows ? plan.workers : 1;
  int64_t const together =
      std::max<int64_t>(1, std::min(problem.batch, (problem.batch * count + sharing - 1) / sharing));

  // Gates that were not kept are made again.
  Problem rebuilt = problem;
  rebuilt.save = true, rebuilt.recompute = false;
  auto* const again = scratch<ForwardBuffers<T>>(platform, count);
  auto* const again_products = scratch<PackedGemm<T>>(platform, count);
  auto* const buffers = scratch<BackwardBuffers<T>>(platform, count);
  auto* const live_x = scratch<const T*>(platform, count);
  auto* const x_copy = zeros<T*>(platform, slots.count);
  auto* const first_product = scratch<int>(platform, count + 1);
  first_product[0] = 0;
  for (int g = 0; g < count; ++g) {
    int const slot = slots.slot(g);
    if (slot == g) {
      T* gates = nullptr;
      if (problem.recompute) {
        gates = scratch<T>(platform, problem.rows * problem.saved_size());
        new (&again[g])
            ForwardBuffers<T>(forward_buffers<Cell, T>(problem, groups[g], gates, Forward::kTogether, false, platform));
      }
      new (&buffers[g]) BackwardBuffers<T>(
          backward_buffers<Cell, T>(problem, static_cast<const T*>(groups[g].gates), gates, together, platform));
    } else {
      if (problem.recompute) {
        new (&again[g]) ForwardBuffers<T>(again[slot]);
        again[g].set_group(problem, groups[g]);
      }
      new (&buffers[g]) BackwardBuffers<T>(buffers[slot]);
      if (!problem.recompute) buffers[g].saved = static_cast<const T*>(groups[g].gates);
    }
    live_x[g] = static_cast<const T*>(groups[g].x);
    if (!time[g].uniform && !time[g].offsets && gradients[g].d_w_ih) {
      if (!x_copy[slot]) x_copy[slot] = scratch<T>(platform, problem.rows * problem.input_size);
      live_x[g] = x_copy[slot];
    }
    if (problem.recompute) new (&again_products[g]) PackedGemm<T>(input_product(problem, groups[g], again[g]));
    first_product[g + 1] =
        first_product[g] + gradient_products<Cell, T>(problem, groups[g], gradients[g], buffers[g], live_x[g], nullptr);
  }
  auto* const products = scratch<PackedGemm<T>>(platform, first_product[count]);
  for (int g = 0; g < count; ++g)
    gradient_products<Cell, T>(problem, groups[g], gradients[g], buffers[g], live_x[g], products + first_product[g]);
  slots.share(products, [&](int g) { return first_product[g]; }, count, plan, platform);
  if (problem.recompute) slots.share(again_products, [](int g) { return g; }, count, plan, platform);

  auto* const rows = scratch<BackwardRow<T>>(platform, count * problem.batch * plan.workers);
  auto* const forward_rows = scratch<ForwardRow<T>>(platform, Forward::kTogether * plan.workers);
  auto* const row_storage = scratch<int64_t>(platform, count * problem.batch * plan.workers);
  auto* const sweeps = scratch<Sweep>(platform, count * plan.workers);
  int64_t const pitch = pitch_for(problem, Vec<C>::lanes),
                rebuild_size = problem.recompute ? Forward::kTogether * pitch : 0;
  auto* const rebuild_state = scratch<C>(platform, 3 * rebuild_size * plan.workers);
  auto* const rebuild_operand = scratch<operand_t<T>>(platform, 2 * rebuild_size * plan.workers);
  auto* const rebuild_y = scratch<T>(platform, pitch * plan.workers);

  slots.run(count, plan, platform, [&](int first, int n, int place, int worker, int workers, Barrier& barrier) {
    int const last = first + n, base = worker * count;
    for (int g = first; g < last; ++g) {
      pack_backward(problem, groups[g], buffers[g], worker, workers);
      if (problem.recompute) pack_forward<Cell, T>(rebuilt, groups[g], again[g], worker, workers);
      if (live_x[g] != groups[g].x) copy_live(problem, time[g], groups[g], const_cast<T*>(live_x[g]), worker, workers);
    }
    if (problem.recompute) {
      C* const state = rebuild_state + place * 3 * rebuild_size;
      auto* const operand = rebuild_operand + place * 2 * rebuild_size;
      typename Forward::Rebuild const scratch_rows{operand,
                                                   operand + rebuild_size,
                                                   {state, state + rebuild_size},
                                                   state + 2 * rebuild_size,
                                                   rebuild_y + place * pitch};
      for (int g = first; g < last; ++g) again_products[g].run(barrier, worker, workers);
      for (int g = first; g < last; ++g) {
        Forward sweep(cell, rebuilt, groups[g], again[g], time[g], time[g].order, problem.batch,
                      forward_rows + place * Forward::kTogether);
        sweep.set_gates(again[g].gates, 0);
        sweep.rebuild(scratch_rows, worker, workers);
      }
    }
    barrier.wait(workers);
    Team<Sweep> const team{problem,
                           time + first,
                           n,
                           plan.split,
                           worker,
                           workers,
                           barrier,
                           sweeps + base + first,
                           row_storage + (base + first) * problem.batch};
    team.begin([&](int i, const int64_t* mine, int64_t live) {
      int const g = first + i;
      return Sweep(cell, problem, groups[g], gradients[g], buffers[g], time[g], mine, live,
                   rows + (base + g) * problem.batch);
    });
    team.run(0, problem.steps, [&](int i, int stage) {
      return stage == 0 ? buffers[first + i].first.count : buffers[first + i].second.count;
    });
    for (int i = 0; i < n; ++i) {
      if (team.sweeps[i].rows() == 0) continue;
      int const panels = buffers[first + i].first.count;
      team.sweeps[i].end(panels * team.first() / team.stride(), panels * (team.first() + 1) / team.stride());
    }
    barrier.wait(workers);
    for (int i = first_product[first]; i < first_product[last]; ++i) products[i].run(barrier, worker, workers);
    for (int g = first; g < last; ++g) sum_biases<Cell, T>(problem, gradients[g], buffers[g], worker, workers);
  });
}

}  // namespace rnnkern::RNNKERN_ISA
