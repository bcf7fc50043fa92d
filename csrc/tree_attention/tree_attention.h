// Tree attention on a CPU: what the dispatcher hands to the kernel of one instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ttc {

// Keys are worked on in units of 16, counted from each node's start.
constexpr int kUnit = 16;

// One call of the op; strides in elements.
struct AttentionCall {
    const void* q;      // (rows, num_heads, head_dim)
    const void* k;      // (num_blocks, num_kv_heads, head_dim, block_size), block_size innermost
    const void* v;      // (num_blocks, num_kv_heads, block_size, head_dim), head_dim innermost
    void* out;          // (rows, num_heads, head_dim), contiguous
    int64_t q_row, q_head, k_block, k_head, k_dim, v_block, v_head, v_token;
    const int32_t* items;   // (num_items, 5): row_lo, row_hi, block_offset, num_tokens, causal
    const int32_t* blocks;
    int num_heads, group, head_dim, block_size;  // group: query heads per KV head
    float scale;
    bool is_bf16;
};

// One task: all query heads of one KV head, rows [row_lo, row_hi).
struct AttentionTask {
    const int32_t* items;  // indices of the items that touch these rows, in order
    int num_items;
    int row_lo, row_hi;
    int kv_head;
    int max_units;         // the longest row of the task, in units
    float* scratch;        // task_scratch_floats() floats, 64-byte aligned
};

// Static, both: the linker must not hand one instruction set's copy to another.
static inline int padded_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

// Scratch layout of a task with P = rows * group packed queries:
//   queries (head_dim, P16) | lane maxima (P, 16) | 1/sum (P16) | acc (P, padded_dim) | scores (max_units, P, 16)
//   | cursor of each row (rows, as int32)
static inline size_t task_scratch_floats(int rows, int group, int head_dim, int max_units) {
    const size_t packed = size_t(rows) * group, packed16 = (packed + 15) / 16 * 16;
    return packed16 * head_dim + packed * 16 + packed16 + packed * padded_dim(head_dim) +
           packed * 16 * size_t(max_units) + size_t(rows) + 64;
}

void run_attention_portable(const AttentionCall& call, const AttentionTask& task);
void run_attention_avx2(const AttentionCall& call, const AttentionTask& task);
void run_attention_avx512(const AttentionCall& call, const AttentionTask& task);

}  // namespace ttc
