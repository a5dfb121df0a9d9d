#include "device.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "../launch.cuh"
#include "driver.h"

namespace rnnkern {
namespace {

// Compiled for the same architectures as the sweep kernels, whose place it takes in questions to the driver.
constexpr auto kProbe = for_each_kernel<stationary::ZeroQuads, Sources::stationary>;

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  cudaDeviceGetAttribute(&value, name, device);
  return value;
}

// The architecture whose code would run here; 0: there is none. PTX of an older one counts as that.
int code_capability() {
  cudaFuncAttributes attributes = {};
  cudaError_t const error = cudaFuncGetAttributes(&attributes, kProbe);
  if (error == cudaSuccess) return attributes.ptxVersion;
  cudaGetLastError();  // forgets it
  // The code is loaded now, which may find room later. Everything else stays as it is: PTX for a newer driver, say.
  if (error == cudaErrorMemoryAllocation)
    throw std::runtime_error("rnnkern: no memory on the GPU for the kernels' code");
  return 0;
}

// Clusters of blocks that fill a multiprocessor each and run here at once: not every part of a GPU, or of a shared one,
// has room for 16 or even 8.
void ask_clusters(DeviceFacts& facts) {
  cudaFuncSetAttribute(kProbe, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaFuncSetAttribute(kProbe, cudaFuncAttributeMaxDynamicSharedMemorySize, facts.shared_bytes);
  for (int i = 0; i < 4; ++i) {
    unsigned const size = 2u << i;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = size, cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(size), config.blockDim = dim3(kForEachThreads);
    config.dynamicSmemBytes = static_cast<size_t>(facts.shared_bytes);
    config.attrs = &cluster, config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kProbe, &config) != cudaSuccess || clusters < 1) break;
    facts.clusters[i] = clusters;
    facts.max_cluster = static_cast<int>(size);
  }
  cudaGetLastError();
}

struct Known {
  std::string name;
  DeviceFacts facts;
};

// Makes a device the current one for its life. To set the one that is would make a context there.
class Current {
 public:
  explicit Current(int device) : device_(device) {
    cudaGetDevice(&before_);
    if (before_ != device_) cudaSetDevice(device_);
  }
  Current(const Current&) = delete;
  ~Current() {
    if (before_ != device_) cudaSetDevice(before_);
  }

 private:
  int const device_;
  int before_ = 0;
};

void ask(int device, Known& known) {
  Current const current(device);
  cudaDeviceProp properties = {};
  if (cudaGetDeviceProperties(&properties, device) == cudaSuccess) known.name = properties.name;
  DeviceFacts& facts = known.facts;
  facts.name = known.name.c_str();
  facts.capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor, device) + attribute(cudaDevAttrComputeCapabilityMinor, device);
  facts.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  facts.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  facts.registers = attribute(cudaDevAttrMaxRegistersPerMultiprocessor, device);
  facts.clock_ghz = attribute(cudaDevAttrClockRate, device) * 1e-6;
  facts.bandwidth_gbs =
      2e-6 * attribute(cudaDevAttrMemoryClockRate, device) * attribute(cudaDevAttrGlobalMemoryBusWidth, device) / 8;
  facts.l2_bytes = attribute(cudaDevAttrL2CacheSize, device);
  int const code = code_capability();
  if (code == 0) facts.shared_bytes = 0;  // nothing fits: stepwise
  if (attribute(cudaDevAttrCooperativeLaunch, device) == 0) facts.multiprocessors = 0;
  if (code >= 90 && attribute(cudaDevAttrClusterLaunch, device) != 0) ask_clusters(facts);
}

}  // namespace

const DeviceFacts& device_facts(int device) {
  static std::mutex mutex;
  static std::map<int, Known> known;  // a map's elements stay where they are
  std::lock_guard const lock(mutex);
  auto const [place, fresh] = known.try_emplace(device);
  if (!fresh) return place->second.facts;
  try {
    ask(device, place->second);
  } catch (...) {
    known.erase(place);
    throw;
  }
  return place->second.facts;
}

}  // namespace rnnkern
