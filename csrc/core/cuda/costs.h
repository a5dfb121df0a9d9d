// What operations cost on a GPU: every constant of the plans' predictions, with its source. "Published" are
// measurements of others on an H100, "data sheet" the peak rate of the vendor's, "assumed" nobody's: to be measured.
#pragma once

#include "stationary/device_facts.h"

namespace rnnkern {

struct Costs {
  double cycles = 1500;  // of the clock, a microsecond

  // A multiprocessor's arithmetic, in cycles. A tensor core instruction: m16n8k16 of 16-bit values or m16n8k8 of TF32.
  double mma_issue = 6.3;          // published; of one of four tensor cores
  double mma_latency = 25;         // published
  double fma_lanes = 128;          // data sheet
  double special_lanes = 16;       // data sheet: exponentials, reciprocals
  double fma_latency = 4;          // published
  double pointwise_latency = 150;  // assumed: a chain of loads, activations and stores of one unit
  double barrier = 40;             // assumed: of a block

  // Shared memory.
  double shared_bytes = 128;   // a cycle, data sheet
  double shared_latency = 30;  // cycles, published

  // Between blocks.
  double cluster_latency = 200;  // cycles; published: 181 to 213 for a load of distributed shared memory
  double cluster_wait = 100;     // cycles, assumed: until the threads that wait see their barrier complete
  double cluster_bytes = 14;     // a cycle and multiprocessor; published: 3.3 TB/s of all 132
  double flag_hop_us = 0.6;      // published: 0.56 to 0.65, through the L2 cache
  double l2_latency = 300;       // cycles; published: 258 to 414
  double l2_bytes = 24;          // a cycle and multiprocessor; published: 5.5 TB/s for all 132
  double l2_bytes_alone = 64;    // ... while few ask: data sheet

  // The whole GPU.
  double memory_latency = 600;      // cycles; published: 480 to 650
  double memory_bytes = 1e6;        // a microsecond
  double launch_us = 1.3;           // published, of a kernel in a graph
  double stationary_launch_us = 6;  // assumed: a cooperative or cluster launch, flags zeroed before it
  double gemm_latency_us = 2;       // assumed: from a product's first load to its last store
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
  } else if (device.capability != 90 && device.capability != 100) {
    c.mma_issue = 32, c.gemm_rate = 256;  // GPUs for desktops, summing in float32
  }
  return c;
}

}  // namespace rnnkern
