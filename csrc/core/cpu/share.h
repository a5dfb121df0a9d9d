// How many workers run a layer on the CPU, and what each takes.
#pragma once

#include "../plan.h"

namespace rnnkern {

// Sets a plan's workers, at most `threads`, and how they split the time loop.
void share_work(const Problem& problem, int threads, Plan& plan);

// How many panels a head's blocks of units are, of at most `columns` vectors with all `gates` of a block. Workers that
// share them, for `rows` rows, have as many each where the blocks are enough.
int64_t panels_of(int64_t blocks, int64_t heads, int gates, int columns, int workers, int64_t rows);

double simd_floor_us(const Problem& problem, int workers);

}  // namespace rnnkern
