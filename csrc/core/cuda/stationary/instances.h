// The compiled kernels: a cell and a direction of the sweep each have a source file of their own.
#pragma once

#include <vector>

#include "../../cell/gru.h"
#include "../../cell/lstm.h"
#include "../../cell/rnn.h"
#include "../../platform.h"
#include "stationary_plan.h"

namespace rnnkern::stationary {

void forward(const LstmCell& cell, const Problem& problem, const std::vector<Group>& groups, const Choice& choice,
             CudaPlatform& platform);
void forward(const GruCell& cell, const Problem& problem, const std::vector<Group>& groups, const Choice& choice,
             CudaPlatform& platform);
void forward(const RnnCell& cell, const Problem& problem, const std::vector<Group>& groups, const Choice& choice,
             CudaPlatform& platform);

void backward(const LstmCell& cell, const Problem& problem, const std::vector<Group>& groups,
              const std::vector<GroupGradients>& gradients, const Choice& choice, CudaPlatform& platform);
void backward(const GruCell& cell, const Problem& problem, const std::vector<Group>& groups,
              const std::vector<GroupGradients>& gradients, const Choice& choice, CudaPlatform& platform);
void backward(const RnnCell& cell, const Problem& problem, const std::vector<Group>& groups,
              const std::vector<GroupGradients>& gradients, const Choice& choice, CudaPlatform& platform);

}  // namespace rnnkern::stationary
