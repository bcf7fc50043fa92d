// SwiGLU of one row after another; defined in ttc_kernels/swiglu/reference.py.
#pragma once

#include "common/simd.h"
#include "swiglu/swiglu.h"

namespace ttc {
namespace TTC_ISA {
namespace {

using V = Simd::V;

inline V round_as(const float*, V v) { return v; }
inline V round_as(const bf16*, V v) {
    typedef uint32_t Bits __attribute__((vector_size(sizeof(V))));
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;  // to nearest, ties to even
    return v == v ? (V)rounded : v;
}

// x / (1 + e^-x), through e^-|x| so that nothing overflows; NaN stays NaN.
inline V silu(V x) {
    const V log2e = Simd::set1(1.44269504f), log2e_rest = Simd::set1(1.9259630e-8f), one = Simd::set1(1.0f);
    // max gives its second argument for a NaN. Beyond 200 nothing changes, and nothing may overflow.
    const V size = Simd::max(Simd::sub(Simd::zero(), x), x);
    const V minus = Simd::max(Simd::set1(-200.0f), Simd::sub(Simd::zero(), size));
    const V power = Simd::mul(minus, log2e);
    // What rounding the power lost; without it large |x| cost a relative error of |x| * 1e-7.
    const V lost = Simd::fma(minus, log2e_rest, Simd::fma(minus, log2e, Simd::sub(Simd::zero(), power)));
    V e = Simd::exp2_neg(power);
    e = Simd::fma(e, Simd::mul(lost, Simd::set1(0.69314718f)), e);
    const V top = x < Simd::zero() ? e : one;
    return Simd::mul(x, top / Simd::add(one, e));
}

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
