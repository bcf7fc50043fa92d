// What a unit of tree attention's work is on a GPU: its rows, and the copies of its keys and values.
#pragma once

#include "cuda/launch.h"
#include "cuda/tile.h"
#include "cuda/work.h"

namespace ttc {
namespace gpu {

constexpr int kStages = 3, kThreads = 128, kWarps = 4;
constexpr int kWarpTile = kWorkTokens / kWarps;  // keys in a tile of a unit that a warp computes alone
constexpr int kMergeRows = 64;                   // rows that a warp merges at a time

// What Python passes, field for field (ttc_kernels/tree_attention/cuda.py), and what the kernel gets.
struct AttentionArgs {
    const void *q, *k, *v;  // strides below, in elements; head_dim is adjacent in all, the tokens of a block in k and v
    void* out;              // (rows, num_heads, head_dim), contiguous
    void* partial;          // (num_slots, num_heads, head_dim) of the queries' type, normed
    float* partial_lse;     // (num_slots, num_heads): natural logarithm of the sum of exp(scale * score)
    int32_t* work;          // WorkHeader and what it points to
    int32_t q_row, q_head, k_block, k_head, v_block, v_head;
    int32_t num_heads, num_kv_heads, block_shift;  // a block is 1 << block_shift tokens, at least 16
    float scale;
    int32_t head_dim, is_bf16;   // 64 or 128; else float16: which kernel is launched
};

TTC_DEVICE int min_int(int a, int b) { return a < b ? a : b; }

TTC_DEVICE const WorkHeader& header_of(const AttentionArgs& args) { return *(const WorkHeader*)args.work; }

// What lies in a block's shared memory behind the ring of tiles.
struct Shared {
    int32_t next;  // the ticket after the present one
    int32_t merged[kWarps][kMergeRows][2];  // rows that a warp merges, and their KV heads
    float top[kWarps][kNarrowRows], sum[kWarps][kNarrowRows];  // of a narrow unit, from each warp
};

template <int kDim>
constexpr int kStageBytes = 2 * kWorkTokens * kDim * 2;
template <int kDim>
constexpr int kSharedBytes = kStages * kStageBytes<kDim> + (int)sizeof(Shared);
template <int kDim>
TTC_DEVICE Shared& shared() {
    return *(Shared*)(shared_memory() + kStages * kStageBytes<kDim>);
}

// Divides by one number many times: x / by for all x with x * by below 2^31.
struct Divider {
    const uint32_t by, magic;

    TTC_DEVICE explicit Divider(int b) : by((uint32_t)b), magic(0x80000000u / (uint32_t)b + 1u) {}
    TTC_DEVICE int divide(int x) const { return (int)((uint64_t)(uint32_t)x * magic >> 31); }
};

TTC_DEVICE const WorkUnit& unit_at(const AttentionArgs& args, int index) {
    return ((const WorkUnit*)(args.work + header_of(args).units_at))[index];
}

// What is the same for all units of a launch.
struct Heads {
    const Divider group;  // query heads of a KV head

    TTC_DEVICE explicit Heads(const AttentionArgs& args) : group(args.num_heads / args.num_kv_heads) {}
};

// The tokens of a unit for one KV head: all that copies need.
struct Keys {
    int unit, kv_head;          // the unit's place in the list
    int blocks, kv_lo, kv_hi;  // `blocks` is the place of the node's block ids in the work list

    // Of pair `index` of unit and KV head, the first of which are those of unit `first`.
    TTC_DEVICE static Keys of(const AttentionArgs& args, int first, int index) {
        const int by_unit = index / args.num_kv_heads;
        return of_unit(args, first + by_unit, index - by_unit * args.num_kv_heads);
    }
    TTC_DEVICE static Keys of_unit(const AttentionArgs& args, int index, int kv_head) {
        const WorkUnit& unit = unit_at(args, index);
        return {index, kv_head, header_of(args).blocks_at + unit.block_offset, unit.kv_lo, unit.kv_hi};
    }
    TTC_DEVICE static Keys none() { return {-1, 0, 0, 0, 0}; }
    // Field by field: a reference to either would put both into memory.
    TTC_DEVICE static Keys either(bool is_first, const Keys& a, const Keys& b) {
        return {is_first ? a.unit : b.unit, is_first ? a.kv_head : b.kv_head, is_first ? a.blocks : b.blocks,
                is_first ? a.kv_lo : b.kv_lo, is_first ? a.kv_hi : b.kv_hi};
    }
    TTC_DEVICE bool is_there() const { return unit >= 0; }

    TTC_DEVICE int num_tiles(int tile) const { return (kv_hi - kv_lo + tile - 1) / tile; }
};

// `num_threads` threads start the copy of a tile of kTokens keys, and of their values behind them; those from kv_hi on
// become zeros, not what may lie there. A thread's tokens lie in one block, one behind the other.
template <typename T, int kDim, int kTokens>
TTC_DEVICE void copy_tile(const AttentionArgs& args, const Keys& keys, int tile, char* to, int thread) {
    constexpr int kChunks = kDim / 8, kEach = kWarpTile * kChunks / 32;
    static_assert(16 % kEach == 0, "a thread's tokens lie in one block");
    const int chunk = thread % kChunks, row = thread / kChunks * kEach, token = keys.kv_lo + tile * kTokens + row;
    const int left = keys.kv_hi - token, at = left > 0 ? token : keys.kv_lo;
    const int block = args.work[keys.blocks + (at >> args.block_shift)];
    const int offset = (at & ((1 << args.block_shift) - 1)) * kDim + chunk * 8;
    const T* k = (const T*)args.k + (int64_t)block * args.k_block + (int64_t)keys.kv_head * args.k_head + offset;
    const T* v = (const T*)args.v + (int64_t)block * args.v_block + (int64_t)keys.kv_head * args.v_head + offset;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
        char* const place = chunk_at<kChunks>(to, row + e, chunk);
        copy_async(place, k + e * kDim, e < left);
        copy_async(place + kTokens * kDim * 2, v + e * kDim, e < left);
    }
}

// The rows of a unit for one KV head.
template <typename T, int kDim>
struct Rows {
    const AttentionArgs& args;
    const Divider& group;
    const int num_packed;

    TTC_DEVICE Rows(const AttentionArgs& a, const Heads& heads, const WorkUnit& unit, int kv_head)
        : args(a), group(heads.group), num_packed(unit.num_packed) {
        const int before = group.divide(unit.packed_lo);
        row_ = unit.row_lo + before;
        first_ = unit.packed_lo - before * (int)group.by;
        head_ = kv_head * (int)group.by;
        kv_hi_ = unit.kv_hi;
        causal_add_ = unit.causal_add;
        is_direct_ = unit.slot_base == kDirect;
        to_ = is_direct_ ? 0 : unit.slot_base - unit.row_lo;
    }

    // A packed row that the unit has: the last one, for those behind it, whose results nobody stores.
    TTC_DEVICE int clamp(int p) const { return p < num_packed ? p : num_packed - 1; }

    TTC_DEVICE const T* query(int p) const {
        const int by_row = group.divide(first_ + p);
        const int head = head_ + first_ + p - by_row * (int)group.by;
        return (const T*)args.q + (int64_t)(row_ + by_row) * args.q_row + (int64_t)head * args.q_head;
    }

    // Packed row p sees the tokens below this.
    TTC_DEVICE int limit(int p) const {
        const int limit = row_ + group.divide(first_ + p) + causal_add_;
        return limit < kv_hi_ ? limit : kv_hi_;
    }

    // Where the result of packed row p goes, in rows of a head: of `out`, or of the partial results.
    TTC_DEVICE int64_t place(int p) const {
        const int by_row = group.divide(first_ + p);
        return (int64_t)(to_ + row_ + by_row) * args.num_heads + head_ + first_ + p - by_row * (int)group.by;
    }
    TTC_DEVICE T* result(int64_t place) const { return (T*)(is_direct_ ? args.out : args.partial) + place * kDim; }

    TTC_DEVICE void store_lse(int64_t place, float top, float sum) const {
        if (!is_direct_) args.partial_lse[place] = sum == 0.0f ? -kInfinity : (top + log2f(sum)) * kLn2;
    }

private:
    int row_, first_, head_, kv_hi_, causal_add_, to_;
    bool is_direct_;
};

}  // namespace gpu
}  // namespace ttc
