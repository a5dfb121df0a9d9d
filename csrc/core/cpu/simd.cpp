#include "simd.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rnnkern {
namespace {

#if defined(__x86_64__)
// Linux lets a process use the matrix unit's registers once it has asked (ARCH_REQ_XCOMP_PERM).
bool may_use_amx() {
  constexpr int request = 0x1023, tile_data = 18;
  static bool const granted = syscall(SYS_arch_prctl, request, tile_data) == 0;
  return granted && __builtin_cpu_supports("amx-bf16") && __builtin_cpu_supports("amx-tile");
}
#endif

struct Compiled {
  const SimdKernels* kernels;
  bool runs;  // on this processor
};

// The fastest first.
std::vector<Compiled> compiled() {
#if defined(__x86_64__)
  bool const avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  bool const avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  bool const bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  return {{&avx512_amx_kernels, bf16 && may_use_amx()},
          {&avx512_bf16_kernels, bf16},
          {&avx512_kernels, avx512},
          {&avx2_kernels, avx2},
          {&portable_kernels, true}};
#else
  return {{&portable_kernels, true}};
#endif
}

std::vector<const SimdKernels*> available() {
  std::vector<const SimdKernels*> found;
  for (auto const& [kernels, runs] : compiled())
    if (runs) found.push_back(kernels);
  return found;
}

const SimdKernels* find(const std::string& name, const char* what) {
  std::string known;
  for (const SimdKernels* kernels : available()) {
    if (name == kernels->name) return kernels;
    known += (known.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw Error{std::string(what) + ": expected one of " + known + ", got '" + name + "'"};
}

// Gives what a call asks for, and runs nothing of it.
class Tally final : public CpuPlatform {
 public:
  size_t bytes = 0;

  void* scratch(size_t wanted) override {
    size_t const lines = std::max<size_t>(1, (wanted + sizeof(Line) - 1) / sizeof(Line));
    bytes += lines * sizeof(Line);
    return blocks_.emplace_back(std::make_unique_for_overwrite<Line[]>(lines)).get();
  }
  void parallel(int, const std::function<void(int worker, int workers)>&) override {}

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<std::unique_ptr<Line[]>> blocks_;
};

std::atomic<const SimdKernels*> chosen{nullptr};

const SimdKernels& kernels() {
  const SimdKernels* now = chosen.load();
  if (!now) {
    const char* const wanted = std::getenv("RNNKERN_CPU_ISA");
    chosen = now = wanted && *wanted ? find(wanted, "RNNKERN_CPU_ISA") : available().front();
  }
  return *now;
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Compiled& one : compiled()) names.push_back(one.kernels->name);
  return names;
}

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const SimdKernels* kernels : available()) names.push_back(kernels->name);
  return names;
}

std::string cpu_isa() { return kernels().name; }

void set_cpu_isa(const std::string& name) { chosen = find(name, "instruction set"); }

int simd_rows_at_once(Dtype dtype) {
#if defined(__x86_64__)
  if (dtype == Dtype::bfloat16 && &kernels() == &avx512_amx_kernels) return 16;
#endif
  return 1;
}

bool simd_multiplies_pairs(Dtype dtype) {
#if defined(__x86_64__)
  return dtype == Dtype::bfloat16 && (&kernels() == &avx512_amx_kernels || &kernels() == &avx512_bf16_kernels);
#else
  return false;
#endif
}

bool simd_asks_ahead() {
#if defined(__x86_64__)
  static bool const zen4 = __builtin_cpu_is("amdfam19h") && __builtin_cpu_supports("avx512f");  // Zen 3 has no AVX-512
  return !zen4;
#else
  return true;
#endif
}

bool simd_streams_shared() {
#if defined(__x86_64__)
  static bool const amd = __builtin_cpu_is("amd");
  return amd;
#else
  return false;
#endif
}

void simd_forward(const Problem& problem, const std::vector<Group>& groups, const Sharing& sharing,
                  CpuPlatform& platform) {
  if (problem.batch > 0 && !groups.empty())
    kernels().forward(problem, groups.data(), int(groups.size()), sharing, platform);
}

void simd_int8_forward(const Problem& problem, const std::vector<Group>& groups, const std::vector<Int8Group>& weights,
                       const Sharing& sharing, CpuPlatform& platform) {
  if (problem.batch == 0 || groups.empty()) return;
  Int8Forward forward = kernels().int8_forward;
#if defined(__x86_64__)
  if (forward == &avx512_int8_forward && !__builtin_cpu_supports("avx512vnni")) forward = &avx2_int8_forward;
#endif
  forward(problem, groups.data(), weights.data(), int(groups.size()), sharing, platform);
}

void simd_backward(const Problem& problem, const std::vector<Group>& groups,
                   const std::vector<GroupGradients>& gradients, const Sharing& sharing, CpuPlatform& platform) {
  if (!groups.empty())
    kernels().backward(problem, groups.data(), gradients.data(), int(groups.size()), sharing, platform);
}

size_t simd_bytes(const Problem& problem, const Sharing& sharing) {
  // Of tensors it only counts which ones there are.
  alignas(64) static char there;
  std::vector<int64_t> const lengths(problem.batch, problem.steps), batch_sizes(problem.steps, problem.batch);
  Group group;
  if (problem.lengths) group.schedule.lengths = lengths.data();
  if (problem.packed) group.schedule.batch_sizes = batch_sizes.data();
  if (problem.recurrent_mask) group.mask = &there;
  if (problem.save && !problem.recompute && problem.rows > 0) group.gates = &there;
  std::vector<Group> const groups(problem.groups, group);
  Tally forward, backward;
  if (problem.int8) {
    simd_int8_forward(problem, groups, std::vector<Int8Group>(groups.size()), sharing, forward);
  } else {
    simd_forward(problem, groups, sharing, forward);
  }
  if (problem.save) {
    GroupGradients wanted;
    wanted.d_x = wanted.d_w_ih = wanted.d_w_hh = wanted.d_h_0 = wanted.d_c_0 = &there;
    if (problem.proj_size > 0) wanted.d_w_hr = &there;
    if (problem.bias) wanted.d_b_ih = wanted.d_b_hh = &there;
    std::vector<GroupGradients> gradients(groups.size(), wanted);
    for (size_t g = 1; g < gradients.size(); g += 2) gradients[g].accumulate_x = true;
    simd_backward(problem, groups, gradients, sharing, backward);
  }
  return std::max(forward.bytes, backward.bytes);
}

}  // namespace rnnkern
