// x / (1 + e^-x), and rounding to a type's precision, for the kernels that share them.
#pragma once

#include "simd.h"

namespace {

// The value that storing as T and loading again gives.
inline Simd::V round_as(const float*, Simd::V v) { return v; }
inline Simd::V round_as(const ttc::bf16*, Simd::V v) {
    typedef uint32_t Bits __attribute__((vector_size(sizeof(Simd::V))));
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;  // to nearest, ties to even
    return v == v ? (Simd::V)rounded : v;
}

// Through e^-|x| so that nothing overflows; NaN stays NaN.
inline Simd::V silu(Simd::V x) {
    using V = Simd::V;
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

}  // namespace
