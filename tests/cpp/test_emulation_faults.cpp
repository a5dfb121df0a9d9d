// The emulator catches what a kernel does wrong: each planted fault by the modes that its line names, on every seed,
// and the correct form of the same kernel by none. Prints how often each mode caught each fault.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/emulation/launch.h"
#include "emulation_faults.h"

using namespace faults;

namespace {

constexpr int kSeeds = 20;
constexpr size_t kWords = 512;
constexpr uint32_t kNothing = 0xffffffff;
constexpr char kWrongResult[] = "wrong result";

uint32_t same_as_index(uint32_t i) { return i; }

struct Kernels {
  void (*correct)(Args);
  void (*faulty)(Args);
};

struct Fault {
  const char* name;
  Kernels kernels;
  LaunchShape shape;
  size_t words;      // of `out` that the kernel writes
  bool plain;        // the plain schedule catches it
  int skewed;        // seeds at least whose schedules catch it; the race check does on every seed
  std::string text;  // of one of the messages; empty: it shows in the result alone
  uint32_t (*want)(uint32_t) = same_as_index;
};

LaunchShape const kBlock = {.threads = 128, .shared_bytes = 2304}, kWarp = {.threads = 32, .shared_bytes = 1024},
                  kGrid = {.blocks = 2, .threads = 128, .cooperative = true},
                  kCluster = {.blocks = 2, .threads = 32, .shared_bytes = 528, .cluster = 2};

template <Pass wrong>
constexpr Kernels kPass = {pass_wrongly<wrong, false>, pass_wrongly<wrong, true>};
template <Send wrong>
constexpr Kernels kSend = {send_wrongly<wrong, false>, send_wrongly<wrong, true>};

constexpr int kAll = kSeeds, kSome = kSeeds / 4;

Fault const kFaults[] = {
    {"missing barrier", {missing_barrier<false>, missing_barrier<true>}, kBlock, 128, true, kAll, "race: "},
    {"missing second barrier",
     {missing_second_barrier<false>, missing_second_barrier<true>},
     kBlock,
     512,
     false,
     kAll,
     "race: "},
    {"missing sync_warp", {missing_sync_warp<false>, missing_sync_warp<true>}, kWarp, 32, true, kAll, "race: "},
    {"barrier in half the block",
     {half_barrier<false>, half_barrier<true>},
     kBlock,
     128,
     true,
     kAll,
     "; exited <- threads 64-127"},
    {"divergent barrier",
     {divergent_barrier<false>, divergent_barrier<true>},
     kBlock,
     128,
     true,
     kAll,
     "divergent barrier: other threads of the block wait at"},
    {"exited thread at a barrier",
     {exited_thread<false>, exited_thread<true>},
     kBlock,
     128,
     true,
     kAll,
     "<- threads 0-126; exited <- thread 127"},
    {"half-warp shuffle", {half_warp_shuffle<false>, half_warp_shuffle<true>}, kBlock, 128, true, kAll, "shuffle at"},
    {"past the end of an array",
     {past_the_end<false>, past_the_end<true>},
     kBlock,
     128,
     true,
     kAll,
     "element 128 of an array of 128"},
    {"into the next array",
     {into_the_next_array<false>, into_the_next_array<true>},
     kBlock,
     128,
     true,
     kAll,
     "of an array of 64 at byte 0"},
    {"before an array",
     {before_the_array<false>, before_the_array<true>},
     kBlock,
     128,
     true,
     kAll,
     "element -1 of an array of 128 at byte 256"},
    {"misaligned quads", {misaligned_quads<false>, misaligned_quads<true>}, kBlock, 128, true, kAll, "aligned to 16"},
    {"wrong fragment index",
     {wrong_fragment_index<false>, wrong_fragment_index<true>},
     kWarp,
     128,
     true,
     kAll,
     "",
     product_element},
    {"swapped fragments",
     {swapped_fragments<false>, swapped_fragments<true>},
     kWarp,
     128,
     true,
     kAll,
     "",
     product_element},
    {"copy waited for too late", {late_copy_wait<false>, late_copy_wait<true>}, kBlock, 128, true, kAll, "race: "},
    {"copy never waited for",
     {no_copy_wait<false>, no_copy_wait<true>},
     kBlock,
     128,
     true,
     kAll,
     "1 asynchronous copies pending"},
    {"copy over what is still read",
     {early_copy<false>, early_copy<true>},
     kBlock,
     128,
     false,
     0,
     "writes memory asynchronously"},
    {"flag: missing wait", kPass<Pass::missing_wait>, kGrid, 128, false, kSome, "race: "},
    {"flag: no barrier before release", kPass<Pass::missing_barrier_before_release>, kGrid, 128, false, kSome,
     "race: "},
    {"flag: no barrier after wait", kPass<Pass::missing_barrier_after_wait>, kGrid, 128, false, kSome, "race: "},
    {"flag: relaxed load", kPass<Pass::relaxed_load>, kGrid, 128, false, 0, "race: "},
    {"flag: plain store", kPass<Pass::plain_store>, kGrid, 128, false, 0, "race: "},
    {"cluster: no sync after init", kSend<Send::missing_sync>, kCluster, 96, false, kSome, "initialised"},
    {"cluster: no init_done", kSend<Send::missing_init_done>, kCluster, 96, false, 0, "may not be initialised yet"},
    {"mbarrier: too many arrivals", kSend<Send::two_arrivals>, kCluster, 96, true, kAll, "1 of 2 arrivals and"},
    {"mbarrier: too many bytes", kSend<Send::too_many_bytes>, kCluster, 96, true, kAll,
     "0 of 1 arrivals and 16 bytes to come"},
    {"mbarrier: too few bytes", kSend<Send::too_few_bytes>, kCluster, 96, true, kAll, "race: "},
    {"mbarrier: missing wait", kSend<Send::missing_wait>, kCluster, 96, true, kAll, "race: "},
    {"mbarrier: wrong parity", kSend<Send::wrong_parity>, kCluster, 96, true, kAll, "race: "},
    {"store to an exited block", kSend<Send::early_exit>, kCluster, 96, true, kAll, "which has ended"},
    {"mbarrier: global memory behind it",
     {global_behind_an_mbarrier<false>, global_behind_an_mbarrier<true>},
     kCluster,
     32,
     false,
     0,
     "race: "},
    {"cluster: none was launched",
     {store_without_clusters<false>, store_without_clusters<true>},
     kWarp,
     32,
     true,
     kAll,
     "in a launch without clusters"},
    {"store before a reply", kSend<Send::missing_reply>, kCluster, 96, true, kAll, ""},
};

// What went wrong; empty: nothing.
std::string run(const Fault& fault, void (*kernel)(Args), const emulation::Options& options) {
  std::vector<uint32_t> out(kWords, kNothing), flags(2);
  std::vector<Quad> exchange(128, quad(kNothing));
  try {
    emulation::Device(options).launch(kernel, fault.shape, Args{out.data(), exchange.data(), flags.data()});
  } catch (const emulation::Error& error) {
    return error.what();
  }
  for (uint32_t i = 0; i < kWords; ++i) {
    uint32_t const want = i < fault.words ? fault.want(i) : kNothing;
    if (out[i] != want) return kWrongResult;
  }
  return "";
}

struct Mode {
  const char* name;
  bool skewed, race_check;

  int seeds() const { return skewed ? kSeeds : 1; }
  int must_catch(const Fault& fault) const {
    if (race_check) return seeds();
    return skewed ? fault.skewed : fault.plain;
  }
};
Mode const kModes[] = {
    {"plain", false, false}, {"skewed", true, false}, {"race", false, true}, {"race, skewed", true, true}};

bool check(const Fault& fault) {
  bool right = true, said = fault.text.empty();
  std::string message;
  std::printf("%-34s", fault.name);
  for (const Mode& mode : kModes) {
    int caught = 0;
    for (int seed = 0; seed < mode.seeds(); ++seed) {
      emulation::Options const options = {
          .seed = static_cast<uint64_t>(seed), .skewed = mode.skewed, .race_check = mode.race_check};
      std::string const clean = run(fault, fault.kernels.correct, options);
      if (!clean.empty()) {
        std::printf("\nFAILED the correct kernel, %s, seed %d: %s\n", mode.name, seed, clean.c_str());
        return false;
      }
      std::string const wrong = run(fault, fault.kernels.faulty, options);
      caught += !wrong.empty();
      if (wrong != kWrongResult && !wrong.empty()) message = wrong;
      said = said || wrong.find(fault.text) != std::string::npos;
    }
    std::printf("%6d of %2d%c", caught, mode.seeds(), caught < mode.must_catch(fault) ? '!' : ' ');
    right = right && caught >= mode.must_catch(fault);
  }
  std::printf("\n");
  if (!said) std::printf("FAILED no message says \"%s\", but \"%s\"\n", fault.text.c_str(), message.c_str());
  return right && said;
}

}  // namespace

int main() {
  int failed = 0;
  std::printf("%-34s", "caught in");
  for (const Mode& mode : kModes) std::printf("%13s", mode.name);
  std::printf("\n");
  for (const Fault& fault : kFaults) failed += !check(fault);
  std::printf("%zu planted faults, %d of them not caught as they must be\n", std::size(kFaults), failed);
  return failed == 0 ? 0 : 1;
}
