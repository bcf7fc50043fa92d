// Tree attention on a GPU, in one launch; the op is defined in ttc_kernels/tree_attention/reference.py, and the work
// list in csrc/cuda/work.h.
//
// Blocks of four warps share out the units, for each KV head. Keys and values come in tiles of 64 tokens
// through a ring of three in shared memory, filled by asynchronous copies. The packed rows of a wide unit are spread
// over the warps, 16 each; in a narrow unit each warp takes all 16 rows and 16 keys of every tile, and the warps'
// results are merged at the end. Scores, sums and results are float32; the weights are rounded to the values' type
// for the product. The block that comes last to a row merges its partial results, in position order whoever that
// is; half a warp takes a head.
#pragma once

#include "cuda/launch.h"
#include "cuda/tile.h"
#include "cuda/work.h"

namespace ttc {
namespace gpu {

constexpr int kStages = 3, kThreads = 128, kWarps = 4;
constexpr int kMergeLanes = 16;  // that merge the partial results of a row's head

// What Python passes, field for field (ttc_kernels/tree_attention/cuda.py), and what the kernel gets.
struct AttentionArgs {
    const void *q, *k, *v;  // strides below, in elements; head_dim is adjacent in all
    void* out;              // (rows, num_heads, head_dim), contiguous
    float* partial;         // (num_slots, num_heads, head_dim), normed
    float* partial_lse;     // (num_slots, num_heads): natural logarithm of the sum of exp(scale * score)
    int32_t* work;          // WorkHeader and what it points to
    int64_t q_row, q_head, k_block, k_head, k_token, v_block, v_head, v_token;
    int32_t num_heads, num_kv_heads, block_shift;  // a block is 1 << block_shift tokens
    float scale;
    int32_t head_dim, is_bf16;   // 64 or 128; else float16: which kernel is launched
};

constexpr int ring_bytes(int dim) { return kStages * 2 * kWorkTokens * dim * 2; }

// One unit as a block works on it.
template <typename T, int kDim>
struct Unit {
    static constexpr int kChunks = kDim / 8;              // 16-byte chunks of a key
    static constexpr int kTileBytes = kWorkTokens * kDim * 2;

    const AttentionArgs& args;
    const WorkUnit unit;
    const int32_t* blocks;  // of the node
    const int kv_head, group, thread, lane, warp;

    TTC_DEVICE Unit(const AttentionArgs& a, const WorkUnit& u, int head)
        : args(a), unit(u), blocks(a.work + ((const WorkHeader*)a.work)->blocks_at + u.block_offset), kv_head(head),
          group(a.num_heads / a.num_kv_heads), thread(thread_index()), lane(thread_index() % 32),
          warp(thread_index() / 32) {}

    TTC_DEVICE char* keys(int stage) const { return shared_memory() + stage * 2 * kTileBytes; }
    TTC_DEVICE char* values(int stage) const { return keys(stage) + kTileBytes; }

    // Query row and head of packed row p of the unit.
    TTC_DEVICE int row_of(int p) const { return unit.row_lo + (unit.packed_lo + p) / group; }
    TTC_DEVICE int head_of(int p) const { return kv_head * group + (unit.packed_lo + p) % group; }

    // Packed row p sees the tokens below this.
    TTC_DEVICE int limit_of(int p) const {
        if (p >= unit.num_packed) return unit.kv_lo;
        const int limit = row_of(p) + unit.causal_add;
        return limit < unit.kv_hi ? limit : unit.kv_hi;
    }

    // Starts the copy of the tile of tokens from `token` on; those from kv_hi on become zeros, not what may lie there.
    TTC_DEVICE void copy_tile(int stage, int token) const {
        for (int i = thread; i < kWorkTokens * kChunks; i += kThreads) {
            const int row = i / kChunks, chunk = i % kChunks;
            const bool is_there = token + row < unit.kv_hi;
            const int at = is_there ? token + row : unit.kv_lo;
            const int64_t block = blocks[at >> args.block_shift];
            const int64_t offset = at & ((1 << args.block_shift) - 1);
            const T* k = (const T*)args.k + block * args.k_block + kv_head * args.k_head + offset * args.k_token;
            const T* v = (const T*)args.v + block * args.v_block + kv_head * args.v_head + offset * args.v_token;
            copy_async(chunk_at<kChunks>(keys(stage), row, chunk), k + chunk * 8, is_there);
            copy_async(chunk_at<kChunks>(values(stage), row, chunk), v + chunk * 8, is_there);
        }
    }

    // Two elements of a query, or zeros for a packed row that the unit does not have.
    TTC_DEVICE uint32_t query_pair(int p, int column) const {
        if (p >= unit.num_packed) return 0;
        const T* q = (const T*)args.q + row_of(p) * args.q_row + head_of(p) * args.q_head;
        return *(const uint32_t*)(q + column);
    }

    // Writes kCount (2 or 4) results of packed row p from `column` on.
    template <int kCount>
    TTC_DEVICE void store(int p, int column, const float* x) const {
        const int64_t head = head_of(p);
        if (unit.slot_base == kDirect) {
            T* to = (T*)args.out + ((int64_t)row_of(p) * args.num_heads + head) * kDim + column;
            for (int i = 0; i < kCount; i += 2) *(uint32_t*)(to + i) = pack<T>(x[i], x[i + 1]);
        } else {
            const int64_t slot = unit.slot_base + (row_of(p) - unit.row_lo);
            float* to = args.partial + (slot * args.num_heads + head) * kDim + column;
            for (int i = 0; i < kCount; ++i) to[i] = x[i];
        }
    }

    TTC_DEVICE void store_lse(int p, float top, float sum) const {
        if (unit.slot_base == kDirect) return;
        const int64_t slot = unit.slot_base + (row_of(p) - unit.row_lo);
        args.partial_lse[slot * args.num_heads + head_of(p)] =
            sum == 0.0f ? -kInfinity : (top + log2f(sum)) * kLn2;
    }
};

// What a lane holds of 16 packed rows: rows g and g + 8 (index 0 and 1), for lane 4 g + t.
template <int kDim>
struct Running {
    float acc[kDim / 8][4];  // sums of weight * value; columns 8 j + 2 t, + 1 of row 0, then of row 1
    float top[2];            // highest score so far, times log2(e)
    float sum[2];            // of the weights, this lane's columns only
};

// Takes one tile of tokens, of which this warp looks at kKeys from `first` on, into the running softmax.
template <typename T, int kDim, int kKeys>
TTC_DEVICE void add_tile(const Unit<T, kDim>& u, int stage, int token, int first, const uint32_t (&query)[kDim / 16][4],
                         const int (&limit)[2], Running<kDim>& run) {
    constexpr int kChunks = kDim / 8;
    float score[kKeys / 8][4];
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
        for (int e = 0; e < 4; ++e) score[j][e] = 0.0f;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
#pragma unroll
        for (int j = 0; j < kKeys / 16; ++j) {
            uint32_t b[4];
            load_matrices(b, columns_at<kChunks>(u.keys(stage), first + 16 * j, 2 * d, u.lane));
            multiply_add<T>(score[2 * j], query[d], b[0], b[1]);
            multiply_add<T>(score[2 * j + 1], query[d], b[2], b[3]);
        }
    }
    const float scale = u.args.scale * kLog2e;
    float highest[2] = {-kInfinity, -kInfinity};
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int key = token + first + 8 * j + 2 * (u.lane % 4) + e % 2;
            score[j][e] = key < limit[e / 2] ? score[j][e] * scale : -kInfinity;
            highest[e / 2] = fmaxf(highest[e / 2], score[j][e]);
        }
    }
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float top = fmaxf(run.top[r], quad_max(highest[r]));
        base[r] = top == -kInfinity ? 0.0f : top;  // no key seen yet: all weights are exp2(-inf)
        const float shrink = exp2_fast(run.top[r] - base[r]);
        run.top[r] = top;
        run.sum[r] *= shrink;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
            run.acc[j][2 * r] *= shrink;
            run.acc[j][2 * r + 1] *= shrink;
        }
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            score[j][e] = exp2_fast(score[j][e] - base[e / 2]);
            run.sum[e / 2] += score[j][e];
        }
    }
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
        // The layout of a product's result is that of the next one's left operand.
        const uint32_t weight[4] = {pack<T>(score[2 * k][0], score[2 * k][1]), pack<T>(score[2 * k][2], score[2 * k][3]),
                                    pack<T>(score[2 * k + 1][0], score[2 * k + 1][1]),
                                    pack<T>(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
        for (int j = 0; j < kDim / 16; ++j) {
            uint32_t b[4];
            load_matrices_transposed(b, rows_at<kChunks>(u.values(stage), first + 16 * k, 2 * j, u.lane));
            multiply_add<T>(run.acc[2 * j], weight, b[0], b[1]);
            multiply_add<T>(run.acc[2 * j + 1], weight, b[2], b[3]);
        }
    }
}

// Each lane holds the results of its two rows: of a wide unit they are complete.
template <typename T, int kDim>
TTC_DEVICE void store_wide(const Unit<T, kDim>& u, const Running<kDim>& run) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int p = 16 * u.warp + u.lane / 4 + 8 * r;
        if (p >= u.unit.num_packed) continue;
        const float rate = run.sum[r] == 0.0f ? 0.0f : 1.0f / run.sum[r];
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
            const float x[2] = {run.acc[j][2 * r] * rate, run.acc[j][2 * r + 1] * rate};
            u.template store<2>(p, 8 * j + 2 * (u.lane % 4), x);
        }
        if (u.lane % 4 == 0) u.store_lse(p, run.top[r], run.sum[r]);
    }
}

// The four warps of a narrow unit hold the same rows over different keys: merges them in the ring's memory.
template <typename T, int kDim>
TTC_DEVICE void store_narrow(const Unit<T, kDim>& u, const Running<kDim>& run) {
    constexpr int kPitch = kDim + 8;  // floats from row to row: eight rows' pairs in different banks
    float* const acc = (float*)shared_memory();              // (kWarps, 16, kPitch)
    float* const top = acc + kWarps * kNarrowRows * kPitch;  // (kWarps, 16)
    float* const sum = top + kWarps * kNarrowRows;           // (kWarps, 16)
    block_barrier();  // all warps are done with the ring
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int at = u.warp * kNarrowRows + u.lane / 4 + 8 * r;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
            acc[at * kPitch + 8 * j + 2 * (u.lane % 4)] = run.acc[j][2 * r];
            acc[at * kPitch + 8 * j + 2 * (u.lane % 4) + 1] = run.acc[j][2 * r + 1];
        }
        if (u.lane % 4 == 0) {
            top[at] = run.top[r];
            sum[at] = run.sum[r];
        }
    }
    block_barrier();
    const int p = u.thread / 8;
    if (p >= u.unit.num_packed) return;
    float highest = -kInfinity, total = 0.0f, weight[kWarps];
    for (int w = 0; w < kWarps; ++w) highest = fmaxf(highest, top[w * kNarrowRows + p]);
    const float base = highest == -kInfinity ? 0.0f : highest;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
        weight[w] = exp2_fast(top[w * kNarrowRows + p] - base);
        total += weight[w] * sum[w * kNarrowRows + p];
    }
    const float rate = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
    for (int column = u.thread % 8 * 4; column < kDim; column += 32) {
        float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int w = 0; w < kWarps; ++w)
            for (int i = 0; i < 4; ++i) x[i] += weight[w] * acc[(w * kNarrowRows + p) * kPitch + column + i];
        for (int i = 0; i < 4; ++i) x[i] *= rate;
        u.template store<4>(p, column, x);
    }
    if (u.thread % 8 == 0) u.store_lse(p, highest, total);
}

// Half a warp merges the partial results of a row's head, or follows along where `is_wanted` is false.
template <typename T, int kDim>
TTC_DEVICE void merge_head(const AttentionArgs& args, int64_t row, int64_t head, int lane, bool is_wanted) {
    constexpr int kColumns = kDim / kMergeLanes;  // of a lane
    const WorkHeader& header = *(const WorkHeader*)args.work;
    const int32_t *start = args.work + header.merge_start_at, *slots = args.work + header.merge_slots_at;
    const int lo = is_wanted ? start[row] : 0, hi = is_wanted ? start[row + 1] : 0;
    const bool is_there = lo < hi && slots[lo] == kDirect;  // a unit of another item has nothing to say to the row
    float top = -kInfinity, sum = 0.0f, acc[kColumns];
    for (int s = lo + lane; s < hi && !is_there; s += kMergeLanes)
        top = fmaxf(top, args.partial_lse[(int64_t)slots[s] * args.num_heads + head]);
    for (int mask = kMergeLanes / 2; mask > 0; mask /= 2) top = fmaxf(top, shuffle_xor(top, mask));
    if (is_there || !is_wanted) return;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) acc[c] = 0.0f;
#pragma unroll 8
    for (int s = lo; s < hi; ++s) {
        const int64_t at = (int64_t)slots[s] * args.num_heads + head;
        const float weight = exp2_fast((args.partial_lse[at] - top) * kLog2e);
        sum += weight;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) acc[c] += weight * args.partial[at * kDim + lane * kColumns + c];
    }
    const float rate = sum == 0.0f ? 0.0f : 1.0f / sum;
    T* to = (T*)args.out + (row * args.num_heads + head) * kDim + lane * kColumns;
#pragma unroll
    for (int c = 0; c < kColumns; c += 2) *(uint32_t*)(to + c) = pack<T>(acc[c] * rate, acc[c + 1] * rate);
}

// Counts the unit, all of whose results are stored, at its rows, and merges those of its KV head that are complete.
// `unit` lies in the list: it need not stay in registers until then.
template <typename T, int kDim>
TTC_DEVICE void merge_complete_rows(const AttentionArgs& args, const WorkUnit& unit, int kv_head) {
    const WorkHeader& header = *(const WorkHeader*)args.work;
    const int thread = thread_index(), group = args.num_heads / args.num_kv_heads;
    const int first = unit.row_lo + unit.packed_lo / group;
    const int num = unit.row_lo + (unit.packed_lo + unit.num_packed - 1) / group - first + 1;
    int* const is_complete = (int*)shared_memory();  // (num), at most kWideRows
    if (thread < num) {
        const int row = first + thread;
        uint32_t* const arrived = (uint32_t*)args.work + header.arrived_at + row * args.num_kv_heads + kv_head;
        const uint32_t last = (uint32_t)args.work[header.writers_at + row] - 1;
        is_complete[thread] = count_up(arrived, last) == last;
    }
    block_barrier();
    constexpr int kAtOnce = kThreads / kMergeLanes;
    for (int from = 0; from < num * group; from += kAtOnce) {
        const int i = from + thread / kMergeLanes, row = i / group, head = kv_head * group + i % group;
        merge_head<T, kDim>(args, first + row, head, thread % kMergeLanes, row < num && is_complete[row]);
    }
    block_barrier();  // the next unit's ring lies where `is_complete` does
}

// The result of rows that are in no unit is zeros. The grid's warps share them out.
TTC_DEVICE void clear_unseeing_rows(const AttentionArgs& args, int dim) {
    const WorkHeader& header = *(const WorkHeader*)args.work;
    const int32_t *start = args.work + header.merge_start_at, *writers = args.work + header.writers_at;
    const int lane = thread_index() % 32, row_words = args.num_heads * dim / 2;
    for (int row = block_index() * kWarps + thread_index() / 32; row < header.num_rows; row += num_blocks() * kWarps) {
        if (writers[row] || start[row] < start[row + 1]) continue;
        uint32_t* const to = (uint32_t*)args.out + (int64_t)row * row_words;
        for (int i = lane; i < row_words; i += 32) to[i] = 0;
    }
}

template <typename T, int kDim, bool kIsWide>
TTC_DEVICE void attend_unit(const Unit<T, kDim>& u) {
    constexpr int kKeys = kIsWide ? kWorkTokens : kWorkTokens / kWarps;
    const int row = (kIsWide ? 16 * u.warp : 0) + u.lane / 4, first = kIsWide ? 0 : kKeys * u.warp;
    const bool is_idle = kIsWide && 16 * u.warp >= u.unit.num_packed;
    const int num_tiles = (u.unit.kv_hi - u.unit.kv_lo + kWorkTokens - 1) / kWorkTokens;
    for (int i = 0; i < kStages - 1; ++i) {
        if (i < num_tiles) u.copy_tile(i, u.unit.kv_lo + i * kWorkTokens);
        copy_commit();
    }
    uint32_t query[kDim / 16][4];
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d)
#pragma unroll
        for (int e = 0; e < 4; ++e)
            query[d][e] = u.query_pair(row + e % 2 * 8, 16 * d + e / 2 * 8 + 2 * (u.lane % 4));
    const int limit[2] = {u.limit_of(row), u.limit_of(row + 8)};
    Running<kDim> run;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j)
        for (int e = 0; e < 4; ++e) run.acc[j][e] = 0.0f;
    for (int r = 0; r < 2; ++r) run.top[r] = -kInfinity, run.sum[r] = 0.0f;
    for (int i = 0; i < num_tiles; ++i) {
        copy_wait<kStages - 2>();  // this thread's part of tile i is there
        block_barrier();           // everyone's is, and everyone is done with tile i - 1, whose place is filled next
        const int next = i + kStages - 1;
        if (next < num_tiles) u.copy_tile(next % kStages, u.unit.kv_lo + next * kWorkTokens);
        copy_commit();  // an empty group too: the wait above counts groups
        if (!is_idle)
            add_tile<T, kDim, kKeys>(u, i % kStages, u.unit.kv_lo + i * kWorkTokens, first, query, limit, run);
    }
    for (int r = 0; r < 2; ++r) run.sum[r] = quad_sum(run.sum[r]);
    if (kIsWide)
        store_wide(u, run);
    else
        store_narrow(u, run);
    block_barrier();  // the ring is free for the next unit
}

template <typename T, int kDim>
TTC_KERNEL(kThreads) tree_attention_units(AttentionArgs args) {
    await_earlier_kernels();
    const WorkHeader& header = *(const WorkHeader*)args.work;
    const WorkUnit* units = (const WorkUnit*)(args.work + header.units_at);
    const int64_t num_units = (int64_t)header.num_units * args.num_kv_heads;
    for (int64_t i = block_index(); i < num_units; i += num_blocks()) {
        const WorkUnit& unit = units[i / args.num_kv_heads];
        const int kv_head = (int)(i % args.num_kv_heads);
        if (unit.num_packed <= kNarrowRows)
            attend_unit<T, kDim, false>({args, unit, kv_head});
        else
            attend_unit<T, kDim, true>({args, unit, kv_head});
        if (unit.slot_base != kDirect) merge_complete_rows<T, kDim>(args, unit, kv_head);
    }
    clear_unseeing_rows(args, kDim);
}

// The work list may be replaced before a captured graph is replayed.
template <typename T, int kDim>
const char* tree_attention(const AttentionArgs& args, int64_t stream) {
    constexpr int64_t kManyBlocks = 1 << 30;  // more than any device holds at a time
    return launch(tree_attention_units<T, kDim>, {kManyBlocks, kThreads, ring_bytes(kDim)}, true, stream, args);
}

}  // namespace gpu
}  // namespace ttc
