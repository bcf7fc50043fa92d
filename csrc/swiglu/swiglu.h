// What each instruction set's build of swiglu offers.
#pragma once

#include <cstdint>

namespace ttc {

// One call; strides in elements. A row of gate_up is `size` gates, then `size` ups. Type is float or bf16.
struct SwigluArgs {
    const void* gate_up;
    void* out;
    int64_t gate_up_stride, out_stride, size;
};

// Does rows [begin, end).
using SwigluRows = void (*)(const SwigluArgs& args, int64_t begin, int64_t end);

struct SwigluKernels {
    SwigluRows f32, bf16;
};

}  // namespace ttc
