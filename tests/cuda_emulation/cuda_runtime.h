// A CPU in the place of a GPU: what the kernels use of CUDA, so that a C++ compiler takes the .cu files as they are and
// tests run the very code that a GPU will run. Device memory is host memory, that of device 0 unless it is said to be
// of another one (SetDeviceOf).
//
// Each thread of a block is a fiber, which runs until it waits: at __syncthreads() for its block, in a shuffle for its
// warp. Threads that wait for others that never come are an error. The order of threads can be varied: what depends on
// it is a race. Blocks run one after another. What this does not show: speed, the memory model, alignment faults, and
// anything that the device's own arithmetic does differently.
#ifndef QATFAST_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H_
#define QATFAST_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H_

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <mutex>
#include <random>
#include <tuple>
#include <vector>

#include "core/cpu_execution.h"
#include "core/cuda_execution.h"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint4 {
  unsigned x, y, z, w;
};

inline dim3 blockIdx, threadIdx;

namespace qatfast {
namespace cuda {

inline double* shared_memory;  // of the kernel that runs

}  // namespace cuda
}  // namespace qatfast

namespace cuda_emulation {

constexpr int kWarp = 32;
constexpr size_t kMaxSharedBytes = 48 * 1024;

enum class Order { kForward, kBackward, kShuffled };

struct Settings {
  Order order = Order::kForward;
  int64_t blocks_run = 0;
  int64_t launch_count = 0;
  int launch_device = -1;
  std::mutex mutex;
};
inline Settings settings;

inline void SetThreadOrder(Order order) { settings.order = order; }
// Has only `count` blocks of each grid run, half of them the first, half the last. 0: all.
inline void SetBlocksRun(int64_t count) { settings.blocks_run = count; }
inline int64_t LaunchCount() { return settings.launch_count; }
// The device of the last launch.
inline int LaunchDevice() { return settings.launch_device; }

constexpr int kDevices = 3;
constexpr int kHost = -1;
inline thread_local int current_device = 0;

struct Memory {
  uintptr_t begin, end;
  int device;
};
inline std::vector<Memory> memory_elsewhere;

// Says that memory is a device's, or the host's.
inline void SetDeviceOf(uintptr_t begin, size_t bytes, int device) {
  memory_elsewhere.push_back({begin, begin + bytes, device});
}
inline void ForgetDevices() { memory_elsewhere.clear(); }
inline int DeviceOf(uintptr_t pointer) {
  for (const Memory& memory : memory_elsewhere) {
    if (memory.begin <= pointer && pointer < memory.end) return memory.device;
  }
  return 0;
}

[[noreturn]] inline void Die(const char* message) {
  std::cerr << "cuda_emulation: " << message << " (block " << blockIdx.x << ")" << std::endl;
  std::abort();
}

// Dynamic shared memory. It ends where a page begins that may not be touched, so what is read or written beyond it is a
// fault.
class SharedMemory {
 public:
  static constexpr size_t kAlignment = 16;

  SharedMemory() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t usable = (kMaxSharedBytes + page - 1) / page * page;
    void* memory = mmap(nullptr, usable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + usable, page, PROT_NONE) != 0) std::abort();
    end_ = static_cast<char*>(memory) + usable;
  }

  // Gives the kernel that runs next `bytes` of it.
  void Resize(size_t bytes) {
    bytes_ = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    qatfast::cuda::shared_memory = reinterpret_cast<double*>(end_ - bytes_);
  }
  void FillWithNan() { std::memset(end_ - bytes_, 0xff, bytes_); }

 private:
  char* end_;
  size_t bytes_ = 0;
};
inline SharedMemory shared_memory;

// The fibers of one block after another.
class Block {
 public:
  Block(int num_threads, const std::function<void()>& kernel)
      : kernel_(kernel), fibers_(num_threads), states_(num_threads), warp_values_(num_threads) {
    current_block = this;
    for (Fiber& fiber : fibers_) {
      fiber.stack.reset(new char[kStackBytes]);
      getcontext(&fiber.start);
      fiber.start.uc_stack.ss_sp = fiber.stack.get();
      fiber.start.uc_stack.ss_size = kStackBytes;
      makecontext(&fiber.start, &Block::Enter, 0);
    }
  }

  void Run() {
    shared_memory.FillWithNan();  // which shows what is read unwritten
    std::fill(states_.begin(), states_.end(), State::kReady);
    num_done_ = 0;
    next_ = First(0, size());
    while (num_done_ < size()) {
      const int next = NextReady();
      if (next >= 0) {
        Resume(next);
      } else if (ReleaseIfAllWait(0, size(), State::kWaitsForBlock)) {
        next_ = First(0, size());
      } else {
        Die("threads wait for others that never come");
      }
    }
  }

  // Waits for the other threads of the block.
  void WaitForBlock() { Wait(State::kWaitsForBlock); }

  // The value that thread `lane ^ lane_mask` of the warp gives at the same time.
  template <typename T>
  T ExchangeInWarp(T value, int lane_mask) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "larger values are not shuffled at once");
    const int self = running_;
    std::memcpy(&warp_values_[self], &value, sizeof(T));
    Wait(State::kWaitsForWarp);
    T other;
    std::memcpy(&other, &warp_values_[self ^ lane_mask], sizeof(T));
    Wait(State::kWaitsForWarp);  // nobody writes before all have read
    return other;
  }

  static inline Block* current_block = nullptr;

 private:
  static constexpr size_t kStackBytes = 64 * 1024;
  enum class State { kReady, kWaitsForBlock, kWaitsForWarp, kDone };
  struct Fiber {
    ucontext_t start;  // jumps alone would save a fiber's way, not give it a stack
    std::unique_ptr<char[]> stack;
    bool has_started = false;
    jmp_buf place;
  };

  int size() const { return static_cast<int>(fibers_.size()); }

  static void Enter() {
    Block& block = *current_block;
    while (true) {
      block.kernel_();
      block.Wait(State::kDone);
    }
  }

  static int First(int begin, int end) { return settings.order == Order::kBackward ? end - 1 : begin; }

  // The thread that goes on next: one after another from the first or from the last, or any; -1 if none can. A warp
  // whose threads have met goes on at once, and so runs ahead of the others as far as it may.
  int NextReady() {
    const int n = size();
    if (settings.order == Order::kShuffled) next_ = static_cast<int>(random_() % n);
    const int direction = settings.order == Order::kBackward ? n - 1 : 1;
    for (int step = 0; step < n; ++step, next_ = (next_ + direction) % n) {
      if (states_[next_] == State::kReady) return next_;
    }
    return -1;
  }

  void Resume(int i) {
    running_ = i;
    threadIdx.x = static_cast<unsigned>(i);
    if (_setjmp(scheduler_) != 0) return;
    if (fibers_[i].has_started) _longjmp(fibers_[i].place, 1);
    fibers_[i].has_started = true;
    setcontext(&fibers_[i].start);
  }

  void Wait(State state) {
    states_[running_] = state;
    if (state == State::kDone) ++num_done_;
    const int warp = running_ / kWarp * kWarp, warp_end = std::min(size(), warp + kWarp);
    if (state == State::kWaitsForWarp && ReleaseIfAllWait(warp, warp_end, state)) {
      next_ = First(warp, warp_end);
    }
    if (_setjmp(fibers_[running_].place) == 0) _longjmp(scheduler_, 1);
  }

  bool ReleaseIfAllWait(int first, int last, State state) {
    for (int i = first; i < last; ++i) {
      if (states_[i] != state) return false;
    }
    std::fill(states_.begin() + first, states_.begin() + last, State::kReady);
    return true;
  }

  const std::function<void()>& kernel_;
  std::vector<Fiber> fibers_;
  std::vector<State> states_;
  std::vector<uint64_t> warp_values_;
  int num_done_ = 0;
  int next_ = 0;
  jmp_buf scheduler_;
  int running_ = 0;
  std::mt19937 random_{1};
};

}  // namespace cuda_emulation

inline void __syncthreads() { cuda_emulation::Block::current_block->WaitForBlock(); }

template <typename T>
T __shfl_xor_sync(unsigned members, T value, int lane_mask) {
  if (members != 0xffffffff) cuda_emulation::Die("only whole warps shuffle");
  return cuda_emulation::Block::current_block->ExchangeInWarp(value, lane_mask);
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101 };

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "invalid configuration argument";
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = cuda_emulation::current_device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= cuda_emulation::kDevices) return cudaErrorInvalidDevice;
  cuda_emulation::current_device = device;
  return cudaSuccess;
}

enum cudaMemoryType { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeDevice = 2 };
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const int device = cuda_emulation::DeviceOf(reinterpret_cast<uintptr_t>(pointer));
  *attributes = {device == cuda_emulation::kHost ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice, device};
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim{}, blockDim{};
  size_t dynamicSmemBytes = 0;
  qatfast::CudaStream stream = nullptr;
};

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  using cuda_emulation::settings;
  const std::lock_guard<std::mutex> lock(settings.mutex);
  const int64_t num_blocks = config->gridDim.x;
  if (num_blocks < 1 || num_blocks > 0x7fffffff || config->dynamicSmemBytes > cuda_emulation::kMaxSharedBytes) {
    return cudaErrorInvalidConfiguration;
  }
  ++settings.launch_count;
  settings.launch_device = cuda_emulation::current_device;
  const std::tuple<Params...> params(args...);
  const std::function<void()> run = [&] { std::apply(kernel, params); };
  const qatfast::ScopedFlushDenormals flush;
  cuda_emulation::shared_memory.Resize(config->dynamicSmemBytes);
  cuda_emulation::Block block(static_cast<int>(config->blockDim.x), run);
  const bool all = settings.blocks_run <= 0 || settings.blocks_run >= num_blocks;
  const int64_t count = all ? num_blocks : settings.blocks_run;
  for (int64_t i = 0; i < count; ++i) {
    blockIdx.x = static_cast<unsigned>(all || i < count / 2 ? i : num_blocks - count + i);
    block.Run();
  }
  return cudaSuccess;
}

#endif  // QATFAST_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H_
