// rnnkern._C: loads the operators, and answers what Python asks about the build and about plans.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <sstream>

#include "../core/cpu/simd.h"
#include "layer.h"
#if defined(RNNKERN_WITH_CUDA)
#include "../core/cuda/stationary/device.h"
#endif

namespace py = pybind11;

namespace rnnkern {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

py::dict build_info() {
  py::dict info;
  py::list archs;
#if defined(RNNKERN_WITH_CUDA)
  info["cuda"] = RNNKERN_CUDA_VERSION;
  std::istringstream all(RNNKERN_CUDA_ARCHS);
  for (std::string arch; std::getline(all, arch, ',');) archs.append(arch);
#else
  info["cuda"] = py::none();
#endif
  info["cuda_archs"] = archs;
  info["cpu_isas"] = compiled_isas();
  info["cpu_isa"] = cpu_isa();
  return info;
}

// A parameter in autocast's dtype, as autocast's own operators take it: cast once within a region.
Tensor cached_cast(const Tensor& parameter) {
  auto const device = parameter.device().type();
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), parameter, device);
}

using Reasons = std::vector<std::pair<std::string, std::string>>;

py::dict by_name(const Reasons& reasons) {
  py::dict out;
  for (auto const& [strategy, reason] : reasons) out[py::str(strategy)] = reason;
  return out;
}

py::dict describe(const SweepPlan& plan, const Problem& problem) {
  py::dict out;
  out["strategy"] = plan.strategy;
  out["bytes"] = plan.bytes;
  out["us_per_step"] = plan.us_per_step;
  out["us"] = plan.us;
  out["rejected"] = by_name(plan.rejected);
  if (plan.stepwise()) return out;
  stationary::Choice const& choice = plan.stationary;
  stationary::Tiling const& tiling = choice.tiling;
  out["exchange"] = name(tiling.exchange);
  out["arithmetic"] = name(choice.math, choice.exact);
  out["groups_per_launch"] = choice.groups_per_launch;
  out["blocks"] = tiling.blocks() * problem.heads * choice.groups_per_launch;
  out["team"] = tiling.team;
  out["threads"] = tiling.threads();
  out["units"] = tiling.units;
  out["tiles"] = tiling.tiles;
  out["tile_rows"] = tiling.tile_rows;
  out["shared_bytes"] = tiling.shared_bytes();
  return out;
}

py::dict describe(const Plan& plan, const Problem& problem) {
  py::dict out;
  out["strategy"] = plan.strategy;
  out["workers"] = plan.workers;
  out["split"] = name(plan.split);
  out["bytes"] = plan.bytes;
  out["floor_us"] = plan.floor_us;
  out["rejected"] = by_name(plan.rejected);
  if (plan.forward) out["forward"] = describe(*plan.forward, problem);
  if (plan.backward) out["backward"] = describe(*plan.backward, problem);
  return out;
}

// The GPU of a plan: `given`, by the names of its members, or the one with this index.
std::optional<DeviceFacts> facts_of(const std::optional<py::dict>& given, [[maybe_unused]] int device_index) {
  if (given) {
    DeviceFacts device;
    auto const take = [&](const char* key, auto& member) {
      if (given->contains(key)) member = (*given)[key].cast<std::remove_reference_t<decltype(member)>>();
    };
    take("capability", device.capability);
    take("multiprocessors", device.multiprocessors);
    take("shared_bytes", device.shared_bytes);
    take("registers", device.registers);
    take("max_cluster", device.max_cluster);
    take("clock_ghz", device.clock_ghz);
    take("bandwidth_gbs", device.bandwidth_gbs);
    take("l2_bytes", device.l2_bytes);
    return device;
  }
#if defined(RNNKERN_WITH_CUDA)
  return device_facts(device_index);
#else
  return std::nullopt;
#endif
}

py::dict plan_of(const std::string& cell, const std::string& dtype, const std::string& device, int64_t steps,
                 int64_t batch, int64_t rows, int64_t input_size, int64_t hidden_size, int64_t proj_size, int64_t heads,
                 int64_t groups, bool bias, bool packed, bool lengths, bool reset, bool recurrent_mask, bool zoneout,
                 bool save, bool recompute, bool int8, int threads, int device_index,
                 const std::optional<py::dict>& gpu) {
  Problem problem;
  problem.backend = device == "cuda" ? Backend::cuda : Backend::cpu;
  problem.steps = steps, problem.batch = batch, problem.rows = rows;
  problem.input_size = input_size, problem.hidden_size = hidden_size, problem.proj_size = proj_size;
  problem.heads = heads, problem.groups = groups, problem.bias = bias;
  problem.packed = packed, problem.lengths = lengths, problem.reset = reset;
  problem.recurrent_mask = recurrent_mask, problem.zoneout = zoneout, problem.save = save,
  problem.recompute = recompute, problem.int8 = int8;
  CellName const& named = find_name(kCellNames, "cell", cell);
  problem.cell = named.kind, problem.activation = named.activation;
  problem.dtype = find_name(kDtypeNames, "dtype", dtype).dtype;
  problem.tf32 = problem.backend == Backend::cuda && problem.dtype == Dtype::float32 && rnn_tf32_allowed();
  std::optional<DeviceFacts> known;
  if (problem.backend == Backend::cuda) known = facts_of(gpu, device_index);
  Plan found = plan(problem, threads > 0 ? threads : max_workers(), known ? &*known : nullptr);
  if (problem.backend == Backend::cpu) found.bytes = simd_bytes(problem, found);
  return describe(found, problem);
}

// Whether an operator that is called now would go to its kernel but for autograd: no autocast, transform, tracer or
// mode waits for it.
bool straight_to_kernels() {
  constexpr c10::DispatchKeySet apart = c10::autograd_dispatch_keyset_with_ADInplaceOrView;
  c10::impl::LocalDispatchKeySet const keys = c10::impl::tls_local_dispatch_key_set();
  return keys.included_ - apart == c10::default_included_set - apart &&
         keys.excluded_ - apart == c10::default_excluded_set - apart && !at::impl::torch_function_mode_enabled();
}

// A tensor of no subclass, whose values lie in memory as they are, and for which no gradient will be asked.
bool is_plain(py::handle object) {
  if (!THPVariable_CheckExact(object.ptr())) return false;
  const Tensor& tensor = THPVariable_Unpack(object.ptr());
  bool const recorded = c10::GradMode::is_enabled() && !c10::InferenceMode::is_enabled();
  return !tensor.is_neg() && !tensor._is_zerotensor() && !(recorded && tensor.requires_grad());
}

// All layers' weights, flat. In int8: with the biases apart, and the sizes that packed weights do not show.
struct Weights {
  std::vector<Tensor> all, biases;
  int64_t hidden_size = 0, proj_size = 0;
};

at::TensorList of_layer(const std::vector<Tensor>& all, int64_t l, int64_t num_layers) {
  size_t const count = all.size() / num_layers;
  return {all.data() + l * count, count};
}

// All layers without autograd, on x [T, B, I] (`batch_first`: [B, T, I]) or one time step [B, I]: (y, h_n, c_n). The
// states are zero where none are given.
std::tuple<Tensor, Tensor, OptionalTensor> infer(const Tensor& x, const Weights& weights, const OptionalTensor& h_0,
                                                 const OptionalTensor& c_0, const std::string& cell, int64_t num_layers,
                                                 bool bidirectional, bool batch_first, int64_t heads, double zoneout) {
  RECORD_FUNCTION("rnnkern::infer", c10::ArrayRef<const c10::IValue>{});
  at::AutoDispatchBelowAutograd below;
  int64_t const directions = bidirectional ? 2 : 1, state_rows = num_layers * directions;
  for (auto const* tensors : {&weights.all, &weights.biases})
    TORCH_CHECK_VALUE(num_layers > 0 && tensors->size() % num_layers == 0, "weights: expected a multiple of ",
                      num_layers, ", got ", tensors->size());
  bool const one_step = x.dim() == 2, int8 = weights.hidden_size > 0;
  auto const states_of_layer = [&](const OptionalTensor& states, const char* name, int64_t l) {
    if (!states || num_layers == 1) return states.value_or(Tensor());
    TORCH_CHECK_VALUE(states->dim() == 3 && states->size(0) == state_rows, name, ": expected ", state_rows,
                      " layers and directions, got ", states->sizes());
    return states->narrow(0, l * directions, directions);
  };
  OptionalTensor h_n, c_n;
  OptionalTensor const none;
  Tensor output = batch_first && !one_step ? x.transpose(0, 1) : x;
  auto const run = [&](auto layer, int64_t l) {
    Problem const& problem = layer.problem;
    int64_t const batch = problem.batch, size = problem.state_size();
    if (l == 0) {
      h_n = at::empty({state_rows, batch, size}, x.options());
      if (facts(problem.cell).has_cell) c_n = at::empty({state_rows, batch, problem.hidden_size}, x.options());
    }
    output = one_step ? at::empty({batch, directions * size}, x.options())
                      : at::empty({problem.steps, batch, directions * size}, x.options());
    layer.set_results(output, states_of_layer(h_n, "h_n", l), states_of_layer(c_n, "c_n", l));
    run_forward(layer);
  };
  for (int64_t l = 0; l < num_layers; ++l) {
    Tensor const input = output;
    OptionalTensor const h = states_of_layer(h_0, "h_0", l), c = states_of_layer(c_0, "c_0", l);
    at::TensorList const of_l = of_layer(weights.all, l, num_layers), biases = of_layer(weights.biases, l, num_layers);
    LayerArguments const arguments{.x = input,
                                   .weights = int8 ? biases : of_l,
                                   .h_0 = h,
                                   .c_0 = c,
                                   .lengths = none,
                                   .reset_mask = none,
                                   .batch_sizes = none,
                                   .recurrent_mask = none,
                                   .zoneout_h = none,
                                   .zoneout_c = none,
                                   .zoneout = zoneout,
                                   .cell = cell,
                                   .bidirectional = bidirectional,
                                   .heads = heads,
                                   .ensemble = false,
                                   .one_step = one_step,
                                   .hidden_size = weights.hidden_size,
                                   .proj_size = weights.proj_size};
    if (int8) {
      run(Int8Layer(arguments, of_l), l);
    } else {
      run(Layer(arguments), l);
    }
  }
  return {batch_first && !one_step ? output.transpose(0, 1) : output, *h_n, c_n};
}

// The same for Python: (y, hx) as a layer gives them; None where something stands between a call and its kernels, or a
// gradient is needed. `biases` and the sizes: of int8 weights.
py::object infer_if_plain(py::handle x, const py::object& weights, py::handle h_0, py::handle c_0,
                          const std::string& cell, int64_t num_layers, bool bidirectional, bool batch_first,
                          int64_t heads, double zoneout, const py::object& biases, int64_t hidden_size,
                          int64_t proj_size) {
  auto const unpacked = [](py::handle object) -> OptionalTensor {
    return object.is_none() ? OptionalTensor() : THPVariable_Unpack(object.ptr());
  };
  if (!straight_to_kernels() || !is_plain(x) || !(h_0.is_none() || is_plain(h_0)) || !(c_0.is_none() || is_plain(c_0)))
    return py::none();
  Weights own{{}, {}, hidden_size, proj_size};
  auto const take = [](const py::list& from, std::vector<Tensor>& to) {
    for (py::handle tensor : from) {
      if (!is_plain(tensor)) return false;
      to.push_back(THPVariable_Unpack(tensor.ptr()));
    }
    return true;
  };
  if (!take(weights, own.all) || !take(biases, own.biases)) return py::none();
  const Tensor& input = THPVariable_Unpack(x.ptr());
  OptionalTensor const h = unpacked(h_0), c = unpacked(c_0);
  auto const run = [&] {
    py::gil_scoped_release released;
    return infer(input, own, h, c, cell, num_layers, bidirectional, batch_first, heads, zoneout);
  };
  auto const [y, h_n, c_n] = run();
  if (!c_n) return py::make_tuple(y, h_n);
  return py::make_tuple(y, py::make_tuple(h_n, *c_n));
}

}  // namespace
}  // namespace rnnkern

PYBIND11_MODULE(_C, module) {
  using namespace rnnkern;
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const Error& error) {
      py::set_error(PyExc_ValueError, error.message.c_str());
    }
  });
  module.doc() =
      "The compiled part of rnnkern; importing it registers the operators rnnkern::layer_forward and layer_backward.";
  module.def("build_info", build_info);
  module.def("strategies", strategies);
  module.def("cpu_isas", &cpu_isas);
  module.def("set_cpu_isa", &set_cpu_isa, py::arg("name"));
  module.def("force_strategy", &force_strategy, py::arg("name"));
  module.def("plan", plan_of, py::kw_only(), py::arg("cell"), py::arg("dtype"), py::arg("device"), py::arg("steps"),
             py::arg("batch"), py::arg("rows"), py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size") = 0,
             py::arg("heads") = 1, py::arg("groups") = 1, py::arg("bias") = true, py::arg("packed") = false,
             py::arg("lengths") = false, py::arg("reset") = false, py::arg("recurrent_mask") = false,
             py::arg("zoneout") = false, py::arg("save") = false, py::arg("recompute") = false, py::arg("int8") = false,
             py::arg("threads") = 0, py::arg("device_index") = 0, py::arg("gpu") = py::none());
  module.def("cached_cast", cached_cast, py::arg("parameter"));
  module.def("infer", infer_if_plain, py::arg("x"), py::arg("weights"), py::arg("h_0"), py::arg("c_0"), py::arg("cell"),
             py::arg("num_layers"), py::arg("bidirectional"), py::arg("batch_first"), py::arg("heads"),
             py::arg("zoneout"), py::arg("biases") = py::tuple(), py::arg("hidden_size") = 0, py::arg("proj_size") = 0);
}
