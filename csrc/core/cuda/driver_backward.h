// The backward half of driver.h.
#pragma once

#include "driver.h"

namespace rnnkern::stepwise {

template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::backward(const Group& group, const GroupGradients& gradients) {
  start(group);
  BackwardBuffers const buffers = this->backward_buffers(group, gradients);
  StepBuffers step_buffers{workspace_.template take<V>(B_ * R_)};
  if (two_stages || P_ > 0) step_buffers.d_inner = workspace_.template take<V>(B_ * H_);

  HiddenGradient<T> h{workspace_.template take<V>(B_ * R_), nullptr, typed(group.mask), R_};
  h.zoneout = zoneout(group, group.zone_h, R_);
  h.d_y = typed(gradients.d_y);
  h.stride = group.y_stride;
  CellGradient<T> c;
  if (Cell::states == 2) {
    c = {workspace_.template take<V>(B_ * H_), H_, zoneout(group, group.zone_c, H_), typed(gradients.d_cells)};
  }

  int64_t const last = group.reverse ? 0 : T_ - 1, stride = group.reverse ? 1 : -1;
  for_each_(B_, std::max(H_, R_), BeginBackward<T>{h, c, typed(gradients.d_h_n), typed(gradients.d_c_n)});
  for (int64_t step = 0; step < T_; ++step) {
    backward_step(group, course_at(group, last + step * stride), h, c, buffers, step_buffers);
    h.product = step_buffers.product;
  }
  FinishBackward<T> finish{course_at(group, last + T_ * stride), h, c, typed(gradients.d_h_0), typed(gradients.d_c_0)};
  for_each_(B_, std::max(H_, R_), finish);
  this->parameter_gradients(group, gradients, buffers);
}

template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::backward_step(const Group& group, const Course& course, const HiddenGradient<T>& h,
                                             const CellGradient<T>& c, const BackwardBuffers& buffers,
                                             const StepBuffers& step_buffers) const {
  // Rows that ended at the step after (in reverse, packed) still have its product to take.
  int64_t const rows = course.now.rows, held = std::max(rows, course.after.rows);
  int64_t const stride = Columns::count * H_;
  const T* const w_hh = typed(group.w_hh);
  T* const d_gates = buffers.d_gates + course.now.offset * stride;
  Past<T> const past_h{typed(group.h_0), typed(group.y), R_, group.y_stride};
  if constexpr (two_stages) {
    for_each_(held, H_, CandidateBackward<T>{course, H_, buffers.saved, buffers.d_gates, h, past_h});
    products_.recurrent_backward(d_gates, stride, rows, w_hh, candidate, step_buffers.d_inner, false);
    GateBackward<T> gate{course, H_, buffers.saved, buffers.d_gates, buffers.operand};
    gate.d_reset_operand = step_buffers.d_inner;
    gate.d_operand = step_buffers.product;
    gate.reset_operand = buffers.reset_operand;
    for_each_(rows, H_, gate);
    products_.recurrent_backward(d_gates, stride, rows, w_hh, reset_update, step_buffers.product, true);
  } else {
    BackwardStep<Cell, T> step{cell_, course, H_, buffers.saved, buffers.d_gates, h, c, past_h};
    step.past_c = {typed(group.c_0), typed(group.cells), H_, H_};
    if (P_ > 0) {
      for_each_(held, P_, ProjectedBackward<T>{course, h, buffers.d_projected});
      products_.backward(buffers.d_projected + course.now.offset * P_, P_, rows, typed(group.w_hr), P_, H_,
                         step_buffers.d_inner, false);
      step.d_unprojected = step_buffers.d_inner;
      step.unprojected = buffers.unprojected;
    }
    for_each_(P_ > 0 ? rows : held, H_, step);
    products_.recurrent_backward(d_gates, stride, rows, w_hh, all_gates, step_buffers.product, false);
  }
}

}  // namespace rnnkern::stepwise
