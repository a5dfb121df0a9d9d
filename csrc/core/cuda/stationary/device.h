// The numbers of the GPU that is there, for a plan.
#pragma once

#include "device_facts.h"

namespace rnnkern {

// Asked once per device of the process; the device is made current meanwhile.
const DeviceFacts& device_facts(int device);

}  // namespace rnnkern
