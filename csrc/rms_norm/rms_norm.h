// What each instruction set's build of rms_norm offers.
#pragma once

#include <cstdint>

namespace ttc {

// One call; strides in elements, rows of `hidden` contiguous elements. `residual` may be null. Type is float or bf16.
struct RmsNormArgs {
    const void* x;
    const void* weight;
    void* residual;
    void* out;
    int64_t x_stride, residual_stride, out_stride, hidden;
    float eps;
};

// Does rows [begin, end).
using RmsNormRows = void (*)(const RmsNormArgs& args, int64_t begin, int64_t end);

struct RmsNormKernels {
    RmsNormRows f32, bf16;
};

}  // namespace ttc
