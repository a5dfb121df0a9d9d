// A layer backward, in phases that all workers run together: pack the weights (and make gates again that were not
// kept); then, in turns of some steps, the time loops and the products for the gradients of the weights and of x, which
// so find the gates' gradients in the cache, and need little memory for them.
#pragma once

#include "backward_sweep.h"
#include "bias_sums.h"
#include "layer_forward.h"

namespace rnnkern::RNNKERN_ISA {

// How many steps are a turn, the same for any number of workers, so that sums are.
struct BackwardTurns {
  // Rows, which the weights' gradients sum over: of a panel, as many steps as half a first cache of 32 KB holds, or all
  // of one of 48 KB.
  template <class T>
  static constexpr int64_t kMostRows = PackedGemm<T>::kDepth / (RNNKERN_VECTOR_BYTES == 64 ? 1 : 2);
  int64_t count, steps;

  template <class T>
  static BackwardTurns make(const Problem& problem) {
    int64_t const most = std::max<int64_t>(1, kMostRows<T> / std::max<int64_t>(1, problem.batch));
    // Each sample's sums are short; those of several turns would be read and written more than they are added to.
    int64_t const count = problem.per_sample ? 1 : std::max<int64_t>(1, (problem.steps + most - 1) / most);
    return {count, (problem.steps + count - 1) / count};
  }
};

template <class Cell, class T>
BackwardBuffers<T> backward_buffers(const Problem& problem, const T* saved, PanelUse const& use, int64_t rows_of_turn,
                                    int64_t places, Platform& platform) {
  using C = compute_t<T>;
  using P = packed_t<T>;
  using Operand = operand_t<T>;
  bool const two_stage_gru = Cell::kind == CellKind::gru_v1, projection = problem.proj_size > 0;
  int64_t const hidden = problem.hidden_size, size = problem.state_size(), head = problem.head_size();
  int64_t const gates = two_stage_gru ? 2 : Cell::gates;
  BackwardBuffers<T> buffers;
  buffers.first = PanelSet<P>::template make<T>(platform, size, problem.heads, 1, gates * head, use);
  if (two_stage_gru) buffers.second = PanelSet<P>::template make<T>(platform, hidden, problem.heads, 1, head, use);
  if (projection) buffers.second = PanelSet<P>::template make<T>(platform, hidden, 1, 1, size, use);
  buffers.saved = saved;
  buffers.d_gates = scratch<T>(platform, rows_of_turn * problem.gate_size());
  buffers.d_split = Cell::split_gate ? scratch<T>(platform, rows_of_turn * hidden) : nullptr;
  buffers.operand = scratch<T>(platform, rows_of_turn * size);
  if (two_stage_gru) buffers.reset_operand = scratch<T>(platform, rows_of_turn * hidden);
  if (projection) {
    buffers.d_state = scratch<T>(platform, rows_of_turn * size);
    buffers.projected = scratch<T>(platform, rows_of_turn * hidden);
  }
  buffers.d_bias = scratch<C>(platform, problem.samples() * (problem.gate_size() + hidden));
  buffers.pitch = pitch_for(problem, Vec<C>::lanes);
  for (int i = 0; i < Cell::states; ++i) buffers.carry[i] = scratch<C>(platform, places * buffers.pitch);
  buffers.d_operand_size = gates * hidden;
  for (auto*& d_operand : buffers.d_operand) d_operand = scratch<Operand>(platform, places * buffers.d_operand_size);
  if (two_stage_gru || projection) buffers.middle = scratch<Operand>(platform, places * buffers.pitch);
  buffers.zeros = zeros<Operand>(platform, std::max(buffers.pitch, buffers.d_operand_size));
  buffers.zero_state = zeros<T>(platform, std::max(hidden, size));
  buffers.copied = copied_elements(buffers, problem.batch);
  return buffers;
}

template <class T>
void pack_backward(const Problem& problem, const Group& group, const GroupGradients& gradients,
                   const BackwardBuffers<T>& buffers, int worker, int workers) {
  const T* const w_hh = static_cast<const T*>(group.w_hh);
  int64_t const hidden = problem.hidden_size, width = problem.state_size() / problem.heads;
  // The first product is of the state before a step: of one step, h_0.
  int const count = problem.steps > 1 || gradients.d_h_0 ? buffers.first.count : 0;
  Part const first(count, worker, workers), second(buffers.second.count, worker, workers);
  for (int p = first.begin; p < first.end; ++p) buffers.first.pack_backward(p, w_hh, hidden, width);
  for (int p = second.begin; p < second.end; ++p) {
    if (problem.proj_size > 0) {
      buffers.second.pack_backward(p, static_cast<const T*>(group.w_hr), problem.proj_size, hidden);
    } else {
      buffers.second.pack_backward(p, w_hh + 2 * hidden * width, hidden, width);
    }
  }
}

// x's gradient, a product of each turn.
template <class T>
PackedGemm<T> d_x_product(const Problem& problem, const Group& group, const GroupGradients& gradients,
                          const BackwardBuffers<T>& buffers, int64_t rows_of_turn) {
  int64_t const in = problem.input_size, all = problem.gate_size();
  return {.m = rows_of_turn,
          .n = in,
          .k = all,
          .a = {buffers.d_gates, all},
          .b = {static_cast<const T*>(group.w_ih), in},
          .c = static_cast<T*>(gradients.d_x),
          .c_stride = in,
          .keep_panels = true};
}

// Adds a turn's part to x's gradient, which another direction shares, that comes from the other end of time: stores
// where that one was not yet.
template <class T>
void run_d_x(const PackedGemm<T>& product, const Problem& problem, const Timeline& time, const Turn& turn, bool reverse,
             int64_t other, Barrier& barrier, int worker, int workers) {
  // Steps before `border` were added to, or those from it on.
  int64_t const border = std::clamp(other, turn.first_step, turn.last_step);
  int64_t const rows = border == problem.steps ? problem.rows : time.row(border, 0);
  int64_t const end = turn.first + turn.count;
  auto const part = [&](int64_t first, int64_t last, bool there) {
    if (first < last)
      product.rows(first - turn.first, {last - first}, product.c + first * product.c_stride, worker, workers, there);
  };
  part(turn.first, rows, !reverse);
  if (turn.first < rows && rows < end) barrier.wait(worker, workers);  // both parts use the product's memory for sums
  part(rows, end, reverse);
}

// The gradients of the weights: products over all rows, in turns, or each sample's. Fills `products` (if not null) and
// returns their number.
template <class Cell, class T>
int weight_products(const Problem& problem, const Group& group, const GroupGradients& gradients,
                    const BackwardBuffers<T>& buffers, PackedGemm<T>* products) {
  int64_t const hidden = problem.hidden_size, in = problem.input_size, all = problem.gate_size(),
                size = problem.state_size();
  int64_t const head = problem.head_size(), samples = problem.samples();
  int count = 0;
  // d_weight[units, width] = d^T operand, of sample b.
  auto weight = [&](int64_t b, const T* d, int64_t stride, int64_t units, const T* operand, int64_t operand_stride,
                    int64_t width, T* out, bool operand_of_turn = true) {
    if (products)
      new (&products[count])
          PackedGemm<T>{.m = units,
                        .n = width,
                        .k = problem.sample_rows(),
                        .a = {d + b * stride, stride * samples, true, true},
                        .b = {operand + b * operand_stride, operand_stride * samples, false, operand_of_turn},
                        .c = out,
                        .c_stride = width};
    ++count;
  };
  int64_t const width = size / problem.heads;
  // The last gate stands alone where its gradient or its operand differs.
  int64_t const together = Cell::split_gate || buffers.reset_operand ? Cell::gates - 1 : Cell::gates;
  for (int64_t b = 0; b < samples; ++b) {
    if (gradients.d_w_ih) {
      const T* const x = buffers.live_x ? buffers.live_x : static_cast<const T*>(group.x);
      weight(b, buffers.d_gates, all, all, x, in, in, static_cast<T*>(gradients.d_w_ih) + b * all * in,
             buffers.live_x != nullptr);
    }
    if (gradients.d_w_hh) {
      T* const out = static_cast<T*>(gradients.d_w_hh) + b * all * width;
      auto block = [&](int64_t row, int64_t units, const T* d, int64_t stride, const T* operand, int64_t column) {
        weight(b, d, stride, units, operand + column, size, width, out + row * width);
      };
      if (problem.heads == 1) {
        block(0, together * hidden, buffers.d_gates, all, buffers.operand, 0);
      } else {
        for (int64_t g = 0; g < together; ++g)
          for (int64_t j = 0; j < hidden; j += head)
            block(g * hidden + j, head, buffers.d_gates + g * hidden + j, all, buffers.operand, j);
      }
      if (together < Cell::gates) {
        const T* const d = Cell::split_gate ? buffers.d_split : buffers.d_gates + together * hidden;
        const T* const operand = Cell::split_gate ? buffers.operand : buffers.reset_operand;
        for (int64_t j = 0; j < hidden; j += head)
          block(together * hidden + j, head, d + j, Cell::split_gate ? hidden : all, operand, j);
      }
    }
    if (gradients.d_w_hr)
      weight(b, buffers.d_state, size, size, buffers.projected, hidden, hidden,
             static_cast<T*>(gradients.d_w_hr) + b * size * hidden);
  }
  return count;
}

// x with zeros past the lengths, of a turn.
template <class T>
void copy_live(const Problem& problem, const Timeline& time, const Group& group, const Turn& turn, T* copy, int worker,
               int workers) {
  size_t const bytes = problem.input_size * sizeof(T);
  for (int64_t t = turn.first_step + worker; t < turn.last_step; t += workers)
    for (int64_t b = 0; b < problem.batch; ++b) {
      int64_t const at = time.row(t, b);
      T* const to = copy + (at - turn.first) * problem.input_size;
      if (t < time.lengths[b])
        std::memcpy(to, static_cast<const T*>(group.x) + at * problem.input_size, bytes);
      else
        std::memset(to, 0, bytes);
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
  bool const pairs = std::any_of(gradients, gradients + count, [](auto& one) { return one.accumulate_x; });
  Slots const slots(plan, count, pairs ? 2 : 1);
  Places const places(problem, plan, Vec<C>::lanes);
  int const sharing = plan.split == Split::rows ? plan.workers : 1;
  PanelUse const use{
      .rows = std::max<int64_t>(1, std::min(problem.batch, (problem.batch * count + sharing - 1) / sharing)),
      .workers = plan.sharing_units()};

  // Gates that were not kept are made again.
  Problem rebuilt = problem;
  rebuilt.save = true, rebuilt.recompute = false;
  auto* const again = scratch<ForwardBuffers<T>>(platform, count);
  auto* const again_products = scratch<PackedGemm<T>>(platform, count);
  auto* const buffers = scratch<BackwardBuffers<T>>(platform, count);
  auto* const d_x = scratch<PackedGemm<T>>(platform, count);
  auto* const d_x_scratch = zeros<ProductScratch<T>>(platform, slots.count);
  auto* const first_product = scratch<int>(platform, count + 1);
  int64_t listed = 0;  // rows of a turn, where workers make their own of d_x
  BackwardTurns const turns = BackwardTurns::make<T>(problem);
  int64_t const rows_of_turn = turns.steps * problem.batch;
  first_product[0] = 0;
  for (int g = 0; g < count; ++g) {
    int const slot = slots.slot(g);
    if (slot == g) {
      T* const gates = problem.recompute ? scratch<T>(platform, problem.rows * problem.saved_size()) : nullptr;
      if (gates)
        new (&again[g]) ForwardBuffers<T>(
            forward_buffers<Cell, T>(problem, groups[g], gates, {.rows = Forward::kTogether}, nullptr, platform));
      new (&buffers[g]) BackwardBuffers<T>(backward_buffers<Cell, T>(
          problem, gates ? gates : static_cast<const T*>(groups[g].gates), use, rows_of_turn, places.count, platform));
      set_shared(buffers[g], plan, slots.workers(plan));
    } else {
      if (problem.recompute) {
        new (&again[g]) ForwardBuffers<T>(again[slot]);
        again[g].set_group(problem, groups[g]);
      }
      new (&buffers[g]) BackwardBuffers<T>(buffers[slot]);
      if (!problem.recompute) buffers[g].saved = static_cast<const T*>(groups[g].gates);
    }
    if (!time[g].uniform && !time[g].offsets && gradients[g].d_w_ih && !buffers[slot].live_x)
      buffers[g].live_x = buffers[slot].live_x = scratch<T>(platform, rows_of_turn * problem.input_size);
    if (gradients[g].d_x) {
      new (&d_x[g]) PackedGemm<T>(d_x_product(problem, groups[g], gradients[g], buffers[g], rows_of_turn));
      if (!d_x_scratch[slot].panels)
        d_x_scratch[slot] = ProductScratch<T>::make(&d_x[g], 1, slots.workers(plan), platform);
      d_x_scratch[slot].give(d_x[g]);
      bool const own_rows = makes_own_rows(d_x[g], problem, plan, slots.workers(plan));
      if (own_rows) listed = rows_of_turn;
      d_x[g].own_rows = own_rows && !pairs;
    }
    if (problem.recompute) new (&again_products[g]) PackedGemm<T>(input_product(problem, groups[g], again[g]));
    first_product[g + 1] =
        first_product[g] + weight_products<Cell, T>(problem, groups[g], gradients[g], buffers[g], nullptr);
  }
  auto* const products = scratch<PackedGemm<T>>(platform, first_product[count]);
  for (int g = 0; g < count; ++g)
    weight_products<Cell, T>(problem, groups[g], gradients[g], buffers[g], products + first_product[g]);
  if (turns.count > 1)  // what a turn sums waits for the next
    for (int i = 0; i < first_product[count]; ++i)
      products[i].partial = scratch<C>(platform, products[i].partial_elements(true));
  slots.share(products, [&](int g) { return first_product[g]; }, count, plan, platform);
  if (problem.recompute) slots.share(again_products, [](int g) { return g; }, count, plan, platform);

  auto* const lists = scratch<int64_t>(platform, plan.workers * listed);
  auto* const rows = scratch<BackwardRow<T>>(platform, count * problem.batch * plan.workers);
  auto* const forward_rows = scratch<ForwardRow<T>>(platform, Forward::kTogether * plan.workers);
  auto* const row_storage = scratch<int64_t>(platform, count * problem.batch * plan.workers);
  auto* const sweeps = scratch<Sweep>(platform, count * plan.workers);
  int64_t const pitch = pitch_for(problem, Vec<C>::lanes),
                rebuild_size = problem.recompute ? Forward::kTogether * pitch : 0;
  auto* const rebuild_state = scratch<C>(platform, 3 * rebuild_size * plan.workers);
  auto* const rebuild_operand = scratch<operand_t<T>>(platform, 2 * rebuild_size * plan.workers);
  int64_t const a_worker = std::max(buffers[0].copied, problem.recompute ? again[0].copied : 0);
  auto* const copies = scratch<packed_t<T>>(platform, plan.workers * a_worker);
  auto* const rebuild_y = scratch<T>(platform, pitch * plan.workers);

  slots.run(count, plan, platform, [&](int first, int n, int place, int worker, int workers, Barrier& barrier) {
    int const last = first + n, base = worker * count;
    for (int g = first; g < last; ++g) {
      pack_backward(problem, groups[g], gradients[g], buffers[g], worker, workers);
      if (problem.recompute) pack_forward<Cell, T>(rebuilt, groups[g], again[g], worker, workers);
      if (gradients[g].d_x) d_x[g].pack(worker, workers);
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
        Forward sweep(cell, rebuilt, groups[g], again[g], time[g], Share{time[g].order, problem.batch},
                      forward_rows + place * Forward::kTogether, copies + place * a_worker);
        sweep.set_gates(again[g].gates, Turn{}, false);
        sweep.rebuild(scratch_rows, worker, workers);
      }
    }
    end_streams();
    barrier.wait(worker, workers);
    Team<Sweep> const team{problem,
                           time + first,
                           n,
                           plan,
                           places,
                           worker,
                           workers,
                           barrier,
                           sweeps + base + first,
                           row_storage + (base + first) * problem.batch};
    team.begin([&](int i, Share const& share) {
      int const g = first + i;
      return Sweep(cell, problem, groups[g], gradients[g], buffers[g], time[g], share,
                   rows + (base + g) * problem.batch, copies + place * a_worker);
    });
    for (int64_t c = 0, s = 0; c < turns.count; ++c, s += turns.steps) {
      int64_t const steps = std::min(turns.steps, problem.steps - s), done = s + steps;
      bool const begins = c == 0, ends = c + 1 == turns.count;
      for (int g = first; g < last; ++g) {
        Turn const turn = turn_of(problem, time[g], !groups[g].reverse, s, steps);
        team.sweeps[g - first].begin_turn(turn, team.first(), team.stride());
        if (buffers[g].live_x) copy_live(problem, time[g], groups[g], turn, buffers[g].live_x, worker, workers);
      }
      team.run(s, done, [&](int i, int stage) {
        return stage == 0 ? buffers[first + i].first.count : buffers[first + i].second.count;
      });
      end_streams();
      barrier.wait(worker, workers);
      for (int g = first; g < last; ++g) {
        Turn const turn = turn_of(problem, time[g], !groups[g].reverse, s, steps);
        sum_biases<Cell, T>(problem, gradients[g], buffers[g], turn.count, begins, ends, worker, workers);
        if (gradients[g].d_x) {
          // The direction that shares it comes to its own steps of this turn after this one, or before.
          bool const second = gradients[g].accumulate_x,
                     shared = second || (g + 1 < last && gradients[g + 1].accumulate_x);
          int64_t const others = second ? done : s;
          if (second) barrier.wait(worker, workers);
          if (shared) {
            run_d_x(d_x[g], problem, time[g], turn, groups[g].reverse,
                    groups[g].reverse ? problem.steps - others : others, barrier, worker, workers);
          } else {
            d_x[g].rows(0, team.rows(g - first, turn, d_x[g].own_rows ? lists + worker * listed : nullptr),
                        d_x[g].c + turn.first * d_x[g].c_stride, worker, workers);
          }
        }
        for (int i = first_product[g]; i < first_product[g + 1]; ++i)
          products[i].run_turn(turn.first, problem.per_sample ? problem.steps : turn.count, begins, ends, barrier,
                               worker, workers, i > first_product[g] ? &products[i - 1] : nullptr);
      }
      barrier.wait(worker, workers);
    }
    for (int i = 0; i < n; ++i) {
      if (team.sweeps[i].rows().count == 0) continue;
      Part const mine(buffers[first + i].first.count, team.first(), team.stride());
      team.sweeps[i].end(mine.begin, mine.end);
    }
  });
}

}  // namespace rnnkern::RNNKERN_ISA
