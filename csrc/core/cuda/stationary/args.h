// What a stationary kernel is given: the layout, and pointers for each group. All plain data, passed by value.
#pragma once

#include "../course.h"
#include "../primitives.cuh"
#include "tiling.h"

namespace rnnkern::stationary {

// One group's forward sweep. Shapes as in types.h; a head is a recurrence of its own within the group.
template <class T>
struct ForwardGroup {
  bool reverse;
  const int64_t* lengths;       // [B]
  const bool* reset;            // [rows]
  const int64_t* offsets;       // [T + 1] of a packed sequence, device memory
  device::Quad* weights;        // [heads, packed_quads] w_hh as PackWeights wrote it
  const T *b_ih, *b_hh;         // [G*H]
  const T *h_0, *c_0;           // [B, H], null: zero
  const T* mask;                // [B, H] recurrent dropout
  const bool *zone_h, *zone_c;  // [rows, H]
  T* gates;                     // [gate_rows, gate_width] x @ w_ih^T; then what the cell saves
  int64_t first_row;            // of `gates`
  T* y;                         // [rows, H], rows y_stride apart
  T *h_n, *c_n;                 // [B, H], null: not wanted
  T* cells;                     // [rows, H], null: not wanted
};

template <class T>
struct BackwardGroup {
  bool reverse;
  const int64_t* lengths;
  const bool* reset;
  const int64_t* offsets;
  device::Quad* weights;
  const T *h_0, *c_0, *mask;
  const bool *zone_h, *zone_c;
  const T *y, *cells;  // read where there is more than one step
  const T* saved;      // [rows, K*H]; d_gates may be the same memory
  T* d_gates;          // [rows, columns * H]
  const T* d_y;        // [rows, H], rows y_stride apart; these four null: zero
  const T *d_h_n, *d_c_n, *d_cells;
  T *d_h_0, *d_c_0;  // null: not wanted
};

template <class Cell, class Group>
struct SweepArgs {
  Cell cell;
  Tiling tiling;
  Sizes sizes;      // of `tiling`
  bool exact;       // tf32: three products in the place of one
  bool save;        // forward: keep what backward needs in `gates`
  bool keep_cells;  // forward: `cells` are wanted
  bool plain;       // every row lives at every step, and nothing is masked, cut or blended
  int heads;
  int64_t steps, batch, hidden;
  int64_t gate_width;  // elements of a row of `gates`
  int64_t y_stride;
  int64_t d_y_stride;  // backward, plain: zero where `d_y` is one row of zeros
  float zoneout;       // without masks
  // A long inference is swept in parts: steps [begin, end) in the order of the recurrence, the state in between kept
  // in float.
  int64_t begin, end;
  float *carry_h, *carry_c;  // [groups, B, H]; null where one part is all
  device::Quad* exchange;    // tiling.exchange_quads() for each recurrence; zero
  uint32_t* flags;           // tiling.flags() for each recurrence; zero
  int groups;
  Group group[kMaxGroups];
};

template <class Cell, class T>
using ForwardArgs = SweepArgs<Cell, ForwardGroup<T>>;
template <class Cell, class T>
using BackwardArgs = SweepArgs<Cell, BackwardGroup<T>>;

}  // namespace rnnkern::stationary
