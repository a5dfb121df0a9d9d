// Words for messages.
#pragma once

#include <string>

#include "machine.h"

namespace rnnkern::emulation {

bool same(Site a, Site b);
std::string text(Site site);         // file:line
const char* name(Wait wait);         // as a kernel's author calls it
std::string ranges(uint32_t lanes);  // 0-3, 7

}  // namespace rnnkern::emulation
