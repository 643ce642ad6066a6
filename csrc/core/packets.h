// Kernels go through memory in packets: kLanes neighbours, loaded to and stored from an array of arithmetic numbers
// that the compiler keeps in registers. Included by foreach_isa.h bodies, once per instruction set.

#include "core/stream_bytes.h"

namespace qatfast {
namespace QATFAST_ISA_NAMESPACE {

// Asks for memory that a loop comes to later. A packet takes so many instructions that the processor looks only a few
// lines ahead by itself: too few to keep the memory busy.
constexpr int64_t kPrefetchBytes = 2048;
QATFAST_INLINE void Prefetch(const void* from) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + kPrefetchBytes));
}

template <typename A>
QATFAST_INLINE void StorePacket(const A* from, A* to) {
  QATFAST_FOR_LANES(lane) to[lane] = from[lane];
}

#if QATFAST_ISA_AVX512
// Hides where a vector came from. Else the compiler folds `condition ? loaded : 0` into a masked load, which waits for
// the condition, and with it for all that the condition was computed from, before it even asks the memory.
QATFAST_INLINE __m512 Opaque(__m512 loaded) {
  asm("" : "+v"(loaded));
  return loaded;
}
QATFAST_INLINE __m512d Opaque(__m512d loaded) {
  asm("" : "+v"(loaded));
  return loaded;
}

QATFAST_INLINE void LoadPacket(const float* from, float* to) { _mm512_storeu_ps(to, Opaque(_mm512_loadu_ps(from))); }

QATFAST_INLINE void LoadPacket(const double* from, double* to) {
  for (int half = 0; half < kLanes; half += 8) _mm512_storeu_pd(to + half, Opaque(_mm512_loadu_pd(from + half)));
}

QATFAST_INLINE void LoadPacket(const Float16* from, float* to) {
  const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm512_storeu_ps(to, Opaque(_mm512_cvtph_ps(numbers)));
}

QATFAST_INLINE void StorePacket(const float* from, Float16* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// A number's upper 16 bits are the odd ones of its two words.
QATFAST_INLINE void LoadPacket(const BFloat16* from, float* to) {
  const __m512i words = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  const __m512i order = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0,
                                         3, 0, 2, 0, 1, 0, 0, 0);
  _mm512_storeu_ps(to, Opaque(_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, order, words))));
}

// Narrow<BFloat16> of half.h.
QATFAST_INLINE void StorePacket(const float* from, BFloat16* to) {
  const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(from));
  const __mmask16 is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i below = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_mask_add_epi32(below, is_odd, below, _mm512_set1_epi32(1));
  const __m512i order = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27, 25, 23, 21, 19, 17,
                                         15, 13, 11, 9, 7, 5, 3, 1);
  const __m512i packed = _mm512_permutexvar_epi16(order, rounded);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(packed));
}
#else
template <typename A>
QATFAST_INLINE void LoadPacket(const A* from, A* to) {
  QATFAST_FOR_LANES(lane) to[lane] = from[lane];
}

#if QATFAST_ISA_AVX2
QATFAST_INLINE void LoadPacket(const Float16* from, float* to) {
  for (int half = 0; half < kLanes; half += 8) {
    _mm256_storeu_ps(to + half, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + half))));
  }
}

QATFAST_INLINE void StorePacket(const float* from, Float16* to) {
  for (int half = 0; half < kLanes; half += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + half),
                     _mm256_cvtps_ph(_mm256_loadu_ps(from + half), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
}
#else
QATFAST_INLINE void LoadPacket(const Float16* from, float* to) { QATFAST_FOR_LANES(lane) to[lane] = Widen(from[lane]); }

QATFAST_INLINE void StorePacket(const float* from, Float16* to) {
  QATFAST_FOR_LANES(lane) to[lane] = Narrow<Float16>(from[lane]);
}
#endif

QATFAST_INLINE void LoadPacket(const BFloat16* from, float* to) {
  QATFAST_FOR_LANES(lane) to[lane] = Widen(from[lane]);
}

QATFAST_INLINE void StorePacket(const float* from, BFloat16* to) {
  QATFAST_FOR_LANES(lane) to[lane] = Narrow<BFloat16>(from[lane]);
}
#endif

// to[lane] = from[index[lane]], with indices from 0 to kLanes - 1.
template <typename A>
QATFAST_INLINE void PermutePacket(const A* from, const int32_t* index, A* to) {
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = from[index[lane]];
}
#if QATFAST_ISA_AVX512
QATFAST_INLINE void PermutePacket(const float* from, const int32_t* index, float* to) {
  _mm512_storeu_ps(to, _mm512_permutexvar_ps(_mm512_loadu_si512(index), _mm512_loadu_ps(from)));
}
#endif

// StorePacket around the caches. Precondition: `to` is aligned to the bytes of a packet, or to 64 if they are more.
template <typename A>
QATFAST_INLINE void StreamPacket(const A* from, A* to) {
  StreamBytes<kLanes * sizeof(A)>(to, from);
}

template <typename A, typename T>
QATFAST_INLINE void StreamPacket(const A* from, T* to) {
  T packed[kLanes];
  StorePacket(from, packed);
  StreamBytes<kLanes * sizeof(T)>(to, packed);
}

// Bit i tells whether conditions[i] is not 0.
QATFAST_INLINE uint16_t PackBits(const int32_t* conditions) {
#if QATFAST_ISA_AVX512
  const __m512i loaded = _mm512_loadu_si512(conditions);
  return _mm512_test_epi32_mask(loaded, loaded);
#elif defined(__x86_64__)
  const __m128i* from = reinterpret_cast<const __m128i*>(conditions);
  const __m128i low = _mm_packs_epi32(_mm_loadu_si128(from), _mm_loadu_si128(from + 1));
  const __m128i high = _mm_packs_epi32(_mm_loadu_si128(from + 2), _mm_loadu_si128(from + 3));
  const __m128i bytes = _mm_packs_epi16(low, high);
  return static_cast<uint16_t>(_mm_movemask_epi8(_mm_cmpgt_epi8(bytes, _mm_setzero_si128())));
#else
  uint16_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= static_cast<uint16_t>((conditions[lane] != 0) << lane);
  return bits;
#endif
}

}  // namespace QATFAST_ISA_NAMESPACE
}  // namespace qatfast
