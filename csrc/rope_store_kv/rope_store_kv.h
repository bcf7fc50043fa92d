// Rotary embedding and KV store: what the dispatcher hands to the kernel of one instruction set.
#pragma once

#include <cstdint>

namespace ttc {

constexpr int kMaxHeadDim = 256;

// Strides in elements.
struct RopeCall {
    void* qkv;               // (rows, (num_heads + 2 * num_kv_heads) * head_dim)
    const float* cos;        // (max_position, head_dim / 2), contiguous
    const float* sin;
    const int32_t* positions;  // (rows)
    const int32_t* slots;      // (rows), -1: store nothing
    void* k;                 // (num_blocks, num_kv_heads, block_size, head_dim)
    void* v;
    const void* bias;          // (row of qkv), contiguous; null: none
    int64_t qkv_row, k_block, k_head, k_token, k_dim, v_block, v_head, v_token;
    int num_heads, num_kv_heads, head_dim, block_size;
    bool is_bf16;
};

// Rows [row_lo, row_hi).
void run_rope_portable(const RopeCall& call, int row_lo, int row_hi);
void run_rope_avx2(const RopeCall& call, int row_lo, int row_hi);
void run_rope_avx512(const RopeCall& call, int row_lo, int row_hi);

}  // namespace ttc
