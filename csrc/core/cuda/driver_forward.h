// The forward half of driver.h.
#pragma once

#include "driver.h"

namespace rnnkern::stepwise {

template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::forward(const Group& group) {
  start(group);
  GateBuffer const buffer = this->gate_buffer(group);
  Gates<T> gates{H_, buffer.width, 0, buffer.value};
  gates.b_ih = typed(group.b_ih);
  gates.b_hh = typed(group.b_hh);
  V* const product = workspace_.template take<V>(B_ * std::max(G * H_, P_));
  T* const inner = workspace_.template take<T>(B_ * H_);

  Hidden<T> h;
  h.state = {workspace_.template take<V>(B_ * R_), R_, zoneout(group, group.zone_h, R_), typed(group.y),
             group.y_stride};
  h.operand = {workspace_.template take<T>(B_ * R_), typed(group.mask), R_};
  State<T> c;
  if (Cell::states == 2) {
    c = {workspace_.template take<V>(B_ * H_), H_, zoneout(group, group.zone_c, H_), typed(group.cells), H_};
  }

  int64_t const first = group.reverse ? T_ - 1 : 0, stride = group.reverse ? -1 : 1;
  for_each_(B_, std::max(H_, R_), Begin<T>{course_at(group, first), h, c, typed(group.h_0), typed(group.c_0)});
  for (int64_t step = 0; step < T_; ++step) {
    int64_t const t = first + step * stride;
    if (step % buffer.steps == 0) {
      gates.first_row = this->fill_gates(group, buffer, step, std::min(step + buffer.steps, T_));
    }
    forward_step(group, course_at(group, t), gates, h, c, inner, product);
  }
  for_each_(B_, std::max(H_, R_), Finish<T>{h.state, c, typed(group.h_n), typed(group.c_n)});
}

// `inner` [B, H]: h before its projection; gru_v1's r * operand.
template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::forward_step(const Group& group, const Course& course, const Gates<T>& step_gates,
                                            const Hidden<T>& h, const State<T>& c, T* inner, V* product) const {
  int64_t const rows = course.now.rows;
  const T* const w_hh = typed(group.w_hh);
  Gates<T> gates = step_gates;
  gates.product = product;
  if constexpr (two_stages) {
    products_.recurrent(h.operand.value, rows, w_hh, reset_update, product);
    gates.product_width = 2 * H_;
    for_each_(rows, H_, GateStep<T>{course, gates, h.operand.value, inner});
    products_.recurrent(inner, rows, w_hh, candidate, product);
    gates.product_width = H_;
    for_each_(rows, H_, CandidateStep<T>{course, gates, h});
  } else {
    products_.recurrent(h.operand.value, rows, w_hh, all_gates, product);
    gates.product_width = G * H_;
    bool const save = group.gates != nullptr;
    for_each_(rows, H_, ForwardStep<Cell, T>{cell_, course, gates, save, h, c, P_ > 0 ? inner : nullptr});
    if constexpr (Cell::states == 2) {
      if (P_ == 0) return;
      products_.forward(inner, rows, typed(group.w_hr), P_, H_, product, P_);
      for_each_(rows, P_, ProjectedStep<T>{course, product, h});
    }
  }
}

}  // namespace rnnkern::stepwise
