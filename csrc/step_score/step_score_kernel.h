// The dot products of step_score; the op is defined in ttc_kernels/step_score/reference.py.
#pragma once

#include "common/simd.h"
#include "step_score/step_score.h"

namespace ttc {
namespace TTC_ISA {
namespace {

template <typename T>
float dot(const void* a_data, const void* b_data, int64_t n) {
    using V = Simd::V;
    constexpr int W = Simd::W;
    const T *a = (const T*)a_data, *b = (const T*)b_data;
    V sums[4] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (int s = 0; s < 4; ++s)
            sums[s] = Simd::fma(Simd::load(a + i + s * W), Simd::load(b + i + s * W), sums[s]);
    for (; i + W <= n; i += W) sums[0] = Simd::fma(Simd::load(a + i), Simd::load(b + i), sums[0]);
    if (i < n) {
        const int left = (int)(n - i);
        sums[0] = Simd::fma(Simd::load_tail(a + i, left), Simd::load_tail(b + i, left), sums[0]);
    }
    return Simd::hsum(Simd::add(Simd::add(sums[0], sums[1]), Simd::add(sums[2], sums[3])));
}

}  // namespace

extern const DotKernels dot_kernels;
const DotKernels dot_kernels = {dot<float>, dot<bf16>};

}  // namespace TTC_ISA
}  // namespace ttc
