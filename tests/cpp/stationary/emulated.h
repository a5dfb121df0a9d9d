// The stationary kernels on the emulator: a source file for each cell and direction, so that they compile side by side.
#pragma once

#include "cuda/stationary/stationary_plan.h"
#include "dispatch.h"
#include "platform.h"

namespace rnnkern::emulation {
class Device;
}

namespace emulated {

using namespace rnnkern;
using emulation::Device;
using stationary::Choice;
using Groups = std::vector<Group>;
using Gradients = std::vector<GroupGradients>;

void forward(const LstmCell&, const Problem&, const Groups&, CudaPlatform&, const Device&, const Choice&,
             int64_t chunk);
void forward(const GruCell&, const Problem&, const Groups&, CudaPlatform&, const Device&, const Choice&, int64_t chunk);
void forward(const RnnCell&, const Problem&, const Groups&, CudaPlatform&, const Device&, const Choice&, int64_t chunk);

void backward(const LstmCell&, const Problem&, const Groups&, const Gradients&, CudaPlatform&, const Device&,
              const Choice&, int64_t chunk);
void backward(const GruCell&, const Problem&, const Groups&, const Gradients&, CudaPlatform&, const Device&,
              const Choice&, int64_t chunk);
void backward(const RnnCell&, const Problem&, const Groups&, const Gradients&, CudaPlatform&, const Device&,
              const Choice&, int64_t chunk);

}  // namespace emulated
