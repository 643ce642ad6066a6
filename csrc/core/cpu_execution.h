// How the CPU kernels run: on whose threads, with which instructions, in which floating-point mode.
#ifndef QATFAST_CORE_CPU_EXECUTION_H_
#define QATFAST_CORE_CPU_EXECUTION_H_

#include <cstdint>
#include <functional>
#include <string>

namespace qatfast {

// Calls body(begin, end) for disjoint ranges that together cover [0, count), possibly at the same time on
// several threads, and returns when all are done. `cycles_each` estimates the cost of one unit.
using RangeBody = std::function<void(int64_t begin, int64_t end)>;
using ParallelFor = std::function<void(int64_t count, int64_t cycles_each, const RangeBody& body)>;

enum class Isa { kPortable, kAvx2, kAvx512 };

const char* IsaName(Isa isa);

// The best instruction set that this processor has, or the one that QATFAST_ISA=portable|avx2|avx512 names. Throws
// std::invalid_argument if that is no such name, or one that this processor cannot run.
Isa BestIsa();

// Whether this processor can run code compiled for `isa`.
bool IsSupported(Isa isa);

// Parses a name that IsaName returns. False if there is no such name.
bool ParseIsa(const std::string& name, Isa* isa);

// Outputs of this many bytes or more are written around the caches: half of what a core finds for itself in the
// last-level cache of a server, since inputs want a place there too. What the system reports can be the sum over a
// socket whose other parts belong to others.
constexpr int64_t kStreamingBytes = int64_t{16} << 20;

struct CpuExecution {
  ParallelFor parallel_for;
  Isa isa = BestIsa();
  int64_t streaming_bytes = kStreamingBytes;

  // Whether an output of so many bytes is written around the caches. Never over an input, whose lines are in them.
  bool ShouldStream(int64_t bytes, bool in_place) const { return !in_place && bytes >= streaming_bytes; }
};

// While it lives, denormal inputs and results of this thread count as zero, as in every TensorFlow kernel.
class ScopedFlushDenormals {
 public:
  ScopedFlushDenormals();
  ~ScopedFlushDenormals();
  ScopedFlushDenormals(const ScopedFlushDenormals&) = delete;
  ScopedFlushDenormals& operator=(const ScopedFlushDenormals&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace qatfast

#endif  // QATFAST_CORE_CPU_EXECUTION_H_
