// The kernel, written once over Simd and compiled once per instruction set.  Products and sums are rounded one by
// one, in float: every path gives the same bits.
#pragma once

#include "../common/simd.h"
#include "rope_store_kv.h"
#include "rotate.h"

namespace {

template <class T>
void rope_rows(const ttc::RopeCall& call, int row_lo, int row_hi) {
    const int dim = call.head_dim, half = dim / 2;
    float rotated[ttc::kMaxHeadDim];
    for (int r = row_lo; r < row_hi; ++r) {
        T* row = static_cast<T*>(call.qkv) + r * call.qkv_row;
        const int64_t position = call.positions[r];
        const Rotation turn(call.cos + position * half, call.sin + position * half, half);
        for (int h = 0; h < call.num_heads; ++h) turn(row + h * dim, row + h * dim);
        if (call.slots[r] < 0) continue;
        const int64_t block = call.slots[r] / call.block_size, offset = call.slots[r] % call.block_size;
        const T* k_row = row + call.num_heads * dim;
        const T* v_row = k_row + call.num_kv_heads * dim;
        for (int h = 0; h < call.num_kv_heads; ++h) {
            turn(k_row + h * dim, rotated);
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
