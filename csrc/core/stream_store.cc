#include "core/stream_store.h"

#include <algorithm>
#include <cstring>

#include "core/inline.h"

#define QATFAST_ISA_BODY "core/stream_loops.h"
#include "core/foreach_isa.h"

namespace qatfast {

StreamCopy SelectStreamCopy(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::CopyAroundCaches;
  if (isa == Isa::kAvx2) return avx2::CopyAroundCaches;
#else
  (void)isa;
#endif
  return portable::CopyAroundCaches;
}

void StreamFence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace qatfast
