// A warp's running softmax over tiles of keys, and where its results go.
#pragma once

#include "tree_attention/units_gpu.h"

namespace ttc {
namespace gpu {

// What a lane holds of 16 packed rows: rows g and g + 8 (index 0 and 1), for lane 4 g + t.
template <int kDim>
struct Running {
    float acc[kDim / 8][4];  // sums of weight * value; columns 8 j + 2 t, + 1 of row 0, then of row 1
    float top[2];            // highest score so far, times the scale
    float sum[2];            // of the weights, this lane's columns only

    TTC_DEVICE Running() {
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[j][e] = 0.0f;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            top[r] = -kInfinity, sum[r] = 0.0f;
        }
    }
};

// What the rows of a lane see: the tokens below a limit, which none of the rows has below `lowest`.
struct LimitsInRegisters {
    int limit[2];

    template <typename T, int kDim>
    TTC_DEVICE LimitsInRegisters(const Rows<T, kDim>& rows, int first, int lane)
        : limit{rows.limit(rows.clamp(first + lane / 4)), rows.limit(rows.clamp(first + lane / 4 + 8))} {}
    TTC_DEVICE int lowest() const { return min_int(limit[0], limit[1]); }
    TTC_DEVICE int of(int, int r) const { return limit[r]; }
};

// The same, worked out from the list wherever it is asked for.
template <typename T, int kDim>
struct LimitsInList {
    const AttentionArgs& args;
    const Heads& heads;
    const int unit, first, lane;

    TTC_DEVICE Rows<T, kDim> rows() const { return Rows<T, kDim>(args, heads, unit_at(args, unit), 0); }
    TTC_DEVICE int lowest() const { return rows().limit(0); }
    TTC_DEVICE int of(int m, int r) const { return rows().limit(rows().clamp(first + 16 * m + lane / 4 + 8 * r)); }
};

// The left operand of the scores' product: 16 rows of queries in registers, or some times 16 in shared memory.
template <int kDim>
struct QueryInRegisters {
    uint32_t x[kDim / 16][4];

    template <typename T>
    TTC_DEVICE QueryInRegisters(const Rows<T, kDim>& rows, int first, int lane) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const T* const q = rows.query(rows.clamp(first + lane / 4 + 8 * r)) + 2 * (lane % 4);
#pragma unroll
            for (int d = 0; d < kDim / 16; ++d) {
                x[d][r] = *(const uint32_t*)(q + 16 * d);
                x[d][r + 2] = *(const uint32_t*)(q + 16 * d + 8);
            }
        }
    }
    TTC_DEVICE void load(int, int d, uint32_t (&a)[4]) const {
#pragma unroll
        for (int e = 0; e < 4; ++e) a[e] = x[d][e];
    }
};

template <int kDim>
struct QueryInShared {
    char* const tile;
    const int first, lane;

    TTC_DEVICE void load(int m, int d, uint32_t (&a)[4]) const {
        load_matrices(a, rows_at<kDim / 8>(tile, first + 16 * m, 2 * d, lane));
    }
};

// The threads of a block start the copy of kTallRows rows of queries.
template <typename T, int kDim>
TTC_DEVICE void copy_queries(const Rows<T, kDim>& rows, char* to, int thread) {
    constexpr int kChunks = kDim / 8, kAtOnce = kThreads / kChunks;
    const int chunk = thread % kChunks;
#pragma unroll 4
    for (int i = 0; i < kTallRows / kAtOnce; ++i) {
        const int row = thread / kChunks + i * kAtOnce;
        copy_async(chunk_at<kChunks>(to, row, chunk), rows.query(rows.clamp(row)) + chunk * 8, true);
    }
}

// Scores of 16 kBlocks rows and kKeys keys from `first` on of a tile that starts at `keys`.
template <typename T, int kDim, int kKeys, int kBlocks, typename Query>
TTC_DEVICE void multiply_keys(char* keys, int first, int lane, const Query& query,
                              float (&score)[kBlocks][kKeys / 8][4]) {
#pragma unroll
    for (int m = 0; m < kBlocks; ++m)
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) score[m][j][e] = 0.0f;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
        uint32_t a[kBlocks][4];
#pragma unroll
        for (int m = 0; m < kBlocks; ++m) query.load(m, d, a[m]);
#pragma unroll
        for (int j = 0; j < kKeys / 16; ++j) {
            uint32_t b[4];
            load_matrices(b, columns_at<kDim / 8>(keys, first + 16 * j, 2 * d, lane));
#pragma unroll
            for (int m = 0; m < kBlocks; ++m) {
                multiply_add<T>(score[m][2 * j], a[m], b[0], b[1]);
                multiply_add<T>(score[m][2 * j + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Scores of 16 rows become weights; what the rows have summed so far is scaled to their highest score. `token` is
// the first key's. The sign of the scale is looked at where keys are masked.
template <int kDim, int kKeys, typename Limits>
TTC_DEVICE void weigh(float (&score)[kKeys / 8][4], int token, int lane, float scale, bool is_negative,
                      const Limits& limits, int m, Running<kDim>& run) {
    if (is_negative || token + kKeys > limits.lowest()) {
        const int limit[2] = {limits.of(m, 0), limits.of(m, 1)};
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float x = is_negative ? -score[j][e] : score[j][e];
                score[j][e] = token + 8 * j + 2 * (lane % 4) + e % 2 < limit[e / 2] ? x : -kInfinity;
            }
        }
    }
    float base[2], shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float highest = -kInfinity;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) highest = fmaxf(highest, fmaxf(score[j][2 * r], score[j][2 * r + 1]));
        const float top = fmaxf(run.top[r], quad_max(highest) * scale);
        base[r] = top == -kInfinity ? 0.0f : top;  // no key seen yet: all weights are exp2(-inf)
        shrink[r] = exp2_fast(run.top[r] - base[r]);
        run.top[r] = top;
        run.sum[r] *= shrink[r];
    }
    if (warp_ballot(shrink[0] != 1.0f || shrink[1] != 1.0f)) {  // rarely, after the first tiles
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) run.acc[j][e] *= shrink[e / 2];
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            score[j][e] = exp2_fast(fmaf(score[j][e], scale, -base[e / 2]));
            run.sum[e / 2] += score[j][e];
        }
    }
}

// Adds weights times values to what the rows have summed.
template <typename T, int kDim, int kKeys, int kBlocks>
TTC_DEVICE void multiply_values(char* values, int first, int lane, const float (&score)[kBlocks][kKeys / 8][4],
                                Running<kDim> (&run)[kBlocks]) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
        uint32_t weight[kBlocks][4];  // the layout of a product's result is that of the next one's left operand
#pragma unroll
        for (int m = 0; m < kBlocks; ++m)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                weight[m][e] = pack<T>(score[m][2 * k + e / 2][e % 2 * 2], score[m][2 * k + e / 2][e % 2 * 2 + 1]);
#pragma unroll
        for (int j = 0; j < kDim / 16; ++j) {
            uint32_t b[4];
            load_matrices_transposed(b, rows_at<kDim / 8>(values, first + 16 * k, 2 * j, lane));
#pragma unroll
            for (int m = 0; m < kBlocks; ++m) {
                multiply_add<T>(run[m].acc[2 * j], weight[m], b[0], b[1]);
                multiply_add<T>(run[m].acc[2 * j + 1], weight[m], b[2], b[3]);
            }
        }
    }
}

// Takes one tile of kTokens tokens, of which this warp looks at kKeys from `first` on, into the running softmax.
template <typename T, int kDim, int kTokens, int kKeys, int kBlocks, typename Query, typename Limits>
TTC_DEVICE void add_tile(const AttentionArgs& args, char* tile, int token, int first, int lane, const Query& query,
                         const Limits& limits, Running<kDim> (&run)[kBlocks]) {
    const float scale = fmaxf(fabsf(args.scale) * kLog2e, 1e-30f);  // not 0: 0 times a masked key's -inf is NaN
    float score[kBlocks][kKeys / 8][4];
    multiply_keys<T, kDim, kKeys, kBlocks>(tile, first, lane, query, score);
#pragma unroll
    for (int m = 0; m < kBlocks; ++m)
        weigh<kDim, kKeys>(score[m], token + first, lane, scale, args.scale < 0.0f, limits, m, run[m]);
    multiply_values<T, kDim, kKeys, kBlocks>(tile + kTokens * kDim * 2, first, lane, score, run);
}

// Each lane holds the results of two of 16 rows from `first` on, which are complete.
template <typename T, int kDim>
TTC_DEVICE void store_rows(const Rows<T, kDim>& rows, int first, int lane, Running<kDim>& run) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float sum = quad_sum(run.sum[r]), rate = sum == 0.0f ? 0.0f : 1.0f / sum;
        const int p = first + lane / 4 + 8 * r;
        if (p >= rows.num_packed) continue;
        const int64_t place = rows.place(p);
        T* const to = rows.result(place) + 2 * (lane % 4);
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j)
            *(uint32_t*)(to + 8 * j) = pack<T>(run.acc[j][2 * r] * rate, run.acc[j][2 * r + 1] * rate);
        if (lane % 4 == 0) rows.store_lse(place, run.top[r], sum);
    }
}

// The four warps of a narrow unit hold the same rows over different keys: merges them in `stage`, which they are
// done with after a barrier.
template <typename T, int kDim>
TTC_DEVICE void store_narrow(const Rows<T, kDim>& rows, char* stage, int thread, Running<kDim>& run) {
    const int warp = thread / 32, lane = thread % 32;
    float* const acc = (float*)stage;  // (kWarps, 16, kDim); pieces of 8 columns of four rows lie in different banks
    Shared& all = shared<kDim>();
#pragma unroll
    for (int r = 0; r < 2; ++r) run.sum[r] = quad_sum(run.sum[r]);
    block_barrier();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = lane / 4 + 8 * r;
        float* const to = acc + (warp * kNarrowRows + row) * kDim + 2 * (lane % 4);
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
            float* const pair = to + 8 * (j ^ (row & 3));
            pair[0] = run.acc[j][2 * r], pair[1] = run.acc[j][2 * r + 1];
        }
        if (lane % 4 == 0) all.top[warp][row] = run.top[r], all.sum[warp][row] = run.sum[r];
    }
    block_barrier();
    const int p = thread / 8;
    if (p >= rows.num_packed) return;
    float highest = -kInfinity, total = 0.0f, weight[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) highest = fmaxf(highest, all.top[w][p]);
    const float base = highest == -kInfinity ? 0.0f : highest;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
        weight[w] = exp2_fast(all.top[w][p] - base);
        total += weight[w] * all.sum[w][p];
    }
    const float rate = total == 0.0f ? 0.0f : 1.0f / total;
    const int64_t place = rows.place(p);
    T* const to = rows.result(place);
#pragma unroll
    for (int j = 0; j < kDim / 8; j += 4) {
        const int column = 8 * j + thread % 8 * 4, from = 8 * ((j + thread % 8 / 2) ^ (p & 3)) + thread % 2 * 4;
        float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int w = 0; w < kWarps; ++w)
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] += weight[w] * acc[(w * kNarrowRows + p) * kDim + from + i];
        for (int i = 0; i < 4; i += 2) *(uint32_t*)(to + column + i) = pack<T>(x[i] * rate, x[i + 1] * rate);
    }
    if (thread % 8 == 0) rows.store_lse(place, highest, total);
}

}  // namespace gpu
}  // namespace ttc
