// stationary on the host: everything around the sweep kernels, which hold the recurrent weights for all steps. The
// groups of a launch run side by side. `Device` runs a functor over (row, unit), and launches kernels.
#pragma once

#include <algorithm>
#include <limits>

#include "../launch_shape.h"
#include "../surroundings.h"
#include "args.h"
#include "stationary_plan.h"
#include "weights.h"

namespace rnnkern::stationary {

// Zeroes memory, a Quad at a time.
struct ZeroQuads {
  Quad* quads;

  RNNKERN_HD void operator()(int64_t, int64_t i) const { quads[i] = Quad{}; }
};

template <class Cell, class T, class Device>
class Driver : private stepwise::Surroundings<Cell, T, Device> {
  using Base = stepwise::Surroundings<Cell, T, Device>;
  using Base::B_, Base::H_, Base::T_, Base::typed;
  using Base::cell_, Base::workspace_;
  using typename Base::BackwardBuffers;
  using typename Base::GateBuffer;

 public:
  using ForwardKernel = void (*)(ForwardArgs<Cell, T>);
  using BackwardKernel = void (*)(BackwardArgs<Cell, T>);

  Driver(const Cell& cell, const Problem& problem, CudaPlatform& platform, const Device& device, const Choice& choice,
         int64_t chunk_elements)
      : Base(cell, problem, platform, device, chunk_elements), device_(device), choice_(choice), tiling_(choice.tiling),
        heads_(problem.heads) {}

  // For at most choice.groups_per_launch groups.
  void forward(const Group* groups, int count, ForwardKernel kernel);
  void backward(const Group* groups, const GroupGradients* gradients, int count, BackwardKernel kernel);

 private:
  template <class Args>
  Args sweep_args(const Group* groups, int count);
  // What both directions of time have in common.
  template <class ArgsGroup>
  ArgsGroup sweep_group(const Group& group);
  Quad* packed_weights(const Group& group);
  // A sweep whose rows all live at every step and lie where 32 bits reach, with nothing masked, cut or blended.
  bool is_plain(const Group& group) const {
    const Schedule& schedule = group.schedule;
    int64_t const step = B_ * std::max(5 * H_, group.y_stride);  // of the widest tensor with rows
    return schedule.lengths == nullptr && schedule.reset == nullptr && schedule.batch_sizes == nullptr &&
           group.mask == nullptr && group.zone_h == nullptr && group.zone_c == nullptr && group.zoneout == 0 &&
           std::max(step, T_ * B_) <= std::numeric_limits<int>::max();
  }
  template <class Args>
  void launch(void (*kernel)(Args), Args& args);

  const Device& device_;
  const Choice& choice_;
  const Tiling& tiling_;
  int64_t heads_;
  int64_t exchange_quads_ = 0;  // of one launch: operands, then flags
};

template <class Cell, class T, class Device>
void Driver<Cell, T, Device>::forward(const Group* groups, int count, ForwardKernel kernel) {
  this->rewind();
  auto args = sweep_args<ForwardArgs<Cell, T>>(groups, count);
  GateBuffer buffers[kMaxGroups];
  for (int i = 0; i < count; ++i) {
    const Group& group = groups[i];
    auto& to = args.group[i] = sweep_group<ForwardGroup<T>>(group);
    buffers[i] = this->gate_buffer(group, count);
    to.b_ih = typed(group.b_ih), to.b_hh = typed(group.b_hh);
    to.gates = buffers[i].value;
    to.y = typed(group.y);
    to.h_n = typed(group.h_n), to.c_n = typed(group.c_n);
    to.cells = typed(group.cells);
  }
  args.save = groups[0].gates != nullptr;
  args.keep_cells = groups[0].cells != nullptr;
  args.gate_width = buffers[0].width;
  int64_t const part = buffers[0].steps;  // steps whose gates are held at once
  if (part < T_) {
    args.carry_h = workspace_.template take<float>(count * B_ * H_);
    if (Cell::states == 2) args.carry_c = workspace_.template take<float>(count * B_ * H_);
  }
  for (args.begin = 0; args.begin < T_; args.begin = args.end) {
    args.end = std::min(args.begin + part, T_);
    for (int i = 0; i < count; ++i) {
      this->set_calendar(groups[i]);
      args.group[i].first_row = this->fill_gates(groups[i], buffers[i], args.begin, args.end);
    }
    launch(kernel, args);
  }
}

template <class Cell, class T, class Device>
void Driver<Cell, T, Device>::backward(const Group* groups, const GroupGradients* gradients, int count,
                                       BackwardKernel kernel) {
  this->rewind();
  auto args = sweep_args<BackwardArgs<Cell, T>>(groups, count);
  BackwardBuffers buffers[kMaxGroups];
  for (int i = 0; i < count; ++i) {
    const Group& group = groups[i];
    auto& to = args.group[i] = sweep_group<BackwardGroup<T>>(group);
    buffers[i] = this->backward_buffers(group, gradients[i]);
    to.y = typed(group.y), to.cells = typed(group.cells);
    to.saved = buffers[i].saved, to.d_gates = buffers[i].d_gates;
    to.d_y = typed(gradients[i].d_y), to.d_cells = typed(gradients[i].d_cells);
    to.d_h_n = typed(gradients[i].d_h_n), to.d_c_n = typed(gradients[i].d_c_n);
    to.d_h_0 = typed(gradients[i].d_h_0), to.d_c_0 = typed(gradients[i].d_c_0);
  }
  bool const from_y = gradients[0].d_y != nullptr;
  args.plain = args.plain && std::all_of(gradients, gradients + count, [&](const GroupGradients& gradient) {
                 return (gradient.d_y != nullptr) == from_y && gradient.d_cells == nullptr;
               });
  args.d_y_stride = from_y ? args.y_stride : 0;
  if (args.plain && !from_y) {  // only final states have gradients: every step reads the same zeros
    int64_t const quads = (H_ * static_cast<int64_t>(sizeof(T)) + 15) / 16;
    Quad* const zeros = workspace_.template take<Quad>(quads);
    device_(1, quads, ZeroQuads{zeros});
    for (int i = 0; i < count; ++i) args.group[i].d_y = reinterpret_cast<const T*>(zeros);
  }
  args.end = T_;
  launch(kernel, args);
  for (int i = 0; i < count; ++i) this->parameter_gradients(groups[i], gradients[i], buffers[i]);
}

template <class Cell, class T, class Device>
template <class Args>
Args Driver<Cell, T, Device>::sweep_args(const Group* groups, int count) {
  Args args = {};
  args.cell = cell_;
  args.tiling = tiling_;
  args.sizes = Sizes(tiling_, H_ / heads_);
  args.exact = choice_.exact;
  args.heads = static_cast<int>(heads_);
  args.steps = T_, args.batch = B_, args.hidden = H_;
  args.y_stride = groups[0].y_stride;
  args.zoneout = static_cast<float>(groups[0].zoneout);
  args.plain = std::all_of(groups, groups + count, [&](const Group& group) { return is_plain(group); });
  args.groups = count;
  if (tiling_.exchange == Exchange::grid) {
    int64_t const recurrences = count * heads_, operands = recurrences * tiling_.exchange_quads();
    exchange_quads_ = operands + (recurrences * tiling_.flags() + 3) / 4;
    args.exchange = workspace_.template take<Quad>(exchange_quads_);
    args.flags = reinterpret_cast<uint32_t*>(args.exchange + operands);
  }
  return args;
}

template <class Cell, class T, class Device>
template <class ArgsGroup>
ArgsGroup Driver<Cell, T, Device>::sweep_group(const Group& group) {
  this->set_calendar(group);
  ArgsGroup to = {};
  to.reverse = group.reverse;
  to.lengths = group.schedule.lengths, to.reset = group.schedule.reset;
  to.offsets = this->device_offsets();
  to.weights = packed_weights(group);
  to.h_0 = typed(group.h_0), to.c_0 = typed(group.c_0);
  to.mask = typed(group.mask);
  to.zone_h = group.zone_h, to.zone_c = group.zone_c;
  return to;
}

template <class Cell, class T, class Device>
Quad* Driver<Cell, T, Device>::packed_weights(const Group& group) {
  int64_t const quads = heads_ * tiling_.packed_quads();
  Quad* const packed = workspace_.template take<Quad>(quads);
  bool const round = choice_.math == Math::tf32 && !choice_.exact;
  device_(quads / 32, 32, PackWeights<T>{tiling_, round, H_, heads_, typed(group.w_hh), packed});
  return packed;
}

template <class Cell, class T, class Device>
template <class Args>
void Driver<Cell, T, Device>::launch(void (*kernel)(Args), Args& args) {
  LaunchShape shape;
  shape.blocks = static_cast<int>(args.groups * heads_ * tiling_.blocks());
  shape.threads = tiling_.threads();
  shape.shared_bytes = static_cast<size_t>(tiling_.shared_bytes());
  if (tiling_.exchange == Exchange::cluster) shape.cluster = tiling_.team;
  if (tiling_.exchange == Exchange::grid) {
    shape.cooperative = true;
    device_(1, exchange_quads_, ZeroQuads{args.exchange});
  }
  device_.launch(kernel, shape, args);
}

}  // namespace rnnkern::stationary
