#include "report.h"

#include <cstdio>
#include <cstring>
#include <map>

namespace rnnkern::emulation {

bool same(Site a, Site b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string text(Site site) {
  const char* const slash = std::strrchr(site.file_name(), '/');
  return std::string(slash == nullptr ? site.file_name() : slash + 1) + ":" + std::to_string(site.line());
}

const char* name(Wait wait) {
  switch (wait) {
    case Wait::nothing: return "ready";
    case Wait::barrier: return "barrier";
    case Wait::shuffle: return "shuffle";
    case Wait::mma: return "mma";
    case Wait::warp: return "sync_warp";
    case Wait::cluster: return "cluster_sync";
    case Wait::flag: return "flag_wait";
    case Wait::mbarrier: return "mbarrier_wait";
    case Wait::spin: return "a loop of loads";
    case Wait::exited: return "exited";
  }
  return "";
}

namespace {

void add_range(std::string& out, int first, int last) {
  if (!out.empty()) out += ", ";
  out += std::to_string(first);
  if (last == first) return;
  out += '-';
  out += std::to_string(last);
}

}  // namespace

std::string ranges(uint32_t lanes) {
  std::string out;
  for (int i = 0; i < kLanes; ++i) {
    if ((lanes >> i & 1) == 0) continue;
    int last = i;
    while (last + 1 < kLanes && (lanes >> (last + 1) & 1) != 0) ++last;
    add_range(out, i, last);
    i = last;
  }
  return out;
}

void fail(const std::string& what, Site site) {
  std::string place;
  if (running != nullptr) {
    place = "block " + std::to_string(running->block) + ", thread " + std::to_string(running->index) + ", at " +
            text(site) + ": ";
  }
  throw Error(place + what);
}

void Machine::fail_at(const std::string& what, Site site) const { fail(what, site); }

// Who waits where, threads of a block that wait for the same together:
//   block 0: barrier at stationary.cuh:29 <- threads 0-95; exited <- threads 96-127
std::string Machine::deadlock() const {
  std::string out = "deadlock: no thread can go on";
  for (Block const& block : blocks_) {
    if (!block.started() || !block.running()) continue;
    std::map<std::string, std::string> groups;  // what is waited for: threads
    for (int first = 0; first < shape_.threads;) {
      auto const describe = [&](const Thread& thread) {
        std::string what = name(thread.wait);
        if (thread.wait == Wait::exited) return what;
        char detail[160] = "";
        if (thread.wait == Wait::flag) {
          std::snprintf(detail, sizeof detail, " of flag %p (wanted %u, is %u)", thread.object, thread.wanted,
                        *static_cast<const uint32_t*>(thread.object));
        } else if (thread.wait == Wait::mbarrier) {
          auto const& m = *static_cast<const Mbarrier*>(thread.object);
          std::snprintf(detail, sizeof detail,
                        " of mbarrier %d (parity %u, phase %u, %d of %d arrivals and %lld bytes to come)", m.index,
                        thread.wanted, m.phase, m.pending, m.arrivals, static_cast<long long>(m.bytes));
        }
        return what + detail + " at " + text(thread.site);
      };
      std::string const what = describe(block.threads[first]);
      int last = first;
      while (last + 1 < shape_.threads && describe(block.threads[last + 1]) == what) ++last;
      add_range(groups[what], first, last);
      first = last + 1;
    }
    out += "\n  block " + std::to_string(block.index) + ": ";
    bool more = false;
    for (auto const& [what, threads] : groups) {
      if (more) out += "; ";
      more = true;
      bool const one = threads.find_first_of(",-") == std::string::npos;
      out += what + (one ? " <- thread " : " <- threads ") + threads;
    }
  }
  size_t const left = start_order_.size() - started_;
  if (left > 0) {
    out += "\n  " + std::to_string(left * shape_.cluster) +
           " blocks wait for a multiprocessor: " + std::to_string(options_.resident_blocks) + " are taken";
  }
  return out;
}

}  // namespace rnnkern::emulation
