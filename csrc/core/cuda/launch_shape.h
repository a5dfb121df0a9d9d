// The shape of a launch whose blocks and threads lie along one axis.
#pragma once

#include <cstddef>

namespace rnnkern {

struct LaunchShape {
  int blocks = 1;
  int threads = 32;          // of a block, a multiple of 32
  size_t shared_bytes = 0;   // dynamic shared memory of a block
  int cluster = 1;           // blocks of a cluster, which divides `blocks`
  bool cooperative = false;  // refuse the launch unless all blocks are resident at once
};

}  // namespace rnnkern
