// What every instruction set compiles. Included by avx512.cpp, avx2.cpp and portable.cpp inside their target regions.
#pragma once

#include "../dispatch.h"
#include "layer_backward.h"
#include "layer_forward.h"

namespace rnnkern::RNNKERN_ISA {

inline void forward_any(const Problem& problem, const Group* groups, int count, const Plan& plan,
                        CpuPlatform& platform) {
  dispatch(problem.dtype, [&](auto type) {
    dispatch(problem.cell, problem.activation, [&](auto cell) {
      forward<decltype(cell), typename decltype(type)::type>(cell, problem, groups, count, plan, platform);
    });
  });
}
inline void backward_any(const Problem& problem, const Group* groups, const GroupGradients* gradients, int count,
                         const Plan& plan, CpuPlatform& platform) {
  dispatch(problem.dtype, [&](auto type) {
    dispatch(problem.cell, problem.activation, [&](auto cell) {
      backward<decltype(cell), typename decltype(type)::type>(cell, problem, groups, gradients, count, plan, platform);
    });
  });
}

}  // namespace rnnkern::RNNKERN_ISA
