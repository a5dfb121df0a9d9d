// How many workers run a layer on the CPU, and what each takes.
#pragma once

#include "../plan.h"

namespace rnnkern {

// Sets a plan's workers, at most `threads`, and how they split the time loop.
void share_work(const Problem& problem, int threads, Plan& plan);

double simd_floor_us(const Problem& problem, int workers);

}  // namespace rnnkern
