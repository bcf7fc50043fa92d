// The kernel, written once over Simd and compiled once per instruction set.  Products and sums are rounded one by
// one, in float: every path gives the same bits.
#pragma once

#include "../common/simd.h"
#include "rope_store_kv.h"

namespace {

using V = Simd::V;
constexpr int W = Simd::W;

// One head: dst = x * cos + rotate_half(x) * sin.  dst may be x.
template <class T, class U>
inline void rotate(const T* x, U* dst, const float* cos, const float* sin, int half) {
    int i = 0;
    for (; i + W <= half; i += W) {
        const V a = Simd::load(x + i), b = Simd::load(x + half + i), c = Simd::load(cos + i), s = Simd::load(sin + i);
        Simd::store(dst + i, Simd::sub(Simd::mul(a, c), Simd::mul(b, s)));
        Simd::store(dst + half + i, Simd::add(Simd::mul(b, c), Simd::mul(a, s)));
    }
    if (i < half) {
        const int n = half - i;
        const V a = Simd::load_tail(x + i, n), b = Simd::load_tail(x + half + i, n);
        const V c = Simd::load_tail(cos + i, n), s = Simd::load_tail(sin + i, n);
        Simd::store_tail(dst + i, Simd::sub(Simd::mul(a, c), Simd::mul(b, s)), n);
        Simd::store_tail(dst + half + i, Simd::add(Simd::mul(b, c), Simd::mul(a, s)), n);
    }
}

template <class T>
void rope_rows(const ttc::RopeCall& call, int row_lo, int row_hi) {
    const int dim = call.head_dim, half = dim / 2;
    float rotated[ttc::kMaxHeadDim];
    for (int r = row_lo; r < row_hi; ++r) {
        T* row = static_cast<T*>(call.qkv) + r * call.qkv_row;
        const float* cos = call.cos + int64_t(call.positions[r]) * half;
        const float* sin = call.sin + int64_t(call.positions[r]) * half;
        for (int h = 0; h < call.num_heads; ++h) rotate(row + h * dim, row + h * dim, cos, sin, half);
        if (call.slots[r] < 0) continue;
        const int64_t block = call.slots[r] / call.block_size, offset = call.slots[r] % call.block_size;
        const T* k_row = row + call.num_heads * dim;
        const T* v_row = k_row + call.num_kv_heads * dim;
        for (int h = 0; h < call.num_kv_heads; ++h) {
            rotate(k_row + h * dim, rotated, cos, sin, half);
            T* k = static_cast<T*>(call.k) + block * call.k_block + h * call.k_head + offset * call.k_token;
            for (int d = 0; d < dim; ++d) ttc::store_as(k + d * call.k_dim, rotated[d]);
            T* v = static_cast<T*>(call.v) + block * call.v_block + h * call.v_head + offset * call.v_token;
            std::memcpy(v, v_row + h * dim, size_t(dim) * sizeof(T));
        }
    }
}

inline void run_rope(const ttc::RopeCall& call, int row_lo, int row_hi) {
    if (call.is_bf16)
        rope_rows<ttc::bf16>(call, row_lo, row_hi);
    else
        rope_rows<float>(call, row_lo, row_hi);
}

}  // namespace
