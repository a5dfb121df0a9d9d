#include "layer.h"

#include <ATen/Context.h>
#include <ATen/core/TensorBody.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <utility>

#include "cpu_platform.h"
#if defined(RNNKERN_WITH_CUDA)
#include "../core/cuda/stationary/device.h"
#include "../core/cuda/stationary/stationary.h"
#include "../core/cuda/stepwise.h"
#include "cuda_platform.h"
#endif

namespace rnnkern {
namespace {

using at::Tensor;

template <class Run>
decltype(auto) translate_errors(Run&& run) {
  try {
    return run();
  } catch (const Error& error) {
    TORCH_CHECK_VALUE(false, error.message);
  }
}

Dtype parse_dtype(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kDouble: return Dtype::float64;
    case at::kFloat: return Dtype::float32;
    case at::kBFloat16: return Dtype::bfloat16;
    case at::kHalf: return Dtype::float16;
    default: break;
  }
  TORCH_CHECK_TYPE(false, "input: expected float64, float32, bfloat16 or float16, got ", x.scalar_type());
}

Backend parse_device(const Tensor& x) {
  if (x.is_cpu()) return Backend::cpu;
#if defined(RNNKERN_WITH_CUDA)
  if (x.is_cuda()) return Backend::cuda;
#endif
  TORCH_CHECK(false, "rnnkern has no kernels for device '", x.device(),
              "' in this build; layer.to_torch() gives the equal torch.nn layer");
}

// Checks one tensor against the shape that it must have and returns it so that each member's part is dense.
class Checker {
 public:
  Checker(const Tensor& x, Layer& layer) : x_(x), layer_(layer) {}

  // Owned by the layer, whose list is long enough for all.
  const Tensor& operator()(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype) const {
    if (layer_.ensemble) {
      Shape whole{layer_.members};
      whole.append(shape.begin(), shape.end());
      check_tensor(tensor, name, whole, dtype, x_.device());
    } else {
      check_tensor(tensor, name, shape, dtype, x_.device());
    }
    // A member that is expanded or strided keeps its place.
    bool const dense = tensor.is_contiguous() || (layer_.ensemble && layer_.members > 0 &&
                                                  tensor.select(0, 0).is_contiguous() && tensor.stride(0) >= 0);
    layer_.owned.push_back(dense ? tensor : tensor.contiguous());
    return layer_.owned.back();
  }
  const Tensor& operator()(const Tensor& tensor, const char* name, at::IntArrayRef shape) const {
    return (*this)(tensor, name, shape, x_.scalar_type());
  }

 private:
  const Tensor& x_;
  Layer& layer_;
};

// The start of member n's part.
template <class T = char>
const T* member(const Tensor& tensor, bool ensemble, int64_t n) {
  if (!tensor.defined()) return nullptr;
  const char* const data = static_cast<const char*>(tensor.const_data_ptr());
  return reinterpret_cast<const T*>(data + (ensemble ? n * tensor.stride(0) * tensor.element_size() : 0));
}

bool checks_device_values() {
  const char* const wanted = std::getenv("RNNKERN_CHECK");
  return wanted && std::string_view(wanted) == "1";
}

void check_lengths(const Tensor& lengths, int64_t steps) {
  const int64_t* const data = lengths.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < lengths.numel(); ++i)
    TORCH_CHECK_VALUE(data[i] >= 0 && data[i] <= steps, "lengths: expected values from 0 to the number of time steps ",
                      steps, ", got ", data[i], " at index ", i);
}

// Lengths as int64 beside x; values are checked wherever they can be read without waiting for a device.
Tensor place_lengths(Tensor lengths, const Tensor& x, int64_t steps) {
  lengths = lengths.to(at::kLong);
  if (x.is_cpu() || lengths.is_cpu() || checks_device_values()) {
    Tensor const here = lengths.cpu().contiguous();
    check_lengths(here, steps);
    if (x.is_cpu()) return here;
    if (lengths.is_cpu()) return here.pin_memory().to(x.device(), /*non_blocking=*/true);
  }
  return lengths.to(x.device());
}

void check_batch_sizes(const Tensor& sizes, int64_t batch, int64_t rows) {
  TORCH_CHECK_VALUE(sizes.is_cpu() && sizes.dim() == 1 && sizes.scalar_type() == at::kLong,
                    "batch_sizes: expected a one-dimensional int64 tensor on the CPU, got ", sizes.scalar_type(), " ",
                    sizes.sizes(), " on ", sizes.device());
  const int64_t* const data = sizes.const_data_ptr<int64_t>();
  int64_t sum = 0;
  for (int64_t t = 0; t < sizes.numel(); ++t) {
    TORCH_CHECK_VALUE(
        data[t] >= 1 && data[t] <= (t ? data[t - 1] : batch),
        "batch_sizes: expected positive values that do not rise, the first at most the states' batch size ", batch,
        ", got ", data[t], " at index ", t);
    sum += data[t];
  }
  TORCH_CHECK_VALUE(sum == rows, "batch_sizes: expected a sum equal to the number of rows ", rows, ", got ", sum);
  TORCH_CHECK_VALUE(sizes.numel() == 0 || data[0] == batch,
                    "batch_sizes: expected the first to equal the states' batch size ", batch, ", got ", data[0]);
}

}  // namespace

void check_tensor(const Tensor& tensor, const char* name, at::IntArrayRef shape, at::ScalarType dtype,
                  at::Device device) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, ": expected shape ", shape, ", got ", tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, ": expected dtype ", dtype, ", got ", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == device, name, ": expected device ", device, ", got ", tensor.device());
}

Shape Layer::shape(std::initializer_list<int64_t> sizes) const {
  Shape all(sizes);
  if (ensemble) all.insert(all.begin(), members);
  return all;
}

Shape Layer::sequence_shape(int64_t width) const {
  if (problem.packed) return shape({directions, problem.rows, width});
  return shape({directions, problem.steps, problem.batch, width});
}

Shape Layer::y_shape() const {
  int64_t const width = directions * problem.state_size();
  return problem.packed ? shape({problem.rows, width}) : shape({problem.steps, problem.batch, width});
}

const void* Layer::part(const Tensor& tensor, int64_t group, int64_t elements) const {
  if (!tensor.defined() || tensor.numel() == 0) return nullptr;
  return static_cast<const char*>(tensor.const_data_ptr()) + group * elements * tensor.element_size();
}

const void* Layer::y_part(const Tensor& y, int64_t group) const {
  if (!y.defined() || y.numel() == 0) return nullptr;
  int64_t const size = problem.state_size(), n = group / directions, d = group % directions;
  return static_cast<const char*>(y.const_data_ptr()) + (n * problem.rows * directions + d) * size * y.element_size();
}

void Layer::set_results(const Tensor& y, const Tensor& h_n, const Tensor& c_n, const Tensor& cells,
                        const Tensor& gates) {
  int64_t const rows = problem.rows, batch = problem.batch, hidden = problem.hidden_size;
  for (int64_t i = 0; i < problem.groups; ++i) {
    Group& group = groups[i];
    group.y = const_cast<void*>(y_part(y, i));
    group.h_n = writable_part(h_n, i, batch * problem.state_size());
    group.c_n = writable_part(c_n, i, batch * hidden);
    group.cells = writable_part(cells, i, rows * hidden);
    group.gates = writable_part(gates, i, rows * problem.saved_size());
  }
}

// The sizes that the weights have.
void Layer::read_sizes(at::TensorList weights) {
  int64_t const lead = ensemble, count = int64_t(weights.size());
  TORCH_CHECK_VALUE(count % directions == 0 && weights_per_direction >= 2 && weights_per_direction <= 5,
                    "weights: expected 2, 3, 4 or 5 tensors per direction, got ", count, " for ", directions,
                    " direction(s)");
  problem.bias = weights_per_direction >= 4;
  bool const projection = weights_per_direction % 2;
  TORCH_CHECK_VALUE(!projection || problem.cell == CellKind::lstm,
                    "weights: expected a projection only with an LSTM, got ", weights_per_direction,
                    " tensors per direction");
  const Tensor& first = weights[0];
  TORCH_CHECK_VALUE(first.dim() == lead + 2, "weight_ih: expected ", lead + 2, " dimensions, got ", first.dim());
  int64_t const gates = problem.gates();
  TORCH_CHECK_VALUE(first.size(lead) % gates == 0 && first.size(lead) > 0, "weight_ih: expected a multiple of ", gates,
                    " rows, got ", first.size(lead));
  problem.hidden_size = first.size(lead) / gates;
  if (projection) {
    const Tensor& w_hr = weights[weights_per_direction - 1];
    TORCH_CHECK_VALUE(w_hr.dim() == lead + 2 && w_hr.size(lead) > 0, "weight_hr: expected ", lead + 2,
                      " dimensions, got ", w_hr.sizes());
    problem.proj_size = w_hr.size(lead);
  }
}

Layer::Layer(const LayerArguments& arguments) {
  const Tensor& x = arguments.x;
  ensemble = arguments.ensemble;
  bool const packed = problem.packed = arguments.batch_sizes.has_value();
  directions = arguments.bidirectional ? 2 : 1;
  CellName const named = translate_errors([&] { return find_name(kCellNames, "cell", arguments.cell); });
  problem.cell = named.kind;
  problem.activation = named.activation;
  problem.dtype = parse_dtype(x);
  problem.backend = parse_device(x);
  problem.heads = arguments.heads;

  int64_t const lead = ensemble;  // dimensions before a member's own
  int64_t const dimensions = lead + (packed || arguments.one_step ? 2 : 3);
  TORCH_CHECK_VALUE(x.dim() == dimensions, "input: expected ", dimensions, " dimensions, got ", x.dim());
  bool const states = arguments.h_0 && arguments.h_0->defined();
  TORCH_CHECK_VALUE(states || !packed, "h_0: expected a tensor with batch_sizes, got None");
  TORCH_CHECK_VALUE(states || !(arguments.c_0 && arguments.c_0->defined()),
                    "c_0: expected None without h_0, got a tensor");
  TORCH_CHECK_VALUE(!states || arguments.h_0->dim() == lead + 3, "h_0: expected ", lead + 3, " dimensions, got ",
                    arguments.h_0->dim());
  members = ensemble ? x.size(0) : 1;
  problem.input_size = x.size(-1);
  problem.batch = states ? arguments.h_0->size(lead + 1) : x.size(-2);
  problem.steps = packed ? arguments.batch_sizes->numel() : arguments.one_step ? 1 : x.size(lead);
  problem.rows = packed ? x.size(lead) : problem.steps * problem.batch;
  int64_t const count = int64_t(arguments.weights.size());
  weights_per_direction = count / directions;
  if (arguments.hidden_size > 0) {
    problem.int8 = true;
    problem.bias = weights_per_direction == 2;
    problem.hidden_size = arguments.hidden_size;
    problem.proj_size = arguments.proj_size;
  } else {
    read_sizes(arguments.weights);
  }
  int64_t const hidden = problem.hidden_size, size = problem.state_size(), in = problem.input_size,
                heads = problem.heads, gates = problem.gates(), batch = problem.batch;
  bool const projection = problem.proj_size > 0;
  TORCH_CHECK_VALUE(heads >= 1 && hidden % heads == 0 && (heads == 1 || !projection),
                    "heads: expected a divisor of hidden_size ", hidden, " and no projection, got ", heads);
  problem.groups = members * directions;

  owned.reserve(size_t(count) + 10);
  Checker const check(x, *this);
  Tensor const absent;
  auto const state = [&](const OptionalTensor& tensor, const char* name, int64_t width) -> const Tensor& {
    return tensor && tensor->defined() ? check(*tensor, name, {directions, batch, width}) : absent;
  };
  auto const rows = [&](at::IntArrayRef before, at::IntArrayRef after) {
    Shape all(before.begin(), before.end());
    if (packed)
      all.push_back(problem.rows);
    else
      all.append({problem.steps, batch});
    all.append(after.begin(), after.end());
    return all;
  };
  auto const row_mask = [&](const OptionalTensor& tensor, const char* name, at::IntArrayRef before,
                            at::IntArrayRef after) -> const Tensor& {
    return tensor && tensor->defined() ? check(*tensor, name, rows(before, after), at::kBool) : absent;
  };
  const Tensor& input = check(x, "input", arguments.one_step ? Shape{batch, in} : rows({}, {in}));
  bool const has_cell = facts(problem.cell).has_cell;
  TORCH_CHECK_VALUE((has_cell && states) == (arguments.c_0 && arguments.c_0->defined()), "c_0: expected ",
                    has_cell ? "a tensor" : "None", " for cell ", arguments.cell);
  const Tensor& h_0 = state(arguments.h_0, "h_0", size);
  const Tensor& c_0 = state(arguments.c_0, "c_0", hidden);
  const Tensor& reset = row_mask(arguments.reset_mask, "reset_mask", {}, {});
  const Tensor& mask = state(arguments.recurrent_mask, "recurrent_mask", size);
  const Tensor& zone_h = row_mask(arguments.zoneout_h, "zoneout_h", {directions}, {size});
  const Tensor& zone_c = has_cell ? row_mask(arguments.zoneout_c, "zoneout_c", {directions}, {hidden}) : absent;
  Tensor lengths, batch_sizes;
  if (arguments.lengths && arguments.lengths->defined()) {
    TORCH_CHECK_VALUE(!packed, "lengths: expected None with a packed input, got a tensor");
    lengths = check(place_lengths(*arguments.lengths, x, problem.steps), "lengths", {batch}, at::kLong);
  }
  if (packed) {
    batch_sizes = arguments.batch_sizes->contiguous();
    check_batch_sizes(batch_sizes, batch, problem.rows);
    owned.push_back(batch_sizes);
  }
  problem.lengths = lengths.defined(), problem.reset = reset.defined();
  problem.recurrent_mask = mask.defined();
  problem.zoneout = zone_h.defined() || arguments.zoneout > 0;

  const Tensor* const weights = owned.data() + owned.size();
  for (int64_t i = 0; i < count; ++i) {
    int64_t const which = i % weights_per_direction;
    const Tensor& weight = arguments.weights[i];
    if (problem.int8)
      check(weight, which == 0 ? "bias_ih" : "bias_hh", {gates * hidden});
    else if (which == 0)
      check(weight, "weight_ih", {gates * hidden, in});
    else if (which == 1)
      check(weight, "weight_hh", {gates * hidden, size / heads});
    else if (projection && which == weights_per_direction - 1)
      check(weight, "weight_hr", {size, hidden});
    else
      check(weight, which == 2 ? "bias_ih" : "bias_hh", {gates * hidden});
  }

  auto const bytes = int64_t(size_of(problem.dtype));
  groups.resize(problem.groups);
  for (int64_t i = 0; i < problem.groups; ++i) {
    int64_t const n = i / directions, d = i % directions;
    Group& group = groups[i];
    const Tensor* const own = weights + d * weights_per_direction;
    group.reverse = d == 1;
    group.schedule.lengths = member<int64_t>(lengths, ensemble, n);
    group.schedule.reset = member<bool>(reset, ensemble, n);
    group.schedule.batch_sizes = packed ? batch_sizes.const_data_ptr<int64_t>() : nullptr;
    group.x = member(input, ensemble, n);
    int64_t const biases = problem.int8 ? 0 : 2;
    if (problem.bias) group.b_ih = member(own[biases], ensemble, n), group.b_hh = member(own[biases + 1], ensemble, n);
    if (!problem.int8) group.w_ih = member(own[0], ensemble, n), group.w_hh = member(own[1], ensemble, n);
    if (projection && !problem.int8) group.w_hr = member(own[weights_per_direction - 1], ensemble, n);
    auto const direction = [&](const Tensor& tensor, int64_t elements, int64_t element_bytes) -> const char* {
      const char* const start = member(tensor, ensemble, n);
      return start ? start + d * elements * element_bytes : nullptr;
    };
    group.h_0 = direction(h_0, batch * size, bytes);
    group.c_0 = direction(c_0, batch * hidden, bytes);
    group.mask = direction(mask, batch * size, bytes);
    group.zone_h = reinterpret_cast<const bool*>(direction(zone_h, problem.rows * size, 1));
    group.zone_c = reinterpret_cast<const bool*>(direction(zone_c, problem.rows * hidden, 1));
    group.zoneout = arguments.zoneout;
    group.y_stride = directions * size;
  }
}

#if defined(RNNKERN_WITH_CUDA)
namespace {

// Runs one sweep on x's GPU by its plan: body(problem, plan, platform).
template <class Body>
void run_cuda(Layer& layer, Sweep sweep, Body&& body) {
  int const device = layer.owned[0].device().index();
  layer.problem.tf32 = layer.problem.dtype == Dtype::float32 && rnn_tf32_allowed();  // the plan depends on it
  TorchCudaPlatform platform(device);                                                // makes the device the current one
  auto const plan = cuda_plan(layer.problem, sweep, device_facts(device));
  body(std::as_const(layer.problem), *plan, platform);
}

}  // namespace
#endif

void run_forward(Layer& layer) {
  translate_errors([&] {
#if defined(RNNKERN_WITH_CUDA)
    if (layer.problem.backend == Backend::cuda) {
      return run_cuda(layer, Sweep::forward,
                      [&](const Problem& problem, const SweepPlan& plan, CudaPlatform& platform) {
                        if (plan.stepwise()) return stepwise_forward(problem, layer.groups, platform);
                        stationary_forward(problem, layer.groups, plan.stationary, platform);
                      });
    }
#endif
    Plan const plan = cpu_plan(layer.problem, max_workers());
    TorchCpuPlatform platform;
    simd_forward(layer.problem, layer.groups, plan, platform);
  });
}

void run_forward(Int8Layer& layer) {
  translate_errors([&] {
    Plan const plan = cpu_plan(layer.problem, max_workers());
    TorchCpuPlatform platform;
    simd_int8_forward(layer.problem, layer.groups, layer.packed_weights, plan, platform);
  });
}

void run_backward(Layer& layer, const std::vector<GroupGradients>& gradients) {
  translate_errors([&] {
#if defined(RNNKERN_WITH_CUDA)
    if (layer.problem.backend == Backend::cuda) {
      return run_cuda(layer, Sweep::backward,
                      [&](const Problem& problem, const SweepPlan& plan, CudaPlatform& platform) {
                        if (plan.stepwise()) return stepwise_backward(problem, layer.groups, gradients, platform);
                        stationary_backward(problem, layer.groups, gradients, plan.stationary, platform);
                      });
    }
#endif
    Plan const plan = cpu_plan(layer.problem, max_workers());
    TorchCpuPlatform platform;
    simd_backward(layer.problem, layer.groups, gradients, plan, platform);
  });
}

bool rnn_tf32_allowed() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

}  // namespace rnnkern
