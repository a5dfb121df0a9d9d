// rnnkern._C: loads the operators, and answers what Python asks about the build and about plans.
#include <ATen/autocast_mode.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <sstream>

#include "cpu_platform.h"
#include "layer.h"
#include "python_calls.h"
#if defined(RNNKERN_WITH_CUDA)
#include "../core/cuda/stationary/device.h"
#endif

namespace py = pybind11;

namespace rnnkern {
namespace {

using at::Tensor;

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
  define_direct_calls(module);
}
