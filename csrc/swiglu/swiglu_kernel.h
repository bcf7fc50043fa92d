// SwiGLU of one row after another; defined in ttc_kernels/swiglu/reference.py.
#pragma once

#include "common/silu.h"
#include "common/simd.h"
#include "swiglu/swiglu.h"

namespace ttc {
namespace TTC_ISA {
namespace {

using V = Simd::V;

template <typename T>
void swiglu_row(const T* gate, const T* up, T* out, int64_t size) {
    constexpr int W = Simd::W;
    int64_t i = 0;
    for (; i + W <= size; i += W)
        Simd::store(out + i, Simd::mul(round_as(gate, silu(Simd::load(gate + i))), Simd::load(up + i)));
    if (i < size) {
        const int n = (int)(size - i);
        const V gated = round_as(gate, silu(Simd::load_tail(gate + i, n)));
        Simd::store_tail(out + i, Simd::mul(gated, Simd::load_tail(up + i, n)), n);
    }
}

template <typename T>
void swiglu_rows(const SwigluArgs& a, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const T* gate = (const T*)a.gate_up + row * a.gate_up_stride;
        swiglu_row(gate, gate + a.size, (T*)a.out + row * a.out_stride, a.size);
    }
}

}  // namespace

extern const SwigluKernels swiglu_kernels;
const SwigluKernels swiglu_kernels = {swiglu_rows<float>, swiglu_rows<bf16>};

}  // namespace TTC_ISA
}  // namespace ttc
