// A layer's tensors, checked and turned into the core's problem and groups; used by the operators and by the direct
// calls.
#pragma once

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>

#include <string_view>
#include <vector>

#include "../core/int8.h"
#include "../core/plan.h"
#include "../core/types.h"

namespace rnnkern {

using Shape = at::DimVector;
using OptionalTensor = std::optional<at::Tensor>;

// Throws what Python shows as ValueError, TypeError or RuntimeError.
void check_tensor(const at::Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype,
                  at::Device device);

// The arguments that both operators share, as reference.py documents them.
struct LayerArguments {
  const at::Tensor& x;
  at::TensorList weights;
  const OptionalTensor& h_0;  // none: both states are zero; not with batch_sizes
  const OptionalTensor& c_0;
  const OptionalTensor& lengths;
  const OptionalTensor& reset_mask;
  const OptionalTensor& batch_sizes;
  const OptionalTensor& recurrent_mask;
  const OptionalTensor& zoneout_h;
  const OptionalTensor& zoneout_c;
  double zoneout;
  std::string_view cell;
  bool bidirectional;
  int64_t heads;
  bool ensemble;
  bool one_step = false;  // x is [B, I]
  // Of weights in int8 (Int8Layer), else 0: `weights` are then the biases alone, and the groups have no other.
  int64_t hidden_size = 0;
  int64_t proj_size = 0;  // 0 without a projection
};

// Sizes, pointers and the tensors that own them. Groups are member-major: member * directions + direction.
struct Layer {
  Problem problem;
  int64_t members = 1, directions = 1, weights_per_direction = 2;
  bool ensemble = false;
  std::vector<Group> groups;
  std::vector<at::Tensor> owned;

  explicit Layer(const LayerArguments& arguments);

  // [N?] then `sizes`.
  Shape shape(std::initializer_list<int64_t> sizes) const;
  // [N?, D, T, B, width] or [N?, D, rows, width].
  Shape sequence_shape(int64_t width) const;
  // [N?, T, B, D * R] or [N?, rows, D * R].
  Shape y_shape() const;

  // A tensor of x's dtype on its device, made dense where it is not, and owned; undefined ones stay so.
  at::Tensor dense(const at::Tensor& tensor, const char* name, at::IntArrayRef shape) {
    if (!tensor.defined()) return {};
    check_tensor(tensor, name, shape, owned.front().scalar_type(), owned.front().device());
    return owned.emplace_back(tensor.contiguous());
  }

  // The group's part of a tensor [N?, D, rows, width]; null if it is empty or absent.
  const void* part(const at::Tensor& tensor, int64_t group, int64_t elements) const;
  void* writable_part(const at::Tensor& tensor, int64_t group, int64_t elements) const {
    return const_cast<void*>(part(tensor, group, elements));
  }
  // The same of y [N?, rows, D * R].
  const void* y_part(const at::Tensor& y, int64_t group) const;

  // Where forward's results go, or stand for backward.
  void set_results(const at::Tensor& y, const at::Tensor& h_n, const at::Tensor& c_n, const at::Tensor& cells = {},
                   const at::Tensor& gates = {});

 private:
  void read_sizes(at::TensorList weights);
};

// A layer with weights in int8, packed as rnnkern/int8.py says: inference in float32 on the CPU.
struct Int8Layer : Layer {
  std::vector<Int8Group> packed_weights;  // of each direction

  Int8Layer(const LayerArguments& arguments, at::TensorList weights);
};

// Runs the core; its errors become Python's ValueError.
void run_forward(Layer& layer);
void run_forward(Int8Layer& layer);
void run_backward(Layer& layer, const std::vector<GroupGradients>& gradients);

// May products of float32 recurrent layers on CUDA round to TF32? By torch.backends.cudnn.rnn.fp32_precision and the
// settings that it inherits from or that came before it (torch.backends.cudnn.allow_tf32).
bool rnn_tf32_allowed();

}  // namespace rnnkern
