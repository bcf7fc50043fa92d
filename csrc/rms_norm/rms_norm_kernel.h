// RMSNorm of one row after another; defined in ttc_kernels/rms_norm/reference.py.
#pragma once

#include <cmath>

#include "common/silu.h"
#include "common/simd.h"
#include "rms_norm/rms_norm.h"

namespace ttc {
namespace TTC_ISA {
namespace {

using V = Simd::V;

// The normed row before its norm is known: x, or x + residual, which is stored as the new residual.
template <typename T>
inline V take(const T* x, T* residual, int64_t i) {
    if (!residual) return Simd::load(x + i);
    V sum = round_as(x, Simd::add(Simd::load(x + i), Simd::load(residual + i)));
    Simd::store(residual + i, sum);
    return sum;
}

template <typename T>
inline V take_tail(const T* x, T* residual, int64_t i, int n) {
    if (!residual) return Simd::load_tail(x + i, n);
    V sum = round_as(x, Simd::add(Simd::load_tail(x + i, n), Simd::load_tail(residual + i, n)));
    Simd::store_tail(residual + i, sum, n);
    return sum;
}

template <typename T>
void norm_row(const T* x, const T* weight, T* residual, T* out, int64_t hidden, float eps) {
    constexpr int W = Simd::W, kSums = 4;  // four running sums hide the latency of the additions
    V sums[kSums] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
    int64_t i = 0;
    for (; i + kSums * W <= hidden; i += kSums * W)
        for (int s = 0; s < kSums; ++s) {
            V v = take(x, residual, i + s * W);
            sums[s] = Simd::fma(v, v, sums[s]);
        }
    for (; i + W <= hidden; i += W) {
        V v = take(x, residual, i);
        sums[0] = Simd::fma(v, v, sums[0]);
    }
    if (i < hidden) {
        V v = take_tail(x, residual, i, (int)(hidden - i));
        sums[0] = Simd::fma(v, v, sums[0]);
    }
    const float square = Simd::hsum(Simd::add(Simd::add(sums[0], sums[1]), Simd::add(sums[2], sums[3])));
    const V scale = Simd::set1(1.0f / std::sqrt(square / (float)hidden + eps));
    const T* from = residual ? residual : x;
    for (i = 0; i + W <= hidden; i += W) {
        V normed = round_as(x, Simd::mul(Simd::load(from + i), scale));
        Simd::store(out + i, Simd::mul(normed, Simd::load(weight + i)));
    }
    if (i < hidden) {
        const int n = (int)(hidden - i);
        V normed = round_as(x, Simd::mul(Simd::load_tail(from + i, n), scale));
        Simd::store_tail(out + i, Simd::mul(normed, Simd::load_tail(weight + i, n)), n);
    }
}

template <typename T>
void norm_rows(const RmsNormArgs& a, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        T* residual = a.residual ? (T*)a.residual + row * a.residual_stride : nullptr;
        norm_row((const T*)a.x + row * a.x_stride, (const T*)a.weight, residual, (T*)a.out + row * a.out_stride,
                 a.hidden, a.eps);
    }
}

}  // namespace

extern const RmsNormKernels rms_norm_kernels;
const RmsNormKernels rms_norm_kernels = {norm_rows<float>, norm_rows<bf16>};

}  // namespace TTC_ISA
}  // namespace ttc
