// Runs the CPU kernels on the threads of the TensorFlow device that an op was placed on.
#ifndef QATFAST_TF_CPU_EXECUTION_OF_H_
#define QATFAST_TF_CPU_EXECUTION_OF_H_

#include <algorithm>
#include <optional>

#include "core/cpu_execution.h"
#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/threadpool.h"

namespace qatfast {

// What a thread takes at a time: long against waking it, short against the whole, since the caller works along with
// the pool's threads and so one more thread than there are cores competes for them.
constexpr int64_t kCyclesPerShard = 200'000;

inline CpuExecution CpuExecutionOf(tensorflow::OpKernelContext* context) {
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

}  // namespace qatfast

#endif  // QATFAST_TF_CPU_EXECUTION_OF_H_
