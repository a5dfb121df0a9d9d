// What a plan needs to know of a GPU. Plain numbers, so that a plan for any GPU can be made on any machine.
#pragma once

#include <cstdint>

namespace rnnkern {

struct DeviceFacts {
  const char* name = "";
  int capability = 0;        // 90 is 9.0
  int multiprocessors = 0;   // that a cooperative launch may fill
  int shared_bytes = 0;      // of one block at most
  int registers = 65536;     // of a multiprocessor
  int max_cluster = 0;       // blocks of one cluster; 0: no clusters, or no kernel of theirs was compiled for this GPU
  double clock_ghz = 0;      // these three: 0 where unknown
  double bandwidth_gbs = 0;  // of global memory
  int64_t l2_bytes = 0;
  int clusters[4] = {};  // of 2, 4, 8 and 16 blocks that fill a multiprocessor each: how many run at once; 0: unknown
};

}  // namespace rnnkern
