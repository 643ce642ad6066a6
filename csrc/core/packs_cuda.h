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

// 16 bytes of neighbours, in registers. Indices must be known when compiling.
template <typename T>
struct alignas(kPackBytes) Pack {
  static constexpr int kWidth = kPackWidth<T>;
  using Word = BitsOf<std::conditional_t<sizeof(T) == 2, float, T>>;
  static constexpr int kPerWord = sizeof(Word) / sizeof(T);

  Word words[kPackBytes / sizeof(Word)];

  __device__ T Get(int j) const {
    if constexpr (kPerWord == 2) {
      const Word word = words[j / 2];
      return j % 2 == 0 ? LowerHalf<T>(word) : UpperHalf<T>(word);
    } else {
      return BitCast<T>(words[j]);
    }
  }
  // Sets kPerWord elements from element j on.
  __device__ void Set(int j, const Arithmetic<T> (&values)[kPerWord]) {
    if constexpr (kPerWord == 2) {
      words[j / 2] = NarrowPair<T>(values[0], values[1]);
    } else {
      words[j] = BitCast<Word>(values[0]);
    }
  }
  __device__ void Clear(int j) {
    if constexpr (kPerWord == 2) {
      words[j / 2] &= j % 2 == 0 ? 0xffff0000 : 0x0000ffff;
    } else {
      words[j] = 0;
    }
  }
};

// One access of 16 bytes. In PTX, since the compiler takes one apart where another branch moves the same elements one
// by one. Loads stay in order among themselves and before stores: all that a batch loads is under way before the first
// of it is used.
template <typename T>
__device__ Pack<T> LoadPack(const T* from) {
#if defined(__CUDA_ARCH__)
  uint4 bytes;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(bytes.x), "=r"(bytes.y), "=r"(bytes.z), "=r"(bytes.w)
               : "l"(__cvta_generic_to_global(from)));
  return BitCast<Pack<T>>(bytes);
#else
  return *reinterpret_cast<const Pack<T>*>(from);
#endif
}
template <typename T>
__device__ void StorePack(T* to, const Pack<T>& pack) {
#if defined(__CUDA_ARCH__)
  const uint4 bytes = BitCast<uint4>(pack);
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(bytes.x), "r"(bytes.y), "r"(bytes.z), "r"(bytes.w)
               : "memory");
#else
  *reinterpret_cast<Pack<T>*>(to) = pack;
#endif
}

// From here on the pack's elements may be looked at. Without this the compiler converts them where they are loaded, and
// the next load waits for that.
template <typename T>
__device__ void Arrive(Pack<T>& pack) {
#if defined(__CUDA_ARCH__)
  uint4 bytes = BitCast<uint4>(pack);
  asm volatile("" : "+r"(bytes.x), "+r"(bytes.y), "+r"(bytes.z), "+r"(bytes.w));
  pack = BitCast<Pack<T>>(bytes);
#else
  (void)pack;
#endif
}

// Writes the bits of kWidth elements, bit j of `bits` for the j-th, from `element` on (bit_mask.h); none if not
// `may_write`, which those whose elements share a byte agree on but for the last ones of the tensor. Adjacent threads,
// with adjacent elements, put their bits together to bytes: all of a warp call this.
template <int kWidth>
__device__ void StoreMaskBits(uint8_t* mask, int64_t element, unsigned bits, bool may_write) {
  constexpr int kPerByte = 8 / kWidth;
  const int part = threadIdx.x % kPerByte;
  bits = may_write ? bits << (part * kWidth) : 0;
#pragma unroll
  for (int distance = 1; distance < kPerByte; distance *= 2) {
    bits |= __shfl_xor_sync(0xffffffff, bits, distance);
  }
  if (part == 0 && may_write) mask[element / 8] = static_cast<uint8_t>(bits);
}

// What TeamSum needs of shared memory.
constexpr size_t kTeamSumBytes = kWarps * sizeof(double);

// The sum over a team of threads, in a fixed order; for thread 0 of the team. All threads of the block call this. A
// team is 1, 2, 4 ... 32 threads, or the block.
__device__ inline double TeamSum(double value, int team_log2) {
  const int shuffles = team_log2 < Log2(kWarp) ? team_log2 : Log2(kWarp);
  for (int distance = (1 << shuffles) / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffff, value, distance);
  }
  if (team_log2 == Log2(kThreads)) {
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
