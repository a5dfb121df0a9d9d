// What every CUDA strategy does around the time loop of a group: the input's product before it, what backward reads
// gathered and rebuilt, and the gradients of the parameters after it. `ForEach` runs a functor over (row, unit).
#pragma once

#include <algorithm>
#include <vector>

#include "backward.cuh"
#include "products.h"
#include "stepwise.h"

namespace rnnkern::stepwise {

template <class Cell, class T, class ForEach>
class Surroundings {
 public:
  Surroundings(const Cell& cell, const Problem& problem, CudaPlatform& platform, const ForEach& for_each,
               int64_t chunk_elements)
      : cell_(cell), for_each_(for_each), products_(problem, platform, for_each), workspace_(platform),
        chunk_elements_(chunk_elements), T_(problem.steps), B_(problem.batch), rows_(problem.rows),
        I_(problem.input_size), H_(problem.hidden_size), P_(problem.proj_size), R_(problem.state_size()),
        samples_(problem.samples()), sample_rows_(problem.sample_rows()), w_hh_width_(R_ / problem.heads) {}

 protected:
  using V = compute_t<T>;
  using Columns = GateColumns<Cell>;
  static constexpr bool two_stages = Cell::kind == CellKind::gru_v1;
  static constexpr int G = Cell::gates, K = Cell::saved;
  static constexpr GateSpan all_gates{0, G, Columns::recurrent};
  static constexpr GateSpan reset_update{0, 2, 0}, candidate{2, 1, 2};  // of gru_v1
  // The gates that w_ih shares with w_hh, and, where it has one, its own last one.
  static constexpr GateSpan input_spans[2] = {{0, Columns::shared, Columns::recurrent}, {G - 1, 1, 0}};
  static constexpr int input_span_count = Cell::split_gate ? 2 : 1;

  // The gates of as many steps as are held at once.
  struct GateBuffer {
    int64_t width = 0;  // of a row
    int64_t steps = 0;
    T* value = nullptr;  // [rows of these steps, width]
  };

  // What a backward sweep reads and leaves.
  struct BackwardBuffers {
    const T* saved = nullptr;    // [rows, K*H]; rebuilt gates are the same memory as d_gates
    T* d_gates = nullptr;        // [rows, columns*H]
    T* operand = nullptr;        // [rows, R] what w_hh multiplied
    T* reset_operand = nullptr;  // [rows, H] gru_v1: what its last gate multiplied
    T* unprojected = nullptr;    // [rows, H] h before the projection
    T* d_projected = nullptr;    // [rows, P]
  };

  static const T* typed(const void* pointer) { return static_cast<const T*>(pointer); }
  static T* typed(void* pointer) { return static_cast<T*>(pointer); }

  // Gives all scratch memory to the groups that follow.
  void rewind();
  void set_calendar(const Group& group);
  // The calendar's offsets in device memory; null: padded.
  const int64_t* device_offsets();

  // `share`: of chunk_elements, where gates are not kept.
  GateBuffer gate_buffer(const Group& group, int64_t share = 1);
  // Makes the gates of the steps [begin, end), counted in the order of the recurrence, of which there is at least one.
  // Returns their first row.
  int64_t fill_gates(const Group& group, const GateBuffer& gates, int64_t begin, int64_t end) const;

  BackwardBuffers backward_buffers(const Group& group, const GroupGradients& gradients);
  void parameter_gradients(const Group& group, const GroupGradients& gradients, const BackwardBuffers& buffers);

  Cell cell_;
  const ForEach& for_each_;
  Products<T, ForEach> products_;
  Workspace workspace_;
  int64_t chunk_elements_;
  int64_t T_, B_, rows_, I_, H_, P_, R_, samples_, sample_rows_, w_hh_width_;
  Calendar calendar_;  // of the group that set_calendar was given

 private:
  void input_product(const Group& group, int64_t first_row, int64_t rows, T* gates, int64_t width) const;
  void gather_operand(const Group& group, T* operand);
  void rebuild(const Group& group, const T* operand, T* gates);
  // Of sample b, where each has its own. `x`: zero past a length.
  void weight_gradients(const GroupGradients& gradients, const BackwardBuffers& buffers, const T* x, int64_t b);

  const int64_t* batch_sizes_ = nullptr;  // that the offsets were made from
  std::vector<int64_t> offsets_;          // [T + 1]
  const int64_t* device_offsets_ = nullptr;
};

template <class Cell, class T, class ForEach>
void Surroundings<Cell, T, ForEach>::rewind() {
  workspace_.rewind();
  device_offsets_ = nullptr;
}

template <class Cell, class T, class ForEach>
void Surroundings<Cell, T, ForEach>::set_calendar(const Group& group) {
  calendar_ = {T_, B_, nullptr};
  if (group.schedule.batch_sizes == nullptr) return;
  if (group.schedule.batch_sizes != batch_sizes_) {
    batch_sizes_ = group.schedule.batch_sizes;
    device_offsets_ = nullptr;
    offsets_.assign(1, 0);
    for (int64_t t = 0; t < T_; ++t) offsets_.push_back(offsets_.back() + batch_sizes_[t]);
  }
  calendar_.offsets = offsets_.data();
}

template <class Cell, class T, class ForEach>
const int64_t* Surroundings<Cell, T, ForEach>::device_offsets() {
  if (calendar_.offsets == nullptr || device_offsets_ != nullptr) return device_offsets_;
  int64_t* const offsets = workspace_.template take<int64_t>(T_ + 1);
  for (int64_t first = 0; first <= T_; first += UploadOffsets::capacity) {
    UploadOffsets upload;
    int64_t const count = std::min(UploadOffsets::capacity, T_ + 1 - first);
    upload.offsets = offsets + first;
    std::copy_n(calendar_.offsets + first, count, upload.values);
    for_each_(1, count, upload);
  }
  return device_offsets_ = offsets;
}

template <class Cell, class T, class ForEach>
auto Surroundings<Cell, T, ForEach>::gate_buffer(const Group& group, int64_t share) -> GateBuffer {
  if (group.gates != nullptr) return {K * H_, T_, typed(group.gates)};
  int64_t const width = G * H_, step = std::max<int64_t>(B_ * width * share, 1);
  int64_t const steps = std::clamp<int64_t>(chunk_elements_ / step, 1, T_ + 1);
  return {width, steps, workspace_.template take<T>(std::min(rows_, steps * B_) * width)};
}

template <class Cell, class T, class ForEach>
int64_t Surroundings<Cell, T, ForEach>::fill_gates(const Group& group, const GateBuffer& gates, int64_t begin,
                                                   int64_t end) const {
  Moment const first = calendar_.at(group.reverse ? T_ - end : begin);
  Moment const last = calendar_.at(group.reverse ? T_ - 1 - begin : end - 1);
  input_product(group, first.offset, last.offset + last.rows - first.offset, gates.value, gates.width);
  return first.offset;
}

template <class Cell, class T, class ForEach>
void Surroundings<Cell, T, ForEach>::input_product(const Group& group, int64_t first_row, int64_t rows, T* gates,
                                                   int64_t width) const {
  products_.forward(typed(group.x) + first_row * I_, rows, typed(group.w_ih), G * H_, I_, gates, width);
}

template <class Cell, class T, class ForEach>
auto Surroundings<Cell, T, ForEach>::backward_buffers(const Group& group, const GroupGradients& gradients)
    -> BackwardBuffers {
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
  if (two_stages && gradients.d_w_hh != nullptr) buffers.reset_operand = workspace_.template take<T>(rows_ * H_);
  if (P_ > 0) {
    buffers.d_projected = workspace_.template take<T>(rows_ * P_);
    if (gradients.d_w_hr != nullptr) buffers.unprojected = workspace_.template take<T>(rows_ * H_);
  }
  return buffers;
}

template <class Cell, class T, class ForEach>
void Surroundings<Cell, T, ForEach>::gather_operand(const Group& group, T* operand) {
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
void Surroundings<Cell, T, ForEach>::rebuild(const Group& group, const T* operand, T* gates) {
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
void Surroundings<Cell, T, ForEach>::parameter_gradients(const Group& group, const GroupGradients& gradients,
                                                         const BackwardBuffers& buffers) {
  if (T* const d_x = typed(gradients.d_x)) {
    for (int i = 0; i < input_span_count; ++i) {
      auto const [first, count, column] = input_spans[i];
      products_.backward(buffers.d_gates + column * H_, Columns::count * H_, rows_, typed(group.w_ih) + first * H_ * I_,
                         count * H_, I_, d_x, gradients.accumulate_x || i > 0);
    }
  }
  const T* x = typed(group.x);
  if (gradients.d_w_ih != nullptr && group.schedule.lengths != nullptr) {
    T* const masked = workspace_.template take<T>(rows_ * I_);
    for_each_(rows_, I_, MaskedInput<T>{B_, group.schedule.lengths, x, masked, I_});
    x = masked;
  }
  for (int64_t b = 0; b < samples_; ++b) weight_gradients(gradients, buffers, x, b);
}

template <class Cell, class T, class ForEach>
void Surroundings<Cell, T, ForEach>::weight_gradients(const GroupGradients& gradients, const BackwardBuffers& buffers,
                                                      const T* x, int64_t b) {
  int64_t const stride = Columns::count * H_, rows = sample_rows_;
  const T* const d_gates = buffers.d_gates + b * stride;
  auto const operand = [&](const T* all, int64_t width) { return all + b * width; };
  auto const out = [&](void* all, int64_t size) { return all == nullptr ? nullptr : typed(all) + b * size; };

  if (T* const d_w_hh = out(gradients.d_w_hh, G * H_ * w_hh_width_)) {
    const T* const h = operand(buffers.operand, R_);
    if constexpr (two_stages) {
      const T* const reset = operand(buffers.reset_operand, H_);
      products_.recurrent_weight_gradient(d_gates, stride, rows, h, reset_update, d_w_hh);
      products_.recurrent_weight_gradient(d_gates, stride, rows, reset, candidate, d_w_hh);
    } else {
      products_.recurrent_weight_gradient(d_gates, stride, rows, h, all_gates, d_w_hh);
    }
  }
  if (T* const d_w_hr = out(gradients.d_w_hr, P_ * H_)) {
    products_.weight_gradient(operand(buffers.d_projected, P_), P_, rows, P_, operand(buffers.unprojected, H_), H_,
                              d_w_hr);
  }
  if (T* const d_w_ih = out(gradients.d_w_ih, G * H_ * I_)) {
    for (int i = 0; i < input_span_count; ++i) {
      auto const [first, count, column] = input_spans[i];
      products_.weight_gradient(d_gates + column * H_, stride, rows, count * H_, operand(x, I_), I_,
                                d_w_ih + first * H_ * I_);
    }
  }
  BiasGradients<Cell, T> const biases{out(gradients.d_b_ih, G * H_), out(gradients.d_b_hh, G * H_), H_};
  if (biases.d_b_ih != nullptr || biases.d_b_hh != nullptr) {
    products_.sum_rows(d_gates, stride, rows, stride, biases, workspace_);
  }
}

}  // namespace rnnkern::stepwise
