// A layer backward, in phases that all workers run together: pack the weights (and make gates again that were not
// kept); then, in turns of some steps, the time loops and the products for the gradients of the weights and of x, which
// so find the gates' gradients in the cache, and need little memory for them.
#pragma once

#include "backward_products.h"
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
    buffers.d_projected = scratch<T>(platform, rows_of_turn * size);
    buffers.unprojected = scratch<T>(platform, rows_of_turn * hidden);
  }
  buffers.d_bias = scratch<C>(platform, problem.samples() * (problem.gate_size() + hidden));
  buffers.pitch = pitch_for(problem, Vec<C>::lanes);
  for (int i = 0; i < Cell::states; ++i) buffers.carry[i] = scratch<C>(platform, places * buffers.pitch);
  buffers.d_operand_size = gates * hidden;
  for (auto*& d_operand : buffers.d_operand) d_operand = scratch<Operand>(platform, places * buffers.d_operand_size);
  if (two_stage_gru || projection) buffers.inner = scratch<Operand>(platform, places * buffers.pitch);
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

// A layer backward: the memory that its workers share, made once, and the phases that they run together.
template <class Cell, class T>
class BackwardRun {
  using C = compute_t<T>;
  using Sweep = BackwardSweep<Cell, T>;
  using Forward = ForwardSweep<Cell, T>;

 public:
  BackwardRun(const Cell& cell, const Problem& problem, const Group* groups, const GroupGradients* gradients, int count,
              const Sharing& sharing, CpuPlatform& platform)
      : cell_(cell), problem_(problem), rebuilt_(problem), groups_(groups), gradients_(gradients), count_(count),
        sharing_(sharing), platform_(platform), time_(scratch<Timeline>(platform, count)),
        pairs_(std::any_of(gradients, gradients + count, [](auto& one) { return one.accumulate_x; })),
        slots_(sharing, count, pairs_ ? 2 : 1), places_(problem, sharing, Vec<C>::lanes),
        turns_(BackwardTurns::make<T>(problem)), rows_of_turn_(turns_.steps * problem.batch) {
    rebuilt_.save = true, rebuilt_.recompute = false;
    make_timelines(problem, groups, count, time_, platform);
    make_groups();
    make_weight_products();
    make_workers();
  }

  void operator()() {
    slots_.run(count_, sharing_, platform_,
               [&](int first, int n, int place, int worker, int workers, Barrier& barrier) {
                 run({first, first + n, place, worker, workers, barrier});
               });
  }

 private:
  // A worker's part: groups [first, last) with others, and its place among those that run at the same time.
  struct Worker {
    int first, last, place, worker, workers;
    Barrier& barrier;

    void wait() const { barrier.wait(worker, workers); }
  };

  // Each group's buffers and products but those of the weights' gradients, which are counted.
  void make_groups() {
    again_ = scratch<ForwardBuffers<T>>(platform_, count_);
    again_products_ = scratch<PackedGemm<T>>(platform_, count_);
    buffers_ = scratch<BackwardBuffers<T>>(platform_, count_);
    d_x_ = scratch<PackedGemm<T>>(platform_, count_);
    d_x_scratch_ = zeros<ProductScratch<T>>(platform_, slots_.count);
    first_product_ = scratch<int>(platform_, count_ + 1);
    first_product_[0] = 0;
    for (int g = 0; g < count_; ++g) {
      make_buffers(g);
      if (gradients_[g].d_x) make_d_x(g);
      if (problem_.recompute) new (&again_products_[g]) PackedGemm<T>(input_product(problem_, groups_[g], again_[g]));
      first_product_[g + 1] =
          first_product_[g] + weight_products<Cell, T>(problem_, groups_[g], gradients_[g], buffers_[g], nullptr);
    }
  }

  void make_buffers(int g) {
    Group const& group = groups_[g];
    int const slot = slots_.slot(g);
    if (slot == g) {
      int const among = sharing_.split == Split::rows ? sharing_.workers : 1;
      int64_t const rows = std::min(problem_.batch, (problem_.batch * count_ + among - 1) / among);
      PanelUse const use{.rows = std::max<int64_t>(1, rows), .workers = sharing_.unit_workers()};
      T* const gates = problem_.recompute ? scratch<T>(platform_, problem_.rows * problem_.saved_size()) : nullptr;
      if (gates)
        new (&again_[g]) ForwardBuffers<T>(
            forward_buffers<Cell, T>(problem_, group, gates, {.rows = Forward::kTogether}, nullptr, platform_));
      const T* const saved = gates ? gates : static_cast<const T*>(group.gates);
      new (&buffers_[g])
          BackwardBuffers<T>(backward_buffers<Cell, T>(problem_, saved, use, rows_of_turn_, places_.count, platform_));
      set_shared(buffers_[g], sharing_, slots_.workers(sharing_));
    } else {
      if (problem_.recompute) {
        new (&again_[g]) ForwardBuffers<T>(again_[slot]);
        again_[g].set_group(problem_, group);
      }
      new (&buffers_[g]) BackwardBuffers<T>(buffers_[slot]);
      if (!problem_.recompute) buffers_[g].saved = static_cast<const T*>(group.gates);
    }
    if (!time_[g].uniform && !time_[g].offsets && gradients_[g].d_w_ih && !buffers_[slot].live_x)
      buffers_[g].live_x = buffers_[slot].live_x = scratch<T>(platform_, rows_of_turn_ * problem_.input_size);
  }

  void make_d_x(int g) {
    int const slot = slots_.slot(g), workers = slots_.workers(sharing_);
    new (&d_x_[g]) PackedGemm<T>(d_x_product(problem_, groups_[g], gradients_[g], buffers_[g], rows_of_turn_));
    if (!d_x_scratch_[slot].panels) d_x_scratch_[slot] = ProductScratch<T>::make(&d_x_[g], 1, workers, platform_);
    d_x_scratch_[slot].give(d_x_[g]);
    bool const own_rows = makes_own_rows(d_x_[g], problem_, sharing_, workers);
    if (own_rows) listed_ = rows_of_turn_;
    d_x_[g].own_rows = own_rows && !pairs_;
  }

  void make_weight_products() {
    products_ = scratch<PackedGemm<T>>(platform_, first_product_[count_]);
    for (int g = 0; g < count_; ++g)
      weight_products<Cell, T>(problem_, groups_[g], gradients_[g], buffers_[g], products_ + first_product_[g]);
    if (turns_.count > 1)  // what a turn sums waits for the next
      for (int i = 0; i < first_product_[count_]; ++i)
        products_[i].partial = scratch<C>(platform_, products_[i].partial_elements(true));
    slots_.share(products_, [&](int g) { return first_product_[g]; }, count_, sharing_, platform_);
    if (problem_.recompute) slots_.share(again_products_, [](int g) { return g; }, count_, sharing_, platform_);
  }

  // What each worker has for itself.
  void make_workers() {
    int64_t const live = count_ * problem_.batch;
    lists_ = scratch<int64_t>(platform_, sharing_.workers * listed_);
    rows_ = scratch<BackwardRow<T>>(platform_, live * sharing_.workers);
    forward_rows_ = scratch<ForwardRow<T>>(platform_, Forward::kTogether * sharing_.workers);
    row_storage_ = scratch<int64_t>(platform_, live * sharing_.workers);
    sweeps_ = scratch<Sweep>(platform_, count_ * sharing_.workers);
    pitch_ = pitch_for(problem_, Vec<C>::lanes);
    rebuild_size_ = problem_.recompute ? Forward::kTogether * pitch_ : 0;
    rebuild_state_ = scratch<C>(platform_, 3 * rebuild_size_ * sharing_.workers);
    rebuild_operand_ = scratch<operand_t<T>>(platform_, 2 * rebuild_size_ * sharing_.workers);
    copied_ = std::max(buffers_[0].copied, problem_.recompute ? again_[0].copied : 0);
    copies_ = scratch<packed_t<T>>(platform_, sharing_.workers * copied_);
    rebuild_y_ = scratch<T>(platform_, pitch_ * sharing_.workers);
  }

  void run(Worker const& here) {
    int const worker = here.worker, workers = here.workers;
    for (int g = here.first; g < here.last; ++g) {
      pack_backward(problem_, groups_[g], gradients_[g], buffers_[g], worker, workers);
      if (problem_.recompute) pack_forward<Cell, T>(rebuilt_, groups_[g], again_[g], worker, workers);
      if (gradients_[g].d_x) d_x_[g].pack(worker, workers);
    }
    if (problem_.recompute) rebuild_gates(here);
    end_streams();
    here.wait();
    int const mine = worker * count_ + here.first;
    Team<Sweep> const team{problem_,
                           time_ + here.first,
                           here.last - here.first,
                           sharing_,
                           places_,
                           worker,
                           workers,
                           here.barrier,
                           sweeps_ + mine,
                           row_storage_ + mine * problem_.batch};
    team.begin([&](int i, Share const& share) {
      int const g = here.first + i;
      return Sweep(cell_, problem_, groups_[g], gradients_[g], buffers_[g], time_[g], share,
                   rows_ + (worker * count_ + g) * problem_.batch, copies_ + here.place * copied_);
    });
    for (int64_t turn = 0; turn < turns_.count; ++turn) run_turn(here, team, turn);
    for (int i = 0; i < team.groups; ++i) {
      if (team.sweeps[i].rows().count == 0) continue;
      Part const panels(buffers_[here.first + i].first.count, team.first(), team.stride());
      team.sweeps[i].end(panels.begin, panels.end);
    }
  }

  // Gates that were not kept are made again.
  void rebuild_gates(Worker const& here) {
    C* const state = rebuild_state_ + here.place * 3 * rebuild_size_;
    auto* const operand = rebuild_operand_ + here.place * 2 * rebuild_size_;
    typename Forward::Rebuild const scratch_rows{operand,
                                                 operand + rebuild_size_,
                                                 {state, state + rebuild_size_},
                                                 state + 2 * rebuild_size_,
                                                 rebuild_y_ + here.place * pitch_};
    for (int g = here.first; g < here.last; ++g) again_products_[g].run(here.barrier, here.worker, here.workers);
    for (int g = here.first; g < here.last; ++g) {
      Forward sweep(cell_, rebuilt_, groups_[g], again_[g], time_[g], Share{time_[g].order, problem_.batch},
                    forward_rows_ + here.place * Forward::kTogether, copies_ + here.place * copied_);
      sweep.set_gates(again_[g].gates, Turn{}, false);
      sweep.rebuild(scratch_rows, here.worker, here.workers);
    }
  }

  // The steps of a turn, then what is multiplied and summed over its rows.
  void run_turn(Worker const& here, Team<Sweep> const& team, int64_t index) {
    int64_t const from = index * turns_.steps, steps = std::min(turns_.steps, problem_.steps - from);
    bool const begins = index == 0, ends = index + 1 == turns_.count;
    auto const turn_of_group = [&](int g) { return turn_of(problem_, time_[g], !groups_[g].reverse, from, steps); };
    for (int g = here.first; g < here.last; ++g) {
      Turn const turn = turn_of_group(g);
      team.sweeps[g - here.first].begin_turn(turn, team.first(), team.stride());
      if (buffers_[g].live_x)
        copy_live(problem_, time_[g], groups_[g], turn, buffers_[g].live_x, here.worker, here.workers);
    }
    team.run(from, from + steps);
    end_streams();
    here.wait();
    for (int g = here.first; g < here.last; ++g) {
      Turn const turn = turn_of_group(g);
      sum_biases<Cell, T>(problem_, gradients_[g], buffers_[g], turn.count, begins, ends, here.worker, here.workers);
      if (gradients_[g].d_x) run_d_x_of_turn(here, team, g, turn, from, from + steps);
      for (int i = first_product_[g]; i < first_product_[g + 1]; ++i)
        products_[i].run_turn(turn.first, problem_.per_sample ? problem_.steps : turn.count, begins, ends, here.barrier,
                              here.worker, here.workers, i > first_product_[g] ? &products_[i - 1] : nullptr);
    }
    here.wait();
  }

  // Steps [from, to) in the order of processing.
  void run_d_x_of_turn(Worker const& here, Team<Sweep> const& team, int g, Turn const& turn, int64_t from, int64_t to) {
    PackedGemm<T> const& product = d_x_[g];
    // The direction that shares it comes to its own steps of this turn after this one, or before.
    bool const second = gradients_[g].accumulate_x,
               shared = second || (g + 1 < here.last && gradients_[g + 1].accumulate_x), reverse = groups_[g].reverse;
    int64_t const others = second ? to : from;
    if (second) here.wait();
    if (shared)
      return run_d_x(product, problem_, time_[g], turn, reverse, reverse ? problem_.steps - others : others,
                     here.barrier, here.worker, here.workers);
    int64_t* const list = product.own_rows ? lists_ + here.worker * listed_ : nullptr;
    product.rows(0, team.rows(g - here.first, turn, list), product.c + turn.first * product.c_stride, here.worker,
                 here.workers);
  }

  const Cell& cell_;
  const Problem& problem_;
  Problem rebuilt_;  // forward's, to make gates again
  const Group* groups_;
  const GroupGradients* gradients_;
  int count_;
  const Sharing& sharing_;
  CpuPlatform& platform_;
  Timeline* time_;
  bool pairs_;  // two directions add to one gradient of x
  Slots slots_;
  Places places_;
  BackwardTurns turns_;
  int64_t rows_of_turn_;
  // Of each group.
  ForwardBuffers<T>* again_;
  BackwardBuffers<T>* buffers_;
  PackedGemm<T>*again_products_, *d_x_;
  ProductScratch<T>* d_x_scratch_;  // of each slot
  PackedGemm<T>* products_;         // of the weights' gradients: group g's begin at first_product_[g]
  int* first_product_;
  // Of each worker.
  int64_t listed_ = 0;  // rows of a turn, where workers make their own of d_x
  int64_t* lists_;
  BackwardRow<T>* rows_;
  ForwardRow<T>* forward_rows_;
  int64_t* row_storage_;
  Sweep* sweeps_;
  int64_t pitch_, rebuild_size_, copied_;
  C* rebuild_state_;
  operand_t<T>* rebuild_operand_;
  packed_t<T>* copies_;
  T* rebuild_y_;
};

template <class Cell, class T>
void backward(const Cell& cell, const Problem& problem, const Group* groups, const GroupGradients* gradients, int count,
              const Sharing& sharing, CpuPlatform& platform) {
  BackwardRun<Cell, T>(cell, problem, groups, gradients, count, sharing, platform)();
}

}  // namespace rnnkern::RNNKERN_ISA
