// How many workers run a layer on the CPU, and what each takes.
#pragma once

#include "../types.h"

namespace rnnkern {

// How the workers of the `simd` strategy share the time loop.
enum class Split { none, rows, units };

const char* name(Split split);

struct Sharing {
  int workers = 1;
  Split split = Split::none;

  int unit_workers() const { return split == Split::units ? workers : 1; }  // workers that do

  // With the same number of groups for every worker, each runs its own from beginning to end, one after the other and
  // in the same memory. Otherwise all workers run all groups together.
  bool whole_groups(int64_t groups) const { return workers == 1 || (split == Split::rows && groups % workers == 0); }
};

// Of at most `threads` workers.
Sharing share_work(const Problem& problem, int threads);

// How many panels a head's blocks of units are, of at most `columns` vectors with all `gates` of a block. Workers that
// share them, for `rows` rows, have as many each where the blocks are enough.
int64_t panels_of(int64_t blocks, int64_t heads, int gates, int columns, int workers, int64_t rows);

double simd_floor_us(const Problem& problem, int workers);

}  // namespace rnnkern
