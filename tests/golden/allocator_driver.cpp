// Runs programs on the released CUDA caching allocator; ops on stdin, results on stdout.
//
// The formats are those of the recorded runs, see allocator/README.md. A failed allocation leaves
// no block, and ops on it are skipped.
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>

#include <iostream>
#include <map>
#include <sstream>
#include <string>

// libc10_cuda exports this for libtorch_cuda alone; no header has it.
namespace c10::cuda::_internal {
void setHasPrimaryContext(bool (*has_primary_context)(c10::DeviceIndex));
}

extern "C" uint64_t stub_used();
extern "C" void stub_complete(uint64_t stream);

namespace alloc = c10::cuda::CUDACachingAllocator;
using c10::CachingAllocator::Stat;
using c10::CachingAllocator::StatArray;

static c10::cuda::CUDAStream stream_of(uint64_t handle) {
  return handle == 0 ? c10::cuda::getDefaultCUDAStream(0)
                     : c10::cuda::getStreamFromExternal(reinterpret_cast<cudaStream_t>(handle), 0);
}

static void print(const char* name, const StatArray& group) {
  std::cout << ' ' << name;
  for (const Stat& stat : group)
    std::cout << ' ' << stat.current << '/' << stat.peak << '/' << stat.allocated << '/' << stat.freed;
}

static void print_statistics() {
  const auto stats = alloc::getDeviceStats(0);
  std::cout << 'S';
  print("allocation", stats.allocation);
  print("segment", stats.segment);
  print("active", stats.active);
  print("inactive_split", stats.inactive_split);
  print("allocated_bytes", stats.allocated_bytes);
  print("reserved_bytes", stats.reserved_bytes);
  print("active_bytes", stats.active_bytes);
  print("inactive_split_bytes", stats.inactive_split_bytes);
  print("requested_bytes", stats.requested_bytes);
  std::cout << " retries " << stats.num_alloc_retries << " ooms " << stats.num_ooms << " sync "
            << stats.num_sync_all_streams << " dalloc " << stats.num_device_alloc << " dfree "
            << stats.num_device_free << " osa " << stats.oversize_allocations.current << " oss "
            << stats.oversize_segments.current << " mss " << stats.max_split_size << " used "
            << stub_used() << '\n';
}

static void print_snapshot() {
  const auto segments = alloc::snapshot().segments;
  std::cout << "SNAP " << segments.size() << '\n';
  for (const auto& s : segments) {
    std::cout << "G " << s.address << ' ' << s.total_size << ' ' << s.allocated_size << ' '
              << s.active_size << ' ' << reinterpret_cast<uint64_t>(s.stream) << ' ' << s.is_large
              << ' ' << s.is_expandable << ' ' << s.owner_private_pool_id.first << ' '
              << s.owner_private_pool_id.second << " :";
    for (const auto& b : s.blocks)
      std::cout << ' ' << b.size << ',' << b.requested_size << ',' << b.allocated << ',' << b.active;
    std::cout << '\n';
  }
}

static void print_trace() {
  static const char* const actions[] = {
      "alloc", "free_requested", "free_completed", "segment_alloc", "segment_free",
      "segment_map", "segment_unmap", "snapshot", "oom"};
  const auto traces = alloc::snapshot().device_traces;
  std::cout << "TRACE " << traces.at(0).size() << '\n';
  for (const auto& entry : traces[0])
    std::cout << "T " << actions[entry.action_] << ' ' << entry.addr_ << ' ' << entry.size_ << ' '
              << reinterpret_cast<uint64_t>(entry.stream_) << '\n';
}

int main(int argc, char** argv) {
  c10::cuda::_internal::setHasPrimaryContext([](c10::DeviceIndex) { return true; });
  // A handle type of its own keeps expandable segments from asking NVML about fabric memory.
  alloc::CUDAAllocatorConfig::set_expandable_segments_handle_type(
      alloc::Expandable_Segments_Handle_Type::POSIX_FD);
  alloc::init(1);
  if (argc > 1) alloc::setMemoryFraction(std::stod(argv[1]), 0);
  alloc::recordHistory(true, nullptr, SIZE_MAX, alloc::RecordContext::NEVER, true, {});
  std::map<std::string, at::DataPtr> live;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string op, name;
    uint64_t first = 0, second = 0;
    words >> op;
    if (op == "a") {
      words >> name >> first >> second;
      c10::cuda::setCurrentCUDAStream(stream_of(second));
      try {
        auto pointer = alloc::get()->allocate(first);
        std::cout << "A " << name << ' ' << reinterpret_cast<uint64_t>(pointer.get()) << '\n';
        live.emplace(name, std::move(pointer));
      } catch (const c10::OutOfMemoryError& error) {
        std::cout << "OOM " << name << ' ' << error.what_without_backtrace() << '\n';
      }
    } else if (op == "f") {
      words >> name;
      live.erase(name);
    } else if (op == "r") {
      words >> name >> first;
      const auto found = live.find(name);
      if (found != live.end()) alloc::get()->recordStream(found->second, stream_of(first));
    } else if (op == "c") {
      words >> first;
      stub_complete(first);
    } else if (op == "e") {
      alloc::emptyCache();
    } else if (op == "s") {
      print_statistics();
    } else if (op == "snap") {
      print_snapshot();
    } else if (op == "trace") {
      print_trace();
    } else {
      words >> first >> second;
      const c10::MempoolId_t id{first, second};
      if (op == "pb") alloc::get()->beginAllocateToPool(0, id, [](cudaStream_t) { return true; });
      if (op == "pe") alloc::get()->endAllocateToPool(0, id);
      if (op == "pr") alloc::get()->releasePool(0, id);
    }
  }
  std::cout.flush();
  _Exit(0);  // live blocks outlive the allocator's own destructors otherwise
}
