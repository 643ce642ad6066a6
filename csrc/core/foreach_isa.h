// Includes the file QATFAST_ISA_BODY once for each instruction set that this compiler can target. The body is
// code inside `namespace QATFAST_ISA_NAMESPACE`; it includes nothing itself, and all that it calls is forced
// inline, so that no function compiled for one instruction set is shared with another.
//
// QATFAST_ISA_BODY is a file name for #include. No include guard: each user has a body of its own.

// The body may use QATFAST_ISA_AVX512 and QATFAST_ISA_AVX2: whether it may call these instructions' intrinsics.

// Over the lanes of a packet. Kept a loop: GCC turns it into vectors, but not once it is unrolled.
#if defined(__clang__)
#define QATFAST_FOR_LANES(lane) _Pragma("clang loop vectorize(assume_safety)") for (int lane = 0; lane < kLanes; ++lane)
#else
#define QATFAST_FOR_LANES(lane) _Pragma("GCC ivdep") _Pragma("GCC unroll 1") for (int lane = 0; lane < kLanes; ++lane)
#endif
#define QATFAST_LAMBDA_INLINE __attribute__((always_inline))

#if defined(__x86_64__)
#include <immintrin.h>

// clang-format off: a pragma's string cannot be cut
#if defined(__clang__)
#define QATFAST_BEGIN_TARGET_AVX512 \
  _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,f16c\"))), apply_to = function)")
#define QATFAST_BEGIN_TARGET_AVX2 \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,f16c\"))), apply_to = function)")
#define QATFAST_END_TARGET _Pragma("clang attribute pop")
#else
#define QATFAST_BEGIN_TARGET_AVX512 \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,f16c,prefer-vector-width=512\")")
#define QATFAST_BEGIN_TARGET_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,f16c\")")
#define QATFAST_END_TARGET _Pragma("GCC pop_options")
#endif
// clang-format on

#define QATFAST_ISA_NAMESPACE avx512
#define QATFAST_ISA_AVX512 1
#define QATFAST_ISA_AVX2 1
QATFAST_BEGIN_TARGET_AVX512
#include QATFAST_ISA_BODY
QATFAST_END_TARGET
#undef QATFAST_ISA_AVX512
#undef QATFAST_ISA_NAMESPACE

#define QATFAST_ISA_NAMESPACE avx2
#define QATFAST_ISA_AVX512 0
QATFAST_BEGIN_TARGET_AVX2
#include QATFAST_ISA_BODY
QATFAST_END_TARGET
#undef QATFAST_ISA_AVX2
#undef QATFAST_ISA_AVX512
#undef QATFAST_ISA_NAMESPACE

#undef QATFAST_BEGIN_TARGET_AVX512
#undef QATFAST_BEGIN_TARGET_AVX2
#undef QATFAST_END_TARGET
#endif

#define QATFAST_ISA_NAMESPACE portable
#define QATFAST_ISA_AVX512 0
#define QATFAST_ISA_AVX2 0
#include QATFAST_ISA_BODY
#undef QATFAST_ISA_AVX2
#undef QATFAST_ISA_AVX512
#undef QATFAST_ISA_NAMESPACE

#undef QATFAST_FOR_LANES
#undef QATFAST_LAMBDA_INLINE
