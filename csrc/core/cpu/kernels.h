// What every instruction set compiles. Included by avx512.cpp, avx2.cpp and the like inside their target regions.
#pragma once

#include "../dispatch.h"
#include "layer_backward.h"
#include "layer_forward.h"

namespace rnnkern::RNNKERN_ISA {

// Dot products of bfloat16 leave the other dtypes as AVX512 has them.
#if defined(RNNKERN_BF16_DOT)
template <class T>
constexpr bool kAsAvx512 = !std::is_same_v<T, BFloat16>;
#else
template <class T>
constexpr bool kAsAvx512 = false;
#endif

inline void forward_any(const Problem& problem, const Group* groups, int count, const Sharing& sharing,
                        CpuPlatform& platform) {
  dispatch(problem.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (kAsAvx512<T>) {
      avx512_kernels.forward(problem, groups, count, sharing, platform);
    } else {
      dispatch(problem.cell, problem.activation,
               [&](auto cell) { forward<decltype(cell), T>(cell, problem, groups, count, sharing, platform); });
    }
  });
}
inline void backward_any(const Problem& problem, const Group* groups, const GroupGradients* gradients, int count,
                         const Sharing& sharing, CpuPlatform& platform) {
  dispatch(problem.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (kAsAvx512<T>) {
      avx512_kernels.backward(problem, groups, gradients, count, sharing, platform);
    } else {
      dispatch(problem.cell, problem.activation, [&](auto cell) {
        backward<decltype(cell), T>(cell, problem, groups, gradients, count, sharing, platform);
      });
    }
  });
}

}  // namespace rnnkern::RNNKERN_ISA
