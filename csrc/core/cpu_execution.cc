#include "core/cpu_execution.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace qatfast {
namespace {

constexpr Isa kIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512};

#if defined(__x86_64__)
constexpr uint64_t kFlushDenormals = 0x8040;  // MXCSR: flush to zero, denormals are zero
uint64_t ReadControlRegister() { return _mm_getcsr(); }
void WriteControlRegister(uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
constexpr uint64_t kFlushDenormals = uint64_t{1} << 24;  // FPCR: FZ
uint64_t ReadControlRegister() {
  uint64_t value;
  asm volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
void WriteControlRegister(uint64_t value) { asm volatile("msr fpcr, %0" ::"r"(value)); }
#else
constexpr uint64_t kFlushDenormals = 0;
uint64_t ReadControlRegister() { return 0; }
void WriteControlRegister(uint64_t) {}
#endif

Isa DetectBestIsa() {
  Isa best = Isa::kPortable;
  for (Isa isa : kIsas) {
    if (IsSupported(isa)) best = isa;
  }
  const char* name = std::getenv("QATFAST_ISA");
  if (name == nullptr) return best;
  Isa wanted;
  if (!ParseIsa(name, &wanted) || !IsSupported(wanted)) {
    throw std::invalid_argument(
        std::string("QATFAST_ISA must be an instruction set that this processor has (portable") +
        (IsSupported(Isa::kAvx2) ? ", avx2" : "") + (IsSupported(Isa::kAvx512) ? ", avx512" : "") + "), got " + name);
  }
  return wanted;
}

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

bool ParseIsa(const std::string& name, Isa* isa) {
  for (Isa candidate : kIsas) {
    if (name == IsaName(candidate)) {
      *isa = candidate;
      return true;
    }
  }
  return false;
}

bool IsSupported(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::kAvx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("f16c");
  }
  if (isa == Isa::kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
#endif
  return isa == Isa::kPortable;
}

Isa BestIsa() {
  static const Isa best = DetectBestIsa();
  return best;
}

ScopedFlushDenormals::ScopedFlushDenormals() : saved_(ReadControlRegister()) {
  WriteControlRegister(saved_ | kFlushDenormals);
}

ScopedFlushDenormals::~ScopedFlushDenormals() { WriteControlRegister(saved_); }

}  // namespace qatfast
