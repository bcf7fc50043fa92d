// How the exported C functions start kernels. They return null, or the name of the CUDA error of the launch.
#pragma once

#include <cstdint>

#include "cuda/device.h"

#define TTC_EXPORT extern "C" __attribute__((visibility("default")))

namespace ttc {
namespace gpu {

struct Grid {
    int64_t blocks;
    int threads, shared_bytes;  // of a block
};

}  // namespace gpu
}  // namespace ttc

#ifdef __CUDACC__

#include <map>
#include <mutex>
#include <utility>

namespace ttc {
namespace gpu {

// Makes a device current, and the one before it again at the end.
class DeviceGuard {
public:
    explicit DeviceGuard(int64_t device) {
        error_ = cudaGetDevice(&before_);
        if (error_ == cudaSuccess && before_ != (int)device) {
            error_ = cudaSetDevice((int)device);
            is_changed_ = error_ == cudaSuccess;
        }
    }
    ~DeviceGuard() {
        if (is_changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
    const char* error() const { return error_ == cudaSuccess ? nullptr : cudaGetErrorName(error_); }

private:
    int before_ = 0;
    cudaError_t error_;
    bool is_changed_ = false;
};

// What launches of a kernel on a device depend on.
struct Limits {
    int blocks;       // that the device holds at a time
    bool can_overlap;  // whether a kernel may be started before the end of the one before: await_earlier_kernels
};

// The limits on the current device. The first call for a kernel and a device also lets it have that much shared memory.
inline cudaError_t find_limits(const void* kernel, int threads, int shared_bytes, Limits* limits) {
    static std::mutex mutex;
    static std::map<std::pair<const void*, int>, Limits> known;
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto at = known.find({kernel, device});
    if (at != known.end()) {
        *limits = at->second;
        return cudaSuccess;
    }
    int num_processors = 0, per_processor = 0, major = 0;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error == cudaSuccess)
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, shared_bytes);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&num_processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess && per_processor < 1) error = cudaErrorLaunchOutOfResources;
    if (error == cudaSuccess) known[{kernel, device}] = *limits = {num_processors * per_processor, major >= 9};
    return error;
}

// Launches a kernel whose only parameter is `args`, on at most as many blocks as the device holds at a time where
// `is_persistent` (its blocks then share out the work among themselves).
template <typename Args>
const char* launch(void (*kernel)(Args), Grid grid, bool is_persistent, int64_t stream, Args args) {
    if (grid.blocks == 0) return nullptr;
    Limits limits = {};
    cudaError_t error = find_limits((const void*)kernel, grid.threads, grid.shared_bytes, &limits);
    if (error != cudaSuccess) return cudaGetErrorName(error);
    const int64_t blocks = is_persistent && grid.blocks > limits.blocks ? limits.blocks : grid.blocks;
    if (blocks > INT32_MAX) return cudaGetErrorName(cudaErrorInvalidConfiguration);
    void* parameters[] = {&args};
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)blocks), config.blockDim = dim3((unsigned)grid.threads);
    config.dynamicSmemBytes = (size_t)grid.shared_bytes, config.stream = (cudaStream_t)stream;
    config.attrs = &overlap, config.numAttrs = limits.can_overlap ? 1 : 0;
    error = cudaLaunchKernelExC(&config, (const void*)kernel, parameters);
    return error == cudaSuccess ? nullptr : cudaGetErrorName(error);
}

}  // namespace gpu
}  // namespace ttc

#endif
