// The kernel, written once over Simd and compiled once per instruction set. Products and sums are rounded one by
// one, in float: every path gives the same bits.
#pragma once

#include "../common/simd.h"
#include "rope_store_kv.h"
#include "rotate.h"

namespace {

// x, or where there is a bias x + bias, rounded, which is written to `sum`.
template <class T>
inline const T* biased(const T* x, const T* bias, T* sum, int n) {
    if (!bias) return x;
    int i = 0;
    for (; i + Simd::W <= n; i += Simd::W) Simd::store(sum + i, Simd::add(Simd::load(x + i), Simd::load(bias + i)));
    const int rest = n - i;
    if (rest) Simd::store_tail(sum + i, Simd::add(Simd::load_tail(x + i, rest), Simd::load_tail(bias + i, rest)), rest);
    return sum;
}

template <class T>
void rope_rows(const ttc::RopeCall& call, int row_lo, int row_hi) {
    const int dim = call.head_dim, half = dim / 2;
    const int k_at = call.num_heads * dim, v_at = k_at + call.num_kv_heads * dim;
    const T* bias = static_cast<const T*>(call.bias);
    float rotated[ttc::kMaxHeadDim];
    T sum[ttc::kMaxHeadDim];
    const auto head = [&](const T* row, int at) { return biased(row + at, bias ? bias + at : nullptr, sum, dim); };
    for (int r = row_lo; r < row_hi; ++r) {
        T* row = static_cast<T*>(call.qkv) + r * call.qkv_row;
        const int64_t position = call.positions[r];
        const Rotation turn(call.cos + position * half, call.sin + position * half, half);
        for (int h = 0; h < call.num_heads; ++h) turn(head(row, h * dim), row + h * dim);
        if (call.slots[r] < 0) continue;
        const int64_t block = call.slots[r] / call.block_size, offset = call.slots[r] % call.block_size;
        for (int h = 0; h < call.num_kv_heads; ++h) {
            turn(head(row, k_at + h * dim), rotated);
            T* k = static_cast<T*>(call.k) + block * call.k_block + h * call.k_head + offset * call.k_token;
            for (int d = 0; d < dim; ++d) ttc::store_as(k + d * call.k_dim, rotated[d]);
            T* v = static_cast<T*>(call.v) + block * call.v_block + h * call.v_head + offset * call.v_token;
            std::memcpy(v, head(row, v_at + h * dim), size_t(dim) * sizeof(T));
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
