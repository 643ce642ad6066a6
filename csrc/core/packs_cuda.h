// What all CUDA kernels are made of: packs of 16 bytes, bits of masks, sums over teams of threads, and the launch.
#ifndef QATFAST_CORE_PACKS_CUDA_H_
#define QATFAST_CORE_PACKS_CUDA_H_

#include <cuda_runtime.h>

#include <type_traits>

#include "core/channel_tiles_cuda.h"
#include "core/cuda_execution.h"
#include "core/half.h"
#include "core/quant_math.h"

namespace qatfast {
namespace cuda {

#if defined(__CUDACC__)
extern __shared__ double shared_memory[];
#endif  // else tests/cuda_emulation has it

template <typename T>
struct alignas(kPackBytes) Pack {
  T values[kPackWidth<T>];
};

// One access of 16 bytes. In PTX, since the compiler takes one apart where another branch moves the same elements one
// by one.
__device__ inline uint4 LoadBytes(const void* from) {
#if defined(__CUDA_ARCH__)
  uint4 bytes;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(bytes.x), "=r"(bytes.y), "=r"(bytes.z), "=r"(bytes.w)
               : "l"(__cvta_generic_to_global(from)));
  return bytes;
#else
  return *static_cast<const uint4*>(from);
#endif
}
__device__ inline void StoreBytes(void* to, uint4 bytes) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(bytes.x), "r"(bytes.y), "r"(bytes.z), "r"(bytes.w)
               : "memory");
#else
  *static_cast<uint4*>(to) = bytes;
#endif
}

// The elements of `span` that lie in the pack at `position`; 0 for those of the pack that lie outside.
template <typename T>
__device__ Pack<T> LoadPack(const T* from, const PackGrid& grid, Span span, int64_t position) {
  const T* here = from + (position - grid.shift);
  if (grid.aligned && span.HoldsPack(position, kPackWidth<T>)) {
    return BitCast<Pack<T>>(LoadBytes(here));
  }
  Pack<T> pack;
#pragma unroll
  for (int j = 0; j < kPackWidth<T>; ++j) pack.values[j] = span.Holds(position + j) ? here[j] : T();
  return pack;
}

template <typename T>
__device__ void StorePack(T* to, const PackGrid& grid, Span span, int64_t position, const Pack<T>& pack) {
  T* here = to + (position - grid.shift);
  if (grid.aligned && span.HoldsPack(position, kPackWidth<T>)) {
    StoreBytes(here, BitCast<uint4>(pack));
    return;
  }
#pragma unroll
  for (int j = 0; j < kPackWidth<T>; ++j) {
    if (span.Holds(position + j)) here[j] = pack.values[j];
  }
}

// Denormal numbers count as zero, as on the CPU. For float the compiler's -ftz=true does it; it does nothing for
// double.
__device__ inline float FlushDenormal(float value) { return value; }
__device__ inline double FlushDenormal(double value) {
  return value > -kSmallestNormal<double> && value < kSmallestNormal<double> ? 0.0 : value;
}

template <typename T>
__device__ Arithmetic<T> ToArithmetic(T value) {
  if constexpr (std::is_same_v<T, Arithmetic<T>>) {
    return FlushDenormal(value);
  } else {
    return Widen(value);
  }
}

template <typename T>
__device__ T FromArithmetic(Arithmetic<T> value) {
  if constexpr (std::is_same_v<T, Arithmetic<T>>) {
    return value;
  } else {
    return Narrow<T>(value);
  }
}

// Writes the mask's bits of the elements that lie in `span`, bit j of `bits` for the pack's element j (bit_mask.h).
// Adjacent threads, with adjacent packs, put their bits together to bytes: all of a warp call this, and positions are
// elements.
template <int kWidth>
__device__ void StoreMaskBits(uint8_t* mask, Span span, int64_t position, unsigned bits) {
  constexpr int kPacksPerByte = 8 / kWidth;
  const int64_t held = span.end - position;
  if (held < kWidth) bits &= held > 0 ? (1u << held) - 1 : 0u;
  const int part = threadIdx.x % kPacksPerByte;
  bits <<= part * kWidth;
#pragma unroll
  for (int distance = 1; distance < kPacksPerByte; distance *= 2) {
    bits |= __shfl_xor_sync(0xffffffff, bits, distance);
  }
  if (part == 0 && held > 0) mask[position / 8] = static_cast<uint8_t>(bits);
}

// Bits of the mask from element `first` on, `kWidth` of them at least, for elements that lie in [0, size).
template <int kWidth>
__device__ unsigned LoadMaskBits(const uint8_t* mask, int64_t first, int64_t size) {
  const int64_t from = first > 0 ? first : 0;
  const int64_t last = first + kWidth < size ? first + kWidth - 1 : size - 1;
  if (last < from) return 0;
  unsigned bits = mask[from / 8];
  if (last / 8 != from / 8) bits |= static_cast<unsigned>(mask[last / 8]) << 8;
  return bits >> from % 8 << (from - first);
}

// What TeamSum needs of shared memory for a block.
constexpr size_t kTeamSumBytes = kWarps * sizeof(double);

// The sum over a team of threads, in a fixed order; for thread 0 of the team. All of the team call this. A team is one
// thread, a warp, or the block.
template <int kTeam>
__device__ double TeamSum(double value) {
  static_assert(kTeam == 1 || kTeam == kWarp || kTeam == kThreads, "a thread, a warp or a block");
  if constexpr (kTeam > 1) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffff, value, distance);
  }
  if constexpr (kTeam == kThreads) {
    __syncthreads();  // an earlier sum may still be read
    if (threadIdx.x % kWarp == 0) shared_memory[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = 0;
    for (int warp = 0; warp < kWarps; ++warp) value += shared_memory[warp];
  }
  return value;
}

// Queues a kernel of `num_blocks` blocks of kThreads threads, unless there are none or an earlier launch failed.
template <typename... Params, typename... Args>
void Launch(const CudaExecution& execution, void (*kernel)(Params...), int64_t num_blocks, size_t shared_bytes,
            const Args&... args) {
  if (num_blocks == 0 || execution.error != nullptr) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(num_blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = execution.stream;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, args...);
  if (status == cudaSuccess) return;
  execution.error = cudaGetErrorString(status);
  cudaGetLastError();  // so that nobody else finds it
}

}  // namespace cuda
}  // namespace qatfast

#endif  // QATFAST_CORE_PACKS_CUDA_H_
