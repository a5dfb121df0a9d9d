// Calls from Python that go to the kernels past the dispatcher, where nobody would notice.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnkern {

void define_direct_calls(pybind11::module_& module);

}  // namespace rnnkern
