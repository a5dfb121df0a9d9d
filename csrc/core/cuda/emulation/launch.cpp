#include "launch.h"

#include "machine.h"

namespace rnnkern::emulation {

void Device::run(const LaunchShape& shape, void (*body)(const void*), const void* context) const {
  ++statistics.launches;
  // Each launch of a device has its own schedule.
  uint64_t const seed = options.seed * 0x9e3779b97f4a7c15 + static_cast<uint64_t>(statistics.launches);
  Machine(shape, {body, context}, options, seed, statistics).run();
}

}  // namespace rnnkern::emulation
