// The devices that kernels run on: how each runs them for an op.
#ifndef QATFAST_TF_DEVICES_H_
#define QATFAST_TF_DEVICES_H_

#include <algorithm>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/cpu_execution.h"
#include "core/cuda_execution.h"
#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/threadpool.h"
#if QATFAST_CUDA
#if __has_include("xla/stream_executor/stream.h")
#include "xla/stream_executor/stream.h"
#else  // TensorFlow 2.15
#include "tensorflow/compiler/xla/stream_executor/stream.h"
#endif
#endif

namespace qatfast {

// On the threads of the TensorFlow device that an op was placed on.
struct OnCpu {
  using Execution = CpuExecution;

  // Whether parameters can be read, and so be checked, before kernels run.
  static constexpr bool kReadsParameters = true;

  // What a thread takes at a time: long against waking it, short against the whole, since the caller works along with
  // the pool's threads and so one more thread than there are cores competes for them.
  static constexpr int64_t kCyclesPerShard = 200'000;

  static Execution ExecutionOf(tensorflow::OpKernelContext* context) {
    tensorflow::thread::ThreadPool* pool = context->device()->tensorflow_cpu_worker_threads()->workers;
    CpuExecution execution;
    execution.parallel_for = [pool](int64_t count, int64_t cycles_each, const RangeBody& body) {
      using Scheduling = tensorflow::thread::ThreadPool::SchedulingParams;
      const auto fixed = tensorflow::thread::ThreadPool::SchedulingStrategy::kFixedBlockSize;
      const int64_t shard = std::max<int64_t>(1, kCyclesPerShard / std::max<int64_t>(1, cycles_each));
      pool->ParallelFor(count, Scheduling(fixed, std::nullopt, shard), body);
    };
    return execution;
  }
  static absl::Status StatusOf(const Execution&) { return absl::OkStatus(); }
};

#if QATFAST_CUDA
// On the stream of the GPU that an op was placed on.
struct OnGpu {
  using Execution = CudaExecution;

  static constexpr bool kReadsParameters = false;

  static Execution ExecutionOf(tensorflow::OpKernelContext* context) {
    CudaExecution execution;
    execution.stream =
        static_cast<CudaStream>(context->op_device_context()->stream()->platform_specific_handle().stream);
    return execution;
  }
  static absl::Status StatusOf(const Execution& execution) {
    if (execution.error == nullptr) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("CUDA could not run the kernel: ", execution.error));
  }
};
#endif

}  // namespace qatfast

#endif  // QATFAST_TF_DEVICES_H_
