// How a stationary sweep is laid out over a GPU: what the planner chooses and kernels read. Pure arithmetic, shared by
// the plan, the driver and the kernels.
//
// A team of blocks holds the recurrent weights of one recurrence once. A block owns some hidden units; its warps form
// row_groups x depth_splits: a warp multiplies the weight rows of its row group with its share of the depth. The depth
// is cut into slabs of 64 bytes, so that one slab of 8 batch rows is 32 lanes x 16 bytes.
#pragma once

#include "../../host_device.h"
#include "../../types.h"

namespace rnnkern::stationary {

// 16 bits each: the sizes that follow in a kernel's arguments then lie so that two are one load, which spares
// registers.
enum class Exchange : int16_t { block, cluster, grid };
enum class Sweep : int16_t { forward, backward };
enum class Math { bfloat16, float16, tf32, fma };  // tf32 also serves 3xTF32

inline constexpr int kTileRows = 8;    // batch rows that are multiplied together, at most
inline constexpr int kChunks = 4;      // a slab's depth in pieces of 16 bytes
inline constexpr int kRowPadding = 4;  // of the partial sums: neighbouring batch rows in other banks
inline constexpr int kMaxTeam = 160;   // blocks
inline constexpr int kMaxGroups = 8;   // of one launch; a kernel's arguments are at most 4 KB

// Weight rows of a row group: one warp multiplies this many with every slab.
RNNKERN_HD constexpr int rows_per_group(Sweep sweep) { return sweep == Sweep::forward ? 32 : 16; }

// A slab takes 16 registers of each lane forward (two tiles of 16 rows), 8 backward.
RNNKERN_HD constexpr int register_slabs(Exchange exchange, Sweep sweep, int element_bytes) {
  bool const forward = sweep == Sweep::forward;
  bool const narrow = element_bytes == 2;  // 3xTF32 needs some registers for remainders
  if (exchange == Exchange::block) return (narrow ? 3 : 2) * (forward ? 1 : 2);
  return forward ? (exchange == Exchange::grid && !narrow ? 8 : 9) : exchange == Exchange::grid ? 21 : narrow ? 20 : 19;
}

// Threads of a block at most: those of `block` have half the registers each.
RNNKERN_HD constexpr int max_threads(Exchange exchange) { return exchange == Exchange::block ? 512 : 256; }

struct Tiling {
  Exchange exchange = Exchange::block;
  Sweep sweep = Sweep::forward;
  int element_bytes = 2;      // of the operand: 2 or 4
  int row_gates = 4;          // gates whose rows a block holds: G forward, 1 backward
  int depth_gates = 1;        // values that a unit contributes to the depth: 1 forward, G backward
  int team = 1;               // blocks that hold the weights once
  int teams = 1;              // of each recurrence, each with its own part of the batch
  int tiles = 1;              // of a team
  int tile_rows = kTileRows;  // batch rows of a tile; fewer only in teams of one tile, and not in a grid
  int units = 8;              // of a block, a multiple of 8; team * units >= H
  int row_groups = 1, depth_splits = 1;

  RNNKERN_HD constexpr int threads() const { return 32 * row_groups * depth_splits; }
  RNNKERN_HD constexpr int rows() const { return units * row_gates; }  // weight rows of a block
  RNNKERN_HD constexpr int padded_rows() const { return row_groups * rows_per_group(sweep) + kRowPadding; }

  // Depth: block after block, of each its gates, of each its units.
  RNNKERN_HD constexpr int block_depth() const { return units * depth_gates; }
  RNNKERN_HD constexpr int block_chunks() const { return block_depth() * element_bytes / 16; }
  RNNKERN_HD constexpr int slabs() const { return (team * block_chunks() + kChunks - 1) / kChunks; }
  RNNKERN_HD constexpr int split_slabs() const { return (slabs() + depth_splits - 1) / depth_splits; }  // of a warp
  RNNKERN_HD constexpr int register_slabs() const {
    int const most = stationary::register_slabs(exchange, sweep, element_bytes);
    return split_slabs() < most ? split_slabs() : most;
  }
  RNNKERN_HD constexpr int shared_slabs() const { return split_slabs() - register_slabs(); }  // of a warp

  // Pieces of 16 bytes.
  RNNKERN_HD constexpr int operand_quads() const { return slabs() * 32; }                 // of a tile, once
  RNNKERN_HD constexpr int outbox_quads() const { return block_chunks() * kTileRows; }    // a block's part of it
  RNNKERN_HD constexpr int slab_quads() const { return rows_per_group(sweep) / 8 * 32; }  // weights of a warp

  // All weights of one recurrence, as PackWeights orders them.
  RNNKERN_HD constexpr int64_t packed_quads() const {
    return int64_t{split_slabs()} * slab_quads() * team * row_groups * depth_splits;
  }

  // Shared memory, in bytes, in this order.
  RNNKERN_HD constexpr int operand_copies() const { return exchange == Exchange::grid ? 1 : 2; }
  RNNKERN_HD constexpr int operand_bytes() const { return operand_copies() * operand_quads() * 16; }
  RNNKERN_HD constexpr int outbox_bytes() const { return exchange == Exchange::grid ? outbox_quads() * 16 : 0; }
  RNNKERN_HD constexpr int weight_bytes() const {
    return row_groups * depth_splits * shared_slabs() * slab_quads() * 16;
  }
  RNNKERN_HD constexpr int partial_bytes() const { return depth_splits * kTileRows * padded_rows() * 4; }
  RNNKERN_HD constexpr int state_bytes() const { return 2 * tiles * units * kTileRows * 4; }  // h and c
  RNNKERN_HD constexpr int barrier_bytes() const { return exchange == Exchange::cluster ? 16 : 0; }
  RNNKERN_HD constexpr int shared_bytes() const {
    return operand_bytes() + outbox_bytes() + weight_bytes() + partial_bytes() + state_bytes() + barrier_bytes();
  }

  // Global memory of one recurrence for the grid exchange: two copies of each tile's operand, and a flag of each block
  // for each tile. All of it starts as zero.
  RNNKERN_HD constexpr int64_t exchange_quads() const { return int64_t{2} * teams * tiles * operand_quads(); }
  RNNKERN_HD constexpr int64_t flags() const { return int64_t{teams} * tiles * team; }
  RNNKERN_HD constexpr int64_t blocks() const { return int64_t{teams} * team; }  // of one recurrence
};

// What a kernel asks of its Tiling at every step, worked out once: divisions are slow on a GPU.
struct Sizes {
  int threads = 0, units = 0, team = 0, depth_splits = 0, slabs = 0, split_slabs = 0, shared_slabs = 0;
  int padded_rows = 0, split_stride = 0;  // of the partial sums: from batch row to batch row, from split to split
  int operand_quads = 0, block_chunks = 0;
  int unit_stride = 0, row_stride = 0;  // from an element of a thread to its next
  int head_size = 0;                    // hidden units of one recurrence
  int tile_items = 0;                   // elements of a block's tile
  int targets = 1, parts = 1;           // cluster: blocks that warps send to at once, and warps for each
  // Shared memory: where each array begins, in bytes.
  int outbox_at = 0, weights_at = 0, partial_at = 0, state_at = 0, barriers_at = 0, end = 0;

  static constexpr int sent_at_once(const Tiling& t) {
    int const warps = t.threads() / 32, others = t.team > 1 ? t.team - 1 : 1;
    return warps < others ? warps : others;
  }

  Sizes() = default;
  explicit Sizes(const Tiling& t, int64_t head_size)
      : threads(t.threads()), units(t.units), team(t.team), depth_splits(t.depth_splits), slabs(t.slabs()),
        split_slabs(t.split_slabs()), shared_slabs(t.shared_slabs()), padded_rows(t.padded_rows()),
        split_stride(kTileRows * t.padded_rows()), operand_quads(t.operand_quads()), block_chunks(t.block_chunks()),
        unit_stride(t.threads() % t.units), row_stride(t.threads() / t.units), head_size(static_cast<int>(head_size)),
        tile_items(t.units * kTileRows), targets(sent_at_once(t)), parts(t.threads() / 32 / targets),
        outbox_at(t.operand_bytes()), weights_at(outbox_at + t.outbox_bytes()),
        partial_at(weights_at + t.weight_bytes()), state_at(partial_at + t.partial_bytes()),
        barriers_at(state_at + t.state_bytes()), end(barriers_at + t.barrier_bytes()) {}
};

}  // namespace rnnkern::stationary
