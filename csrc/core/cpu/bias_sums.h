// The biases' gradients: sums of the gates' gradients over all rows.
#pragma once

#include "backward_sweep.h"

namespace rnnkern::RNNKERN_ISA {

// Sums of columns [first, last) of `rows` rows, 256 rows at a time, added to those of the turns before.
template <class T>
void sum_rows(const T* from, int64_t stride, int64_t rows, int64_t first, int64_t last, bool add, compute_t<T>* to) {
  using C = compute_t<T>;
  using V = Vec<C>;
  constexpr int kWide = 4;  // vectors at a time: whole cache lines, several of them
  for (int64_t j = first; j < last; j += kWide * V::lanes) {
    V sum[kWide];
    int n[kWide];
    for (int v = 0; v < kWide; ++v) {
      n[v] = int(std::clamp<int64_t>(last - j - v * V::lanes, 0, V::lanes));
      sum[v] = add ? load<V>(to + j + v * V::lanes, n[v]) : V(C(0));
    }
    for (int64_t r = 0; r < rows; r += 256) {
      V part[kWide];
      for (V& p : part) p = V(C(0));
      for (int64_t i = r; i < std::min(rows, r + 256); ++i) {
        const T* const row = from + i * stride + j;
        prefetch_lines<kWide * V::lanes * sizeof(T), 2>(row + 8 * stride);
        for (int v = 0; v < kWide; ++v) part[v] = part[v] + load<V>(row + v * V::lanes, n[v]);
      }
      for (int v = 0; v < kWide; ++v) sum[v] = sum[v] + part[v];
    }
    for (int v = 0; v < kWide; ++v) store(to + j + v * V::lanes, sum[v], n[v]);
  }
}

// The biases' gradients, a turn's part; with the last one they are stored.
template <class Cell, class T>
void sum_biases(const Problem& problem, const GroupGradients& gradients, const BackwardBuffers<T>& buffers,
                int64_t rows, bool begins, bool ends, int worker, int workers) {
  if (!gradients.d_b_ih && !gradients.d_b_hh) return;
  int64_t const all = problem.gate_size(), hidden = problem.hidden_size, split = all - hidden;
  int64_t const samples = problem.samples();
  constexpr int64_t kColumns = kLine / sizeof(compute_t<T>);
  Part const mine((all + kColumns - 1) / kColumns, worker, workers);  // the columns that the products copy
  for (int64_t b = 0; b < samples; ++b) {
    compute_t<T>* const sums = buffers.d_bias + b * (all + hidden);
    int64_t const first = mine.begin * kColumns, last = std::min(all, mine.end * kColumns),
                  shared = Cell::split_gate ? split : all;
    sum_rows(buffers.d_gates + b * all, all * samples, rows / samples, first, last, !begins, sums);
    if (last > shared)
      sum_rows(buffers.d_split + b * hidden, hidden * samples, rows / samples, std::max(first, split) - split,
               last - split, !begins, sums + all);
    if (!ends) continue;
    for (int64_t j = first; j < last; ++j) {
      if (gradients.d_b_ih) static_cast<T*>(gradients.d_b_ih)[b * all + j] = from_compute<T>(sums[j]);
      if (gradients.d_b_hh)
        static_cast<T*>(gradients.d_b_hh)[b * all + j] = from_compute<T>(sums[j < shared ? j : all + j - split]);
    }
  }
}

}  // namespace rnnkern::RNNKERN_ISA
