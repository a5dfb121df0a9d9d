// What operations cost on a GPU: every constant of the plans' predictions, with its source. "Measured" are our own on
// an H200 (benchmarks/NOTES.md), "published" those of others on an H100, "data sheet" the peak rate of the vendor's,
// "assumed" nobody's: to be measured.
#pragma once

#include "stationary/device_facts.h"

namespace rnnkern {

// Cycles of a stationary step of one block and one tile of batch rows: what is there in any case, the way of the
// operand from block to block included, and what is added for each of something. Fitted to the sweeps' times on an H200
// (benchmarks/sweeps.py, 307 layouts): the root mean square of the relative deviation is 6 % for a block, 6 % for a
// cluster and 7 % for the grid.
struct StepCosts {
  double forward, backward;
  double lstm;         // for its longer cell
  double warp;         // for each warp of a block that has units
  double idle_warp;    // ... and for each other
  double round;        // each thread's further units of the tile
  double split;        // each further share of the depth, whose sums are added up
  double mma_half;     // each slab and tile of 16 weight rows, of the warps of one scheduler: 16-bit
  double mma_tf32;     // ... TF32
  double mma_exact;    // ... 3xTF32
  double fma;          // ... float32, and each batch row
  double chain_tf32;   // each product that waits for the one before
  double chain_exact;  // ... of 3xTF32
  double shared_slab;  // each slab and tile whose weights lie in shared memory
  double send;         // cluster: each store to another block by one thread
  double publish;      // grid: each further 32 pieces of the operand that a block makes
  double crowd;        // grid: with all multiprocessors at work
};

struct Costs {
  double cycles = 1500;  // of the clock, a microsecond

  // A multiprocessor's arithmetic, in cycles. A tensor core instruction: m16n8k16 of 16-bit values or m16n8k8 of TF32.
  double mma_issue = 6.3;          // published; of one of four tensor cores
  double mma_latency = 25;         // published
  double fma_lanes = 128;          // data sheet
  double pointwise_latency = 150;  // assumed: a chain of loads, activations and stores of one unit, at least
  double barrier = 40;             // assumed: of a block
  double shared_latency = 30;      // cycles, published

  // Steps of the stationary kernels. Where TF32 and float32 products are concerned the fit said 190, 171 and 170
  // (cluster) with a branch in front of each product, which is gone since: assumed are 60, 90 and 60.
  StepCosts block = {1037, 1184, 273, 58, 7, 921, 104, 29, 23, 81, 66, 62, 0, 118, 0, 0, 0};
  StepCosts cluster = {2447, 2681, 137, 48, 48, 672, 0, 11, 23, 20, 60, 60, 90, 98, 22, 0, 0};
  StepCosts grid = {3732, 4066, 44, 0, 0, 941, 148, 17, 8, 69, 60, 60, 90, 98, 0, 263, 192};

  double schedule = 2500;  // cycles, assumed: what a first version, which looked everything up, took longer than plain

  // The whole GPU.
  double l2_bytes = 26;             // a cycle and multiprocessor; measured: 6.8 TB/s for all 132
  double memory_bytes = 1e6;        // a microsecond
  double launch_us = 4.5;           // measured, of a kernel in a stream (in a graph: 0.5)
  double stationary_launch_us = 8;  // measured, of a cooperative or cluster launch, flags zeroed before it
  double gemm_latency_us = 2;       // measured: from a product's first load to its last store
  double gemm_rate = 4096;  // multiply-adds of 16-bit values, a cycle and multiprocessor, data sheet; TF32: half of it
  double gemm_efficiency = 0.35;     // assumed, of the products of one step on tensor cores
  double gemm_efficiency_fma = 0.7;  // assumed, in plain float32
};

inline Costs costs(const DeviceFacts& device) {
  Costs c;
  if (device.clock_ghz > 0) c.cycles = device.clock_ghz * 1e3;
  if (device.bandwidth_gbs > 0) c.memory_bytes = device.bandwidth_gbs * 1e3;
  if (device.capability < 80) {
    c.mma_issue = 16, c.gemm_rate = 512, c.fma_lanes = 64;  // these three: data sheets
  } else if (device.capability == 80) {
    c.mma_issue = 8, c.gemm_rate = 1024, c.fma_lanes = 64;
  } else if (device.capability / 10 != 9 && device.capability / 10 != 10) {
    c.mma_issue = 32, c.gemm_rate = 256;  // GPUs for desktops, summing in float32
  }
  return c;
}

}  // namespace rnnkern
