// What every instruction set compiles for int8 weights. Included by int8_*.cpp inside their target regions.
#pragma once

#include "../dispatch.h"
#include "int8_forward.h"

namespace rnnkern::RNNKERN_ISA {

inline void int8_forward_any(const Problem& problem, const Group* groups, const Int8Group* weights, int count,
                             const Sharing& sharing, CpuPlatform& platform) {
  dispatch(problem.cell, problem.activation,
           [&](auto cell) { int8_forward(cell, problem, groups, weights, count, sharing, platform); });
}

}  // namespace rnnkern::RNNKERN_ISA
