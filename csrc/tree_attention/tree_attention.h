// Tree attention on a CPU: the calls for other C++ code, and the structs that each instruction set's kernel takes.
//
// A forward makes one schedule of its plan and runs it once per layer:
//   make_schedule(items, blocks, shape, max_threads, schedule);
//   for each layer: run_schedule(call, schedule, isa);
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../common/cpu.h"

namespace ttc {

// Keys are worked on in units of 16, counted from each node's start.
constexpr int kUnit = 16;

// Sizes of a plan and of the cache, the same for every layer of a forward.
struct AttentionShape {
    int rows, num_heads, num_kv_heads, head_dim;
    int block_size;         // tokens, a multiple of kUnit
    int num_items;          // rows of the plan's items
    int64_t num_blocks;     // of one layer's cache
    int64_t num_block_ids;  // length of the plan's blocks
};

// How a plan's work is cut into tasks.  Holds no pointer into the plan; its vectors keep their memory when it is made
// again.  Only make_schedule writes it; any number of threads may read it.
struct AttentionSchedule {
    std::vector<int32_t> units;        // per row: units of 16 keys on its path
    std::vector<int32_t> group_start;  // per row group: where its items begin in group_items
    std::vector<int32_t> group_items;
    std::vector<int32_t> fill;
    std::vector<int32_t> lone_start;   // per row group: where its lone units begin in lone_units
    std::vector<int32_t> lone_units;   // units that one row of the group reads, in order: block * units + unit
    int max_units = 0;
    int64_t total_units = 0;
    int rows = 0, num_groups = 0;  // cut evenly
    int heads_per_task = 1;        // KV heads
    int num_tasks = 0;    // any order, any threads: a task writes its own part of out and nothing else
    int num_threads = 1;  // what run_schedule uses

    int row_start(int g) const { return int(int64_t(rows) * g / num_groups); }
    int group_of(int row) const { return int(((int64_t(row) + 1) * num_groups - 1) / rows); }
    int most_rows() const { return (rows + num_groups - 1) / num_groups; }
};

// One call of the op, that is one layer; strides in elements.
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

// A lone unit is fetched this many units before its use; each group's list ends in that many repeats.
constexpr int kAhead = 6;

// One task: rows [row_lo, row_hi), all query heads of the KV heads [head_lo, head_hi), one KV head after the other.
struct AttentionTask {
    const int32_t* items;  // indices of the items that touch these rows, in order
    int num_items;
    int row_lo, row_hi;
    int head_lo, head_hi;
    const int32_t* lone_units;  // num_lone + kAhead of them, none at all where num_lone is 0
    int num_lone;
    int max_units;         // the longest row of the task, in units
    float* scratch;        // task_scratch_floats() floats, 64-byte aligned
};

// Static, both: the linker must not hand one instruction set's copy to another.
static inline int padded_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

// Scratch layout of a task with P = rows * group packed queries:
//   queries, acc, folded (P, padded_dim each) | lane maxima (P, 16) | 1/sum (P16) | scores (max_units, P, 16)
//   | cursor of each row (rows, as int32)
static inline size_t task_scratch_floats(int rows, int group, int head_dim, int max_units) {
    const size_t packed = size_t(rows) * group, packed16 = (packed + 15) / 16 * 16;
    return 3 * packed * padded_dim(head_dim) + packed * 16 + packed16 + packed * 16 * size_t(max_units) +
           size_t(rows) + 64;
}

// Cuts the plan into tasks for at most max_threads threads (1 where the work is too small to share).  With num_groups
// above 0 the rows are cut into that many groups, and task i is group i with all its heads.
// items is (num_items, 5), blocks (num_block_ids,).  Throws std::invalid_argument for a plan that points outside
// the rows or the cache, and for heads or a block size that the kernel does not have.
void make_schedule(const int32_t* items, const int32_t* blocks, const AttentionShape& shape, int max_threads,
                   AttentionSchedule& schedule, int num_groups = 0);

// Attention of one layer, in a parallel region of its own; call.items and call.blocks are the schedule's plan.
// The bits of a row do not depend on the schedule.  Throws std::bad_alloc.
void run_schedule(const AttentionCall& call, const AttentionSchedule& schedule, Isa isa);

// One task of [0, schedule.num_tasks), for callers with a parallel region of their own.  Never throws; false: out
// of memory, the task was not run.
bool run_schedule_task(const AttentionCall& call, const AttentionSchedule& schedule, int task, Isa isa) noexcept;

void run_attention_portable(const AttentionCall& call, const AttentionTask& task);
void run_attention_avx2(const AttentionCall& call, const AttentionTask& task);
void run_attention_avx512(const AttentionCall& call, const AttentionTask& task);

}  // namespace ttc
