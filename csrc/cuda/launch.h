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

// Blocks of a kernel that the current device holds at a time. The first call for a kernel and a device also lets it
// have that much shared memory.
inline cudaError_t resident_blocks(const void* kernel, int threads, int shared_bytes, int* blocks) {
    static std::mutex mutex;
    static std::map<std::pair<const void*, int>, int> known;
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto at = known.find({kernel, device});
    if (at != known.end()) {
        *blocks = at->second;
        return cudaSuccess;
    }
    int num_processors = 0, per_processor = 0;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error == cudaSuccess)
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, shared_bytes);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&num_processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess && per_processor < 1) error = cudaErrorLaunchOutOfResources;
    if (error == cudaSuccess) known[{kernel, device}] = *blocks = num_processors * per_processor;
    return error;
}

// Launches a kernel whose only parameter is `args`, on at most as many blocks as the device holds at a time where
// `is_persistent` (its blocks then share out the work among themselves).
template <typename Args>
const char* launch(void (*kernel)(Args), Grid grid, bool is_persistent, int64_t stream, Args args) {
    if (grid.blocks == 0) return nullptr;
    int resident = 0;
    cudaError_t error = resident_blocks((const void*)kernel, grid.threads, grid.shared_bytes, &resident);
    if (error == cudaSuccess) {
        const int64_t blocks = is_persistent && grid.blocks > resident ? resident : grid.blocks;
        void* parameters[] = {&args};
        error = blocks > INT32_MAX
                    ? cudaErrorInvalidConfiguration
                    : cudaLaunchKernel((const void*)kernel, dim3((unsigned)blocks), dim3((unsigned)grid.threads),
                                       parameters, (size_t)grid.shared_bytes, (cudaStream_t)stream);
    }
    return error == cudaSuccess ? nullptr : cudaGetErrorName(error);
}

}  // namespace gpu
}  // namespace ttc

#endif
