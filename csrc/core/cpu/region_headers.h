// All that must be compiled for the oldest processor, before a target region begins: what the regions' own code
// includes, so that no inline function of the standard library or of the core is compiled for a newer one and chosen by
// the linker for all.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#pragma GCC diagnostic push  // GCC 12's own intrinsics make their undefined registers in a way that it then warns of
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "../dtype.h"
#include "../int8.h"
#include "../platform.h"
#include "../types.h"
#include "barrier.h"
#include "share.h"
#include "simd.h"
#include "timeline.h"
