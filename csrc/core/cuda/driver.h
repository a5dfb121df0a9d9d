// stepwise on the host: the loop over steps, written once. `ForEach` runs a functor over (row, unit): CudaForEach on a
// GPU, two loops in the tests.
#pragma once

#include <algorithm>
#include <vector>

#include "backward.cuh"
#include "products.h"

namespace rnnkern::stepwise {

// Elements of a buffer that need not hold all steps at once: enough for products of full speed.
inline constexpr int64_t kChunkElements = int64_t{1} << 25;

template <class Cell, class T, class ForEach>
class Driver {
  using V = compute_t<T>;
  using Columns = GateColumns<Cell>;
  static constexpr bool two_stages = Cell::kind == CellKind::gru_v1;
  static constexpr int G = Cell::gates, K = Cell::saved;
  static constexpr GateSpan all_gates{0, G, Columns::recurrent};
  static constexpr GateSpan reset_update{0, 2, 0}, candidate{2, 1, 2};  // of gru_v1

 public:
  Driver(const Cell& cell, const Problem& problem, CudaPlatform& platform, const ForEach& for_each,
         int64_t chunk_elements)
      : cell_(cell), for_each_(for_each), products_(problem, platform, for_each), workspace_(platform),
        chunk_elements_(chunk_elements), T_(problem.steps), B_(problem.batch), rows_(problem.rows),
        I_(problem.input_size), H_(problem.hidden_size), P_(problem.proj_size), R_(problem.state_size()) {}

  void forward(const Group& group);
  void backward(const Group& group, const GroupGradients& gradients);

 private:
  struct BackwardBuffers {
    const T* saved = nullptr;    // [rows, K*H]
    T* d_gates = nullptr;        // [rows, columns*H]
    T* operand = nullptr;        // [rows, R] what w_hh multiplied
    T* reset_operand = nullptr;  // [rows, H] gru_v1: what its last gate multiplied
    T* unprojected = nullptr;    // [rows, H] h before the projection
    T* d_projected = nullptr;    // [rows, P]
    V* product = nullptr;        // [B, R]
    V* d_inner = nullptr;        // [B, H] gradient of `unprojected`, or of `reset_operand`, at one step
  };

  static const T* typed(const void* pointer) { return static_cast<const T*>(pointer); }
  static T* typed(void* pointer) { return static_cast<T*>(pointer); }

  void start(const Group& group);
  Course course_at(const Group& group, int64_t t) const;
  const int64_t* device_offsets();
  void input_product(const Group& group, int64_t first_row, int64_t rows, T* gates, int64_t width) const;
  void forward_step(const Group& group, const Course& course, const Gates<T>& gates, const Hidden<T>& h,
                    const State<T>& c, T* inner, V* product) const;
  void gather_operand(const Group& group, T* operand);
  void rebuild(const Group& group, const T* operand, T* gates);
  void backward_step(const Group& group, const Course& course, const HiddenGradient<T>& h, const CellGradient<T>& c,
                     const BackwardBuffers& buffers) const;
  void parameter_gradients(const Group& group, const GroupGradients& gradients, const BackwardBuffers& buffers);

  Zoneout<T> zoneout(const Group& group, const bool* mask, int64_t width) const {
    return {mask, width, static_cast<V>(group.zoneout)};
  }

  Cell cell_;
  const ForEach& for_each_;
  Products<T, ForEach> products_;
  Workspace workspace_;
  int64_t chunk_elements_;
  int64_t T_, B_, rows_, I_, H_, P_, R_;
  std::vector<int64_t> offsets_;  // [T + 1] of a packed group
  Calendar calendar_;
};

template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::start(const Group& group) {
  workspace_.rewind();
  calendar_ = {T_, B_, nullptr};
  if (group.schedule.batch_sizes != nullptr) {
    offsets_.assign(1, 0);
    for (int64_t t = 0; t < T_; ++t) offsets_.push_back(offsets_.back() + group.schedule.batch_sizes[t]);
    calendar_.offsets = offsets_.data();
  }
}

template <class Cell, class T, class ForEach>
Course Driver<Cell, T, ForEach>::course_at(const Group& group, int64_t t) const {
  int64_t const forward = group.reverse ? -1 : 1;
  return {group.reverse,   group.schedule.lengths,   group.schedule.reset, calendar_.at(t - forward),
          calendar_.at(t), calendar_.at(t + forward)};
}

template <class Cell, class T, class ForEach>
const int64_t* Driver<Cell, T, ForEach>::device_offsets() {
  if (calendar_.offsets == nullptr) return nullptr;
  int64_t* const offsets = workspace_.template take<int64_t>(T_ + 1);
  for (int64_t first = 0; first <= T_; first += UploadOffsets::capacity) {
    UploadOffsets upload;
    int64_t const count = std::min(UploadOffsets::capacity, T_ + 1 - first);
    upload.offsets = offsets + first;
    std::copy_n(calendar_.offsets + first, count, upload.values);
    for_each_(1, count, upload);
  }
  return offsets;
}

template <class Cell, class T, class ForEach>
void Driver<Cell, T, ForEach>::input_product(const Group& group, int64_t first_row, int64_t rows, T* gates,
                                             int64_t width) const {
  products_.forward(typed(group.x) + first_row * I_, rows, typed(group.w_ih), G * H_, I_, gates, width);
}

}  // namespace rnnkern::stepwise

#include "driver_backward.h"
#include "driver_forward.h"
