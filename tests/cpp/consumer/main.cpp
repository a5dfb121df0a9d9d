// A program outside the project: the installed headers and library are all that it has.
#include <rnnkern/plan.h>

int main() {
  rnnkern::Problem problem;
  problem.steps = 3, problem.batch = 2, problem.rows = 6, problem.input_size = problem.hidden_size = 8;
  return rnnkern::plan(problem, 1).strategy == "simd" ? 0 : 1;
}
