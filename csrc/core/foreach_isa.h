// Includes the file QATFAST_ISA_BODY once for each instruction set that this compiler can target. The body is
// code inside `namespace QATFAST_ISA_NAMESPACE`; it includes nothing itself, and all that it calls is forced
// inline, so that no function compiled for one instruction set is shared with another.
//
// QATFAST_ISA_BODY is a file name for #include. No include guard: each user has a body of its own.

// Before a loop: no iteration reads what another writes.
#if defined(__clang__)
#define QATFAST_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define QATFAST_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

#if defined(__x86_64__) && defined(__clang__)
#define QATFAST_ISA_NAMESPACE avx512
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#include QATFAST_ISA_BODY
#pragma clang attribute pop
#undef QATFAST_ISA_NAMESPACE

#define QATFAST_ISA_NAMESPACE avx2
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#include QATFAST_ISA_BODY
#pragma clang attribute pop
#undef QATFAST_ISA_NAMESPACE
#elif defined(__x86_64__)
#define QATFAST_ISA_NAMESPACE avx512
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#include QATFAST_ISA_BODY
#pragma GCC pop_options
#undef QATFAST_ISA_NAMESPACE

#define QATFAST_ISA_NAMESPACE avx2
#pragma GCC push_options
#pragma GCC target("avx2")
#include QATFAST_ISA_BODY
#pragma GCC pop_options
#undef QATFAST_ISA_NAMESPACE
#endif

#define QATFAST_ISA_NAMESPACE portable
#include QATFAST_ISA_BODY
#undef QATFAST_ISA_NAMESPACE

#undef QATFAST_INDEPENDENT_ITERATIONS
