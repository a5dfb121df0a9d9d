// The backward half of driver.h.
#pragma once

#include "driver.h"

namespace rnnkern::stepwise {

template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::backward(const Group& group, const GroupGradients& gradients) {
  start(group);
  BackwardBuffers buffers;
  bool const recompute = group.gates == nullptr;
  if (recompute || two_stages || gradients.d_w_hh != nullptr) {
    buffers.operand = workspace_.template take<T>(rows_ * R_);
    gather_operand(group, buffers.operand);
  }
  if (recompute) {  // a row of d_gates is as wide as one of the gates, which are ours here: it replaces them
    static_assert(Columns::count == K);
    buffers.d_gates = workspace_.template take<T>(rows_ * K * H_);
    rebuild(group, buffers.operand, buffers.d_gates);
    buffers.saved = buffers.d_gates;
  } else {
    buffers.d_gates = workspace_.template take<T>(rows_ * Columns::count * H_);
    buffers.saved = typed(group.gates);
  }
  buffers.product = workspace_.template take<V>(B_ * R_);
  if (two_stages || P_ > 0) buffers.d_inner = workspace_.template take<V>(B_ * H_);
  if (two_stages && gradients.d_w_hh != nullptr) buffers.reset_operand = workspace_.template take<T>(rows_ * H_);
  if (P_ > 0) {
    buffers.d_projected = workspace_.template take<T>(rows_ * P_);
    if (gradients.d_w_hr != nullptr) buffers.unprojected = workspace_.template take<T>(rows_ * H_);
  }

  HiddenGradient<T> h{workspace_.template take<V>(B_ * R_), nullptr, typed(group.mask), R_};
  h.zoneout = zoneout(group, group.zone_h, R_);
  h.d_y = typed(gradients.d_y);
  h.stride = group.y_stride;
  CellGradient<T> c;
  if (Cell::states == 2) {
    c = {workspace_.template take<V>(B_ * H_), H_, zoneout(group, group.zone_c, H_), typed(gradients.d_cells)};
  }

  int64_t const last = group.reverse ? 0 : T_ - 1, stride = group.reverse ? 1 : -1;
  for_each_(B_, H_, BeginBackward<T>{h, c, typed(gradients.d_h_n), typed(gradients.d_c_n)});
  for (int64_t step = 0; step < T_; ++step) {
    backward_step(group, course_at(group, last + step * stride), h, c, buffers);
    h.product = buffers.product;
  }
  FinishBackward<T> finish{course_at(group, last + T_ * stride), h, c, typed(gradients.d_h_0), typed(gradients.d_c_0)};
  for_each_(B_, H_, finish);
  parameter_gradients(group, gradients, buffers);
}

template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::backward_step(const Group& group, const Course& course, const HiddenGradient<T>& h,
                                             const CellGradient<T>& c, const BackwardBuffers& buffers) const {
  // Rows that ended at the step after (in reverse, packed) still have its product to take.
  int64_t const rows = course.now.rows, held = std::max(rows, course.after.rows);
  int64_t const stride = Columns::count * H_;
  const T* const w_hh = typed(group.w_hh);
  T* const d_gates = buffers.d_gates + course.now.offset * stride;
  Past<T> const past_h{typed(group.h_0), typed(group.y), R_, group.y_stride};
  if constexpr (two_stages) {
    for_each_(held, H_, CandidateBackward<T>{course, H_, buffers.saved, buffers.d_gates, h, past_h});
    products_.recurrent_backward(d_gates, stride, rows, w_hh, candidate, buffers.d_inner, false);
    GateBackward<T> gate{course, H_, buffers.saved, buffers.d_gates, buffers.operand};
    gate.d_reset_operand = buffers.d_inner;
    gate.d_operand = buffers.product;
    gate.reset_operand = buffers.reset_operand;
    for_each_(rows, H_, gate);
    products_.recurrent_backward(d_gates, stride, rows, w_hh, reset_update, buffers.product, true);
  } else {
    BackwardStep<Cell, T> step{cell_, course, H_, buffers.saved, buffers.d_gates, h, c, past_h};
    step.past_c = {typed(group.c_0), typed(group.cells), H_, H_};
    if (P_ > 0) {
      for_each_(held, P_, ProjectedBackward<T>{course, h, buffers.d_projected});
      products_.backward(buffers.d_projected + course.now.offset * P_, P_, rows, typed(group.w_hr), P_, H_,
                         buffers.d_inner, false);
      step.d_unprojected = buffers.d_inner;
      step.unprojected = buffers.unprojected;
    }
    for_each_(P_ > 0 ? rows : held, H_, step);
    products_.recurrent_backward(d_gates, stride, rows, w_hh, all_gates, buffers.product, false);
  }
}

template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::gather_operand(const Group& group, T* operand) {
  GatherOperand<T> gather;
  gather.calendar = {T_, B_, device_offsets()};
  gather.course.reverse = group.reverse;
  gather.course.lengths = group.schedule.lengths;
  gather.course.reset = group.schedule.reset;
  gather.past = {typed(group.h_0), typed(group.y), R_, group.y_stride};
  gather.operand = {operand, typed(group.mask), R_};
  for_each_(T_ * B_, R_, gather);
}

// The gates from x and the operand, some rows at a time: the recurrent product is wider than the gates where they are
// stored in 16 bits.
template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::rebuild(const Group& group, const T* operand, T* gates) {
  int64_t const width = K * H_, chunk = std::clamp<int64_t>(chunk_elements_ / (G * H_), 1, std::max<int64_t>(rows_, 1));
  const T* const w_hh = typed(group.w_hh);
  V* const product = workspace_.template take<V>(chunk * G * H_);
  T* const inner = two_stages ? workspace_.template take<T>(chunk * H_) : nullptr;
  input_product(group, 0, rows_, gates, width);
  for (int64_t first = 0; first < rows_; first += chunk) {
    int64_t const rows = std::min(chunk, rows_ - first);
    Gates<T> here{H_, width, 0, gates + first * width, product, G * H_, typed(group.b_ih), typed(group.b_hh)};
    const T* const operands = operand + first * R_;
    if constexpr (two_stages) {
      Course everything;
      everything.now.rows = rows;
      products_.recurrent(operands, rows, w_hh, reset_update, product);
      here.product_width = 2 * H_;
      for_each_(rows, H_, GateStep<T>{everything, here, operands, inner});
      products_.recurrent(inner, rows, w_hh, candidate, product);
      here.product_width = H_;
      for_each_(rows, H_, RebuildCandidate<T>{here});
    } else {
      products_.recurrent(operands, rows, w_hh, all_gates, product);
      for_each_(rows, H_, RebuildGates<Cell, T>{cell_, here});
    }
  }
}

template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::parameter_gradients(const Group& group, const GroupGradients& gradients,
                                                   const BackwardBuffers& buffers) {
  int64_t const stride = Columns::count * H_;
  const T* const d_gates = buffers.d_gates;

  if (T* const d_w_hh = typed(gradients.d_w_hh)) {
    if constexpr (two_stages) {
      products_.recurrent_weight_gradient(d_gates, stride, rows_, buffers.operand, reset_update, d_w_hh);
      products_.recurrent_weight_gradient(d_gates, stride, rows_, buffers.reset_operand, candidate, d_w_hh);
    } else {
      products_.recurrent_weight_gradient(d_gates, stride, rows_, buffers.operand, all_gates, d_w_hh);
    }
  }
  if (gradients.d_w_hr != nullptr) {
    products_.weight_gradient(buffers.d_projected, P_, rows_, P_, buffers.unprojected, H_, typed(gradients.d_w_hr));
  }

  const T* x = typed(group.x);
  if (gradients.d_w_ih != nullptr && group.schedule.lengths != nullptr) {
    T* const masked = workspace_.template take<T>(rows_ * I_);
    for_each_(rows_, I_, MaskedInput<T>{B_, group.schedule.lengths, x, masked, I_});
    x = masked;
  }
  // The gates that w_ih shares with w_hh, and, where it has one, its own last one.
  GateSpan const spans[2] = {{0, Columns::shared, Columns::recurrent}, {G - 1, 1, 0}};
  for (int i = 0; i < (Cell::split_gate ? 2 : 1); ++i) {
    auto const [first, count, column] = spans[i];
    const T* const d = d_gates + column * H_;
    int64_t const height = count * H_;
    if (T* const d_x = typed(gradients.d_x)) {
      products_.backward(d, stride, rows_, typed(group.w_ih) + first * H_ * I_, height, I_, d_x,
                         gradients.accumulate_x || i > 0);
    }
    if (T* const d_w_ih = typed(gradients.d_w_ih)) {
      products_.weight_gradient(d, stride, rows_, height, x, I_, d_w_ih + first * H_ * I_);
    }
    auto part = [&](void* bias) { return bias == nullptr ? nullptr : typed(bias) + first * H_; };
    products_.sum_rows(d, stride, rows_, height, part(gradients.d_b_ih), i == 0 ? part(gradients.d_b_hh) : nullptr,
                       workspace_);
  }
  if (Cell::split_gate && gradients.d_b_hh != nullptr) {
    products_.sum_rows(d_gates + G * H_, stride, rows_, H_, typed(gradients.d_b_hh) + (G - 1) * H_, nullptr,
                       workspace_);
  }
}

}  // namespace rnnkern::stepwise
