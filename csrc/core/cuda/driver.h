// stepwise on the host: the loop over steps, written once. `ForEach` runs a functor over (row, unit): CudaForEach on a
// GPU, two loops in the tests.
#pragma once

#include "surroundings.h"

namespace rnnkern::stepwise {

template <class Cell, class T, class ForEach>
class Driver : private Surroundings<Cell, T, ForEach> {
  using Base = Surroundings<Cell, T, ForEach>;
  using Base::all_gates, Base::candidate, Base::G, Base::reset_update, Base::two_stages, Base::typed;
  using Base::B_, Base::H_, Base::P_, Base::R_, Base::T_;
  using Base::calendar_, Base::cell_, Base::for_each_, Base::products_, Base::workspace_;
  using typename Base::BackwardBuffers;
  using typename Base::Columns;
  using typename Base::GateBuffer;
  using typename Base::V;

 public:
  using Base::Base;

  void forward(const Group& group);
  void backward(const Group& group, const GroupGradients& gradients);

 private:
  // What one step backward leaves for the next.
  struct StepBuffers {
    V* product = nullptr;  // [B, R]
    V* d_inner = nullptr;  // [B, H] gradient of h before the projection, or of gru_v1's r * operand
  };

  void start(const Group& group) {
    this->rewind();
    this->set_calendar(group);
  }
  Course course_at(const Group& group, int64_t t) const;
  void forward_step(const Group& group, const Course& course, const Gates<T>& gates, const Hidden<T>& h,
                    const State<T>& c, T* inner, V* product) const;
  void backward_step(const Group& group, const Course& course, const HiddenGradient<T>& h, const CellGradient<T>& c,
                     const BackwardBuffers& buffers, const StepBuffers& step_buffers) const;

  Zoneout<T> zoneout(const Group& group, const bool* mask, int64_t width) const {
    return {mask, width, static_cast<V>(group.zoneout)};
  }
};

template <class Cell, class T, class ForEach>
Course Driver<Cell, T, ForEach>::course_at(const Group& group, int64_t t) const {
  int64_t const forward = group.reverse ? -1 : 1;
  return {group.reverse,   group.schedule.lengths,   group.schedule.reset, calendar_.at(t - forward),
          calendar_.at(t), calendar_.at(t + forward)};
}

}  // namespace rnnkern::stepwise

#include "driver_backward.h"
#include "driver_forward.h"
