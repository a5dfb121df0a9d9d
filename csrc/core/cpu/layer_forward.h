// A layer forward, in phases that all workers run together: pack the weights, the input product, the time loops.
#pragma once

#include "forward_sweep.h"

namespace rnnkern::RNNKERN_ISA {

// How many rows a worker runs together, and how many steps' gates_x are made at a time: the input product and the time
// loop take turns, so that gates_x is still in the cache when it is read, and gates that nobody keeps need little
// memory.
constexpr int64_t kGatesTogether = int64_t(1) << 18;  // elements of gates_x, or
constexpr int64_t kRowsTogether = 256;                // rows, if that is more: each turn reads all of w_ih

// Whether the input product is made beside the steps: where a single row's weights come from beyond the first cache,
// and those of all that run at the same time not from memory, for each turn reads them all; and where neither product
// is a small part of the other.
template <class T>
bool gains_beside(const Problem& problem, const Sharing& sharing, Slots const& slots) {
  if constexpr (!can_run_beside<T>) return false;
  constexpr int64_t kFewestTurns = 4, kMostBytes = 1 << 24, weight = sizeof(T);
  // Else the same rows might be read as they lie, in another order of the sums, with another number of workers.
  static_assert(kFewestTurns * kBesideRows > kUnpackedRows);
  int64_t const gates = problem.gate_size(), in = problem.input_size, input = gates * in,
                recurrent = gates * problem.state_size() / problem.heads + problem.proj_size * problem.hidden_size;
  int const among = sharing.unit_workers();
  // What 16 bits hold is not a part of a sum; a tile has at least a step.
  bool const in_one = sizeof(T) == sizeof(compute_t<T>) || in <= PackedGemm<T>::kDepth;
  return problem.batch == 1 && problem.steps >= kFewestTurns * kBesideRows && in_one &&
         in >= Packed<packed_t<T>>::together && recurrent <= 4 * input && input <= 4 * recurrent &&
         recurrent * weight > kFirstCacheBytes * among && slots.count * (recurrent + input) * weight < kMostBytes &&
         (sharing.split != Split::none || sharing.workers == 1);
}

struct ForwardTurns {
  int64_t rows_together, steps_together;
  bool beside;  // each turn's input product is made beside the steps of the turn before

  ForwardTurns(const Problem& problem, int groups, const Sharing& sharing, bool beside = false) : beside(beside) {
    int64_t const batch = problem.batch, among = sharing.split == Split::rows ? sharing.workers : 1;
    rows_together = std::max<int64_t>(1, std::min(batch, (batch * groups + among - 1) / among));
    if (beside) {
      steps_together = kBesideRows;
      return;
    }
    int64_t const most = std::max(kGatesTogether, kRowsTogether * problem.gate_size());
    int64_t const turns = (problem.steps * batch * problem.gate_size() - 1) / most + 1;
    steps_together = (problem.steps + turns - 1) / turns;
  }
};

// Between rows of gates that nobody keeps: a cache line more, so that those of several rows lie in different sets.
inline int64_t scratch_gates_stride(const Problem& problem) { return problem.gate_size() + 16; }

// What a worker copies operands into (see PanelSet): it may have to run all rows.
template <class Buffers>
int64_t copied_elements(const Buffers& buffers, int64_t rows) {
  return std::max(buffers.first.operand_elements(rows), buffers.second.operand_elements(rows));
}

// Biases, states and gates of one group whose panels are made. `gates` is where the gates go, or null; without
// `places` there are no states.
template <class Cell, class T, class Panels>
void state_buffers(ForwardBuffers<T, Panels>& buffers, const Problem& problem, const Group& group, T* gates,
                   const Places* places, Platform& platform) {
  using C = compute_t<T>;
  using Operand = operand_t<T>;
  constexpr int lanes = Vec<C>::lanes;
  bool const two_stage_gru = Cell::kind == CellKind::gru_v1, projection = problem.proj_size > 0;
  buffers.bias_x = zeros<C>(platform, problem.gate_size() + lanes);
  if (Cell::split_gate) buffers.bias_h = zeros<C>(platform, problem.gate_size() + lanes);
  buffers.gates_stride = gates ? problem.saved_size() : scratch_gates_stride(problem);
  buffers.gates = gates;
  buffers.pitch = pitch_for(problem, lanes);
  int64_t const size = (places ? places->count : problem.batch) * buffers.pitch;
  buffers.zeros = zeros<C>(platform, buffers.pitch);
  buffers.zero_operand = zeros<Operand>(platform, buffers.pitch);
  if (two_stage_gru || projection) buffers.inner = scratch<Operand>(platform, size);
  if (!places) return;
  for (int parity = 0; parity < 2; ++parity) {
    for (int i = 0; i < Cell::states; ++i) buffers.state[i][parity] = scratch<C>(platform, size);
    if (group.mask || !std::is_same_v<Operand, C>) buffers.operand[parity] = scratch<Operand>(platform, size);
  }
  if (two_stage_gru) buffers.z = scratch<C>(platform, size);
}

// Steps and rows for which packing the weights would take longer than it saves (one Zen 4 thread, LSTM with H 32 to
// 512: read where they lie, 2 steps of a row take 0.5 to 0.8 of the time, 8 of them 0.8 to 0.9, 16 about as long).
constexpr int64_t kFewRowsInAll = 8;

// The same with the panels of the group's weights; of `use`, packed is decided here.
template <class Cell, class T>
ForwardBuffers<T> forward_buffers(const Problem& problem, const Group& group, T* gates, PanelUse use,
                                  const Places* places, Platform& platform) {
  using P = packed_t<T>;
  bool const two_stage_gru = Cell::kind == CellKind::gru_v1, projection = problem.proj_size > 0;
  int64_t const hidden = problem.hidden_size, head = problem.head_size();
  ForwardBuffers<T> buffers;
  use.packed = !places || (problem.steps == 1 ? problem.batch > kUnpackedRows : problem.rows > kFewRowsInAll);
  buffers.first = PanelSet<P>::template make<T>(platform, hidden, problem.heads, two_stage_gru ? 2 : Cell::gates,
                                                projection ? problem.proj_size : head, use);
  if (two_stage_gru) buffers.second = PanelSet<P>::template make<T>(platform, hidden, problem.heads, 1, head, use);
  if (projection) buffers.second = PanelSet<P>::template make<T>(platform, problem.proj_size, 1, 1, hidden, use);
  if (use.packed) {
    buffers.copied = copied_elements(buffers, std::max(problem.batch, use.rows));
  } else if (can_lie_across<P, T> && lie_across<P>(problem.batch)) {
    buffers.copied = elements_across<P>(problem.batch, std::max(buffers.first.depth, buffers.second.depth));
  }
  state_buffers<Cell>(buffers, problem, group, gates, places, platform);
  buffers.set_group(problem, group);
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

// Packs the recurrent weights; those in int8 are packed already.
template <class Cell, class T, class Panels>
void pack_forward(const Problem& problem, const Group& group, const ForwardBuffers<T, Panels>& buffers, int worker,
                  int workers) {
  int64_t const hidden = problem.hidden_size;
  if constexpr (std::is_same_v<Panels, PanelSet<packed_t<T>>>) {
    if (buffers.first.data) {
      auto const pack = [&](const Panels& set, const T* weight) {
        Part const mine(set.count, worker, workers);
        for (int p = mine.begin; p < mine.end; ++p) set.pack_forward(p, weight, hidden);
      };
      pack(buffers.first, buffers.w_first);
      pack(buffers.second, buffers.w_second);
    }
  }
  if (worker != 0 || !group.b_ih) return;
  const T* const b_ih = static_cast<const T*>(group.b_ih);
  const T* const b_hh = static_cast<const T*>(group.b_hh);
  int64_t const all = problem.gate_size(), together = Cell::split_gate ? all - hidden : all;
  for (int64_t i = 0; i < together; ++i) buffers.bias_x[i] = to_compute(b_ih[i]) + to_compute(b_hh[i]);
  for (int64_t i = together; i < all; ++i) {
    buffers.bias_x[i] = to_compute(b_ih[i]);
    buffers.bias_h[i] = to_compute(b_hh[i]);
  }
}

// Memory for the products that are made beside the steps: one for each slot, and for each worker that shares its units.
template <class T>
struct BesideMemory {
  int64_t stride, each;  // between rows of gates; of one product's gates
  Beside<T>* products;
  T* gates;

  BesideMemory(const Problem& problem, const Sharing& sharing, Slots const& slots, bool used, Platform& platform)
      : stride(scratch_gates_stride(problem)), each((2 * kBesideRows + gap_of(stride)) * stride) {
    int64_t const count = used ? slots.count * sharing.unit_workers() : 0;
    products = scratch<Beside<T>>(platform, count);
    gates = scratch<T>(platform, count * each);
  }
  Beside<T>* make(PackedGemm<T> const& product, const Problem& problem, Units units, int64_t at) const {
    return new (&products[at]) Beside<T>(product, problem.hidden_size, units, gates + at * each, stride);
  }
};

// The phases: `buffers` and `products`, the input products, are each group's; `rows` [workers][groups][B].
template <class Cell, class T, class Panels, class Product>
void run_forward(const Cell& cell, const Problem& problem, const Group* groups, int count, const Sharing& sharing,
                 CpuPlatform& platform, Places const& places, ForwardTurns const& turns,
                 const ForwardBuffers<T, Panels>* buffers, const Product* products, ForwardRow<T>* rows) {
  using Sweep = ForwardSweep<Cell, T, Panels>;
  int64_t const batch = problem.batch, steps_together = turns.steps_together;
  Timeline* const time = scratch<Timeline>(platform, count);
  make_timelines(problem, groups, count, time, platform);
  auto* const row_storage = scratch<int64_t>(platform, count * batch * sharing.workers);
  auto* const sweeps = scratch<Sweep>(platform, count * sharing.workers);
  int64_t const a_worker = buffers[0].copied;
  auto* const copies = a_worker > 0 ? scratch<packed_t<T>>(platform, sharing.workers * a_worker) : nullptr;
  bool const own_rows = products[0].own_rows, alone = own_rows || turns.beside;
  int64_t const listed = own_rows ? steps_together * batch : 0;
  auto* const lists = scratch<int64_t>(platform, sharing.workers * listed);
  Slots const slots(sharing, count);
  BesideMemory<T> const memory_beside(problem, sharing, slots, turns.beside, platform);
  auto const turn_from = [&](int g, int64_t s) {
    return turn_of(problem, time[g], groups[g].reverse, s, std::min(steps_together, problem.steps - s));
  };
  slots.run(count, sharing, platform, [&](int first, int n, int place, int worker, int workers, Barrier& barrier) {
    int const last = first + n, base = worker * count;
    for (int g = first; g < last; ++g) {
      pack_forward<Cell, T>(problem, groups[g], buffers[g], worker, workers);
      products[g].pack(worker, workers);
    }
    Team<Sweep> const team{problem,
                           time + first,
                           n,
                           sharing,
                           places,
                           worker,
                           workers,
                           barrier,
                           sweeps + base + first,
                           row_storage + (base + first) * batch};
    team.begin([&](int i, Share const& share) {
      int const g = first + i;
      Beside<T>* beside = nullptr;
      if constexpr (can_run_beside<T> && std::is_same_v<Product, PackedGemm<T>>)
        if (turns.beside && share.count > 0)
          beside = memory_beside.make(products[g], problem, team.units(buffers[g]),
                                      (sharing.split == Split::units ? worker * slots.count : 0) + slots.slot(g));
      return Sweep(cell, problem, groups[g], buffers[g], time[g], share, rows + (base + g) * batch,
                   copies ? copies + place * a_worker : nullptr, beside);
    });
    end_streams();
    barrier.wait(worker, workers);
    auto const each_beside = [&](auto f) {
      if constexpr (can_run_beside<T>)
        for (int i = 0; i < n; ++i)
          if (Beside<T>* const beside = team.sweeps[i].beside()) f(*beside, first + i);
    };
    each_beside([&](auto& beside, int g) {
      beside.begin(turn_from(g, 0));
      beside.finish();
    });
    for (int64_t s = 0; s < problem.steps; s += steps_together) {
      int64_t const next = std::min(s + steps_together, problem.steps);
      for (int g = first; g < last; ++g) {
        Turn const turn = turn_from(g, s);
        auto& sweep = team.sweeps[g - first];
        // Gates that are not kept lie beside each other where a worker makes and reads its own.
        bool const kept = groups[g].gates != nullptr, together = own_rows && !kept;
        int64_t const stride = buffers[g].gates_stride;
        T* gates = buffers[g].gates;
        if (kept) gates += turn.first * stride;
        if (together) gates += (steps_together * sweep.rows().before + worker * gap_of(stride)) * stride;
        sweep.set_gates(gates, turn, together);
        if (turns.beside) continue;
        RowsOf rows_now = team.rows(g - first, turn, own_rows ? lists + worker * listed : nullptr);
        rows_now.together_in_c = together;
        products[g].rows(turn.first, rows_now, gates, worker, workers);
      }
      each_beside([&](auto& beside, int g) {
        if (next < problem.steps) beside.begin(turn_from(g, next));
      });
      if (!alone) barrier.wait(worker, workers);
      team.run(s, next);
      each_beside([](auto& beside, int) { beside.finish(); });
      if (!alone) barrier.wait(worker, workers);
    }
    for (int i = 0; i < n; ++i) team.sweeps[i].end(team.first(), team.stride());
    end_streams();
  });
}

template <class Cell, class T>
void forward(const Cell& cell, const Problem& problem, const Group* groups, int count, const Sharing& sharing,
             CpuPlatform& platform) {
  Slots const slots(sharing, count);
  ForwardTurns const turns(problem, count, sharing, gains_beside<T>(problem, sharing, slots));
  Places const places(problem, sharing, Vec<compute_t<T>>::lanes);
  PanelUse const use{.rows = turns.rows_together,
                     .workers = sharing.unit_workers(),
                     .most_columns = turns.beside ? kPanelColumnsBeside : kMaxColumns};
  auto* const buffers = scratch<ForwardBuffers<T>>(platform, count);
  auto* const products = scratch<PackedGemm<T>>(platform, count);
  auto* const product_scratch = scratch<ProductScratch<T>>(platform, slots.count);
  for (int g = 0; g < count; ++g) {
    T* const kept = static_cast<T*>(groups[g].gates);
    int const slot = slots.slot(g);
    if (slot == g) {
      new (&buffers[g]) ForwardBuffers<T>(forward_buffers<Cell, T>(problem, groups[g], kept, use, &places, platform));
      int64_t const stride = buffers[g].gates_stride,
                    rows = turns.steps_together * problem.batch + sharing.workers * gap_of(stride);
      if (!kept && !turns.beside) buffers[g].gates = scratch<T>(platform, rows * stride);
      set_shared(buffers[g], sharing, slots.workers(sharing));
    } else {
      new (&buffers[g]) ForwardBuffers<T>(buffers[slot]);
      buffers[g].set_group(problem, groups[g]);
    }
    new (&products[g]) PackedGemm<T>(input_product(problem, groups[g], buffers[g]));
    products[g].keep_panels = true;
    if (sharing.split == Split::units) products[g].gates = Cell::gates;
    products[g].m = std::min(problem.rows, turns.steps_together * problem.batch);
    products[g].in_pieces = turns.beside;
    products[g].own_rows = !turns.beside && makes_own_rows(products[g], problem, sharing, slots.workers(sharing));
    if (!products[g].own_rows && turns.steps_together == problem.steps)
      products[g].use_one_pass(slots.workers(sharing));
    if (slot == g) product_scratch[g] = ProductScratch<T>::make(&products[g], 1, slots.workers(sharing), platform);
    product_scratch[slot].give(products[g]);
  }
  run_forward(cell, problem, groups, count, sharing, platform, places, turns, buffers, products,
              scratch<ForwardRow<T>>(platform, count * problem.batch * sharing.workers));
}

}  // namespace rnnkern::RNNKERN_ISA
