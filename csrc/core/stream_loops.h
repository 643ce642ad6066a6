// The copy of stream_store.cc, compiled once per instruction set by foreach_isa.h.

#include "core/stream_bytes.h"

namespace qatfast {
namespace QATFAST_ISA_NAMESPACE {

inline void CopyAroundCaches(void* destination, const void* source, int64_t bytes) {
  char* to = static_cast<char*>(destination);
  const char* from = static_cast<const char*>(source);
  int64_t i = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(to) & 63);
  std::memcpy(to, from, i);
  for (; i + 64 <= bytes; i += 64) StreamBytes<64>(to + i, from + i);
  std::memcpy(to + i, from + i, bytes - i);
}

}  // namespace QATFAST_ISA_NAMESPACE
}  // namespace qatfast
