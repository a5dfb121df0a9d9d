// The CUDA strategy `stepwise` on the host: the same driver and the same functors, run by two loops and a plain GEMM,
// against the layer by definition. The loops visit the elements in another order at each launch.
#include "cuda/emulation/launch.h"
#include "cuda/run.h"
#include "host.h"
#include "layer_check.h"

using namespace check;

namespace {

struct StepwiseRunner {
  int64_t chunk_elements = 64;  // small: several chunks

  std::string name() const { return "stepwise"; }
  void forward(const Problem& problem, const std::vector<Group>& groups) const {
    host::HostPlatform platform;
    dispatch(problem.cell, problem.activation, [&](const auto& cell) {
      stepwise::run_forward(cell, problem, groups, platform, emulation::Device{}, chunk_elements);
    });
  }
  void backward(const Problem& problem, const std::vector<Group>& groups,
                const std::vector<GroupGradients>& gradients) const {
    host::HostPlatform platform;
    dispatch(problem.cell, problem.activation, [&](const auto& cell) {
      stepwise::run_backward(cell, problem, groups, gradients, platform, emulation::Device{}, chunk_elements);
    });
  }
};

// A case outside of the drawn ones; the sizes that `change` does not set are 1.
template <class Change>
int check_one(const std::string& name, CellKind cell, Rows rows, uint64_t seed, Change change) {
  Case c;
  c.name = name;
  c.backend = Backend::cuda;
  c.setting.cell = cell;
  c.setting.T = c.setting.B = c.setting.I = c.setting.H = 1;
  change(c);
  Random random(seed);
  set_rows(c, rows, random);
  Check(c).run(StepwiseRunner());
  return 1;
}

// More rows than one level, and than two levels, of the sums of the bias gradients take.
int check_many_rows() {
  int cases = 0;
  for (int64_t batch : {129, 33000})
    cases += check_one("many rows, batch " + std::to_string(batch), CellKind::gru, Rows::plain, 7,
                       [&](Case& c) { c.setting.B = batch; });
  return cases;
}

// More steps than one upload of a packed sequence's offsets carries.
int check_many_steps() {
  int cases = 0;
  for (bool reverse : {false, true})
    cases += check_one("many packed steps", CellKind::lstm, Rows::packed, 8, [&](Case& c) {
      c.setting.T = 600, c.setting.B = 3, c.setting.H = 2;
      c.setting.reverse = reverse;
      c.mode = Mode::recompute;
    });
  return cases;
}

// A projection to more than the hidden size, which the functions take though no module makes it.
int check_wide_projections() {
  int cases = 0;
  for (int64_t projection : {5, 9})
    cases += check_one("projection " + std::to_string(projection), CellKind::lstm, Rows::plain, 9, [&](Case& c) {
      c.setting.T = 3, c.setting.B = c.setting.I = 2, c.setting.H = 4, c.setting.P = projection;
    });
  return cases;
}

}  // namespace

int main() {
  int cases = for_each_case(Backend::cuda, 30, [](const Case& c) { Check(c).run(StepwiseRunner()); });
  cases += check_many_rows() + check_many_steps() + check_wide_projections();
  std::printf("stepwise equals its definition in %d cases\n", cases);
  return 0;
}
