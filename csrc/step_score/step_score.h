// What each instruction set's build of step_score offers.
#pragma once

#include <cstdint>

namespace ttc {

// Sum of a[i] * b[i] in float.
struct DotKernels {
    float (*f32)(const void* a, const void* b, int64_t n);
    float (*bf16)(const void* a, const void* b, int64_t n);
};

}  // namespace ttc
