// What a turn of steps backward leaves to be multiplied over all its rows: the gradients of x and of the weights.
#pragma once

#include "backward_sweep.h"

namespace rnnkern::RNNKERN_ISA {

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
      weight(b, buffers.d_projected, size, size, buffers.unprojected, hidden, hidden,
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

}  // namespace rnnkern::RNNKERN_ISA
