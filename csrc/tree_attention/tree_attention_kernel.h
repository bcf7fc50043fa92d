// The kernel, written once over Simd and compiled once per instruction set.
//
// A task holds P = rows x group packed queries of one KV head.  Two passes over its items, each reading a node's
// keys (then values) once for all the queries below the node:
//   1. scores[unit][query][16] = q . K, and the running maximum of each query, lane by lane;
//   2. p = 2^(score - max), the sum in 16 lanes, then acc += p V, key after key.
// The true maximum is known before the first exponential, so nothing is ever rescaled.  Each score is one chain of
// fma over head_dim, each output element one chain over the query's own keys in position order: the bits of a row
// depend on its own path only, not on which queries it shares a register block, a task or a thread with.
// Keys beyond a query's limit score -inf and their values are not read, so rubbish in unused slots cannot leak.
#pragma once

#include "../common/simd.h"
#include "tree_attention.h"

namespace {

using ttc::kUnit;
using V = Simd::V;
constexpr int W = Simd::W;
constexpr int kVecs = kUnit / W;  // vectors per unit of 16 keys

// Register blocks: queries x vectors of accumulators, as many as the register file holds.
constexpr int kMaxRowsQk = W == 16 ? 12 : W == 8 ? 6 : 3;
constexpr int kUnitsQk = W == 16 ? 2 : 1;
constexpr int kMaxRowsPv = W == 4 ? 3 : 6;
constexpr int kVecsPv = W == 8 ? 2 : 4;
constexpr int kChunk = 8;  // units that stay in the cache while the queries pass over them

inline int min_int(int a, int b) { return a < b ? a : b; }
inline int max_int(int a, int b) { return a > b ? a : b; }

// A run of units of one node: where its keys and values are, and how many keys of the last unit count.
template <class T>
struct Run {
    const T* base;              // this KV head's first element in block 0
    int64_t block_stride, inner_stride;
    const int32_t* blocks;      // of the node
    int units_per_block;
    int first, last;            // units [first, last) of the node
    int keys_in_last;           // 1..16
};

template <class T>
inline const T* unit_keys(const Run<T>& run, int u) {
    if (run.units_per_block == 1) return run.base + run.blocks[u] * run.block_stride;
    const int b = u / run.units_per_block;
    return run.base + run.blocks[b] * run.block_stride + (u - b * run.units_per_block) * kUnit;
}

template <class T>
inline const T* unit_values(const Run<T>& run, int u) {
    if (run.units_per_block == 1) return run.base + run.blocks[u] * run.block_stride;
    const int b = u / run.units_per_block;
    return run.base + run.blocks[b] * run.block_stride + int64_t(u - b * run.units_per_block) * kUnit * run.inner_stride;
}

// Scores of R queries against N neighbouring units.
template <class T, int R, int N>
inline __attribute__((always_inline)) void score_units(const float* q, int64_t q_stride, int head_dim,
                                                       const T* const* keys, int64_t k_dim, float* scores,
                                                       int64_t unit_stride, float* maxima, int keys_in_last) {
    V acc[R][N * kVecs];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < N * kVecs; ++c) acc[r][c] = Simd::zero();
    for (int d = 0; d < head_dim; ++d) {
        V k[N * kVecs];
        for (int c = 0; c < N * kVecs; ++c) k[c] = Simd::load(keys[c / kVecs] + d * k_dim + (c % kVecs) * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const V x = Simd::set1(q[d * q_stride + r]);
            for (int c = 0; c < N * kVecs; ++c) acc[r][c] = Simd::fma(x, k[c], acc[r][c]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < N * kVecs; ++c) {
            const int lane = (c % kVecs) * W;
            V s = acc[r][c];
            if (c / kVecs == N - 1 && keys_in_last < kUnit)
                s = Simd::keep_first(s, max_int(0, min_int(W, keys_in_last - lane)), kNegInf);
            Simd::store(scores + (c / kVecs) * unit_stride + r * kUnit + lane, s);
            Simd::store(maxima + r * kUnit + lane, Simd::max(s, Simd::load(maxima + r * kUnit + lane)));
        }
    }
}

template <class T>
using ScoreFn = void (*)(const float*, int64_t, int, const Run<T>&, float*, int64_t, float*);

template <class T, int R>
void score_rows(const float* q, int64_t q_stride, int head_dim, const Run<T>& run, float* scores,
                int64_t unit_stride, float* maxima) {
    int u = run.first;
    for (; kUnitsQk == 2 && u + 2 <= run.last; u += 2, scores += 2 * unit_stride) {
        const T* keys[2] = {unit_keys(run, u), unit_keys(run, u + 1)};
        score_units<T, R, kUnitsQk>(q, q_stride, head_dim, keys, run.inner_stride, scores, unit_stride, maxima,
                                    u + 2 == run.last ? run.keys_in_last : kUnit);
    }
    for (; u < run.last; ++u, scores += unit_stride) {
        const T* keys[1] = {unit_keys(run, u)};
        score_units<T, R, 1>(q, q_stride, head_dim, keys, run.inner_stride, scores, unit_stride, maxima,
                             u + 1 == run.last ? run.keys_in_last : kUnit);
    }
}

// acc (R queries, C vectors from `dim` on) += p V over the run's keys.  TAIL: the last vector, tail < W lanes of it.
template <class T, int R, int C, bool TAIL>
inline __attribute__((always_inline)) void weigh_values(float* acc, int64_t acc_stride, const Run<T>& run, int dim,
                                                        int tail, const float* p, int64_t unit_stride) {
    V a[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) a[r][c] = Simd::load(acc + r * acc_stride + dim + c * W);
    for (int u = run.first; u < run.last; ++u, p += unit_stride) {
        const T* row = unit_values(run, u) + dim;
        const int num_keys = u + 1 == run.last ? run.keys_in_last : kUnit;
        for (int j = 0; j < num_keys; ++j, row += run.inner_stride) {
            V v[C];
            for (int c = 0; c < C; ++c) v[c] = TAIL ? Simd::load_tail(row + c * W, tail) : Simd::load(row + c * W);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const V x = Simd::set1(p[r * kUnit + j]);
                for (int c = 0; c < C; ++c) a[r][c] = Simd::fma(x, v[c], a[r][c]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) Simd::store(acc + r * acc_stride + dim + c * W, a[r][c]);
}

template <class T>
using WeighFn = void (*)(float*, int64_t, const Run<T>&, int, const float*, int64_t);

template <class T, int R>
void weigh_rows(float* acc, int64_t acc_stride, const Run<T>& run, int head_dim, const float* p,
                int64_t unit_stride) {
    int dim = 0;
    for (; dim + kVecsPv * W <= head_dim; dim += kVecsPv * W)
        weigh_values<T, R, kVecsPv, false>(acc, acc_stride, run, dim, 0, p, unit_stride);
    for (; kVecsPv > 2 && dim + 2 * W <= head_dim; dim += 2 * W)
        weigh_values<T, R, 2, false>(acc, acc_stride, run, dim, 0, p, unit_stride);
    for (; dim + W <= head_dim; dim += W)
        weigh_values<T, R, 1, false>(acc, acc_stride, run, dim, 0, p, unit_stride);
    if (dim < head_dim) weigh_values<T, R, 1, true>(acc, acc_stride, run, dim, head_dim - dim, p, unit_stride);
}

template <class T>
ScoreFn<T> score_fn(int r) {
    static constexpr ScoreFn<T> small[3] = {score_rows<T, 1>, score_rows<T, 2>, score_rows<T, 3>};
    if constexpr (kMaxRowsQk >= 6) {
        static constexpr ScoreFn<T> mid[3] = {score_rows<T, 4>, score_rows<T, 5>, score_rows<T, 6>};
        if constexpr (kMaxRowsQk >= 12) {
            static constexpr ScoreFn<T> large[6] = {score_rows<T, 7>,  score_rows<T, 8>,  score_rows<T, 9>,
                                                    score_rows<T, 10>, score_rows<T, 11>, score_rows<T, 12>};
            if (r > 6) return large[r - 7];
        }
        if (r > 3) return mid[r - 4];
    }
    return small[r - 1];
}

template <class T>
WeighFn<T> weigh_fn(int r) {
    static constexpr WeighFn<T> small[3] = {weigh_rows<T, 1>, weigh_rows<T, 2>, weigh_rows<T, 3>};
    if constexpr (kMaxRowsPv >= 6) {
        static constexpr WeighFn<T> large[3] = {weigh_rows<T, 4>, weigh_rows<T, 5>, weigh_rows<T, 6>};
        if (r > 3) return large[r - 4];
    }
    return small[r - 1];
}

// The task's arrays and the walk over its items.
template <class T>
struct Task {
    const ttc::AttentionCall& call;
    const ttc::AttentionTask& task;
    int rows, packed, packed16, acc_stride;
    float *queries, *maxima, *inverse, *acc, *scores;
    int32_t* cursor;  // per row: units written so far

    Task(const ttc::AttentionCall& c, const ttc::AttentionTask& t) : call(c), task(t) {
        rows = t.row_hi - t.row_lo;
        packed = rows * c.group;
        packed16 = (packed + 15) / 16 * 16;
        acc_stride = ttc::padded_dim(c.head_dim);
        queries = t.scratch;
        maxima = queries + int64_t(packed16) * c.head_dim;
        inverse = maxima + int64_t(packed) * kUnit;
        acc = inverse + packed16;
        scores = acc + int64_t(packed) * acc_stride;
        cursor = reinterpret_cast<int32_t*>(scores + int64_t(task.max_units) * packed * kUnit);
    }

    int64_t unit_stride() const { return int64_t(packed) * kUnit; }
    float* score_at(int unit, int query) const { return scores + unit * unit_stride() + int64_t(query) * kUnit; }

    // Queries, transposed to (head_dim, packed) and multiplied by scale * log2(e), so that 2^score is the softmax's.
    void load_queries() {
        const float factor = call.scale * 1.4426950408889634f;
        for (int r = 0; r < rows; ++r) {
            for (int g = 0; g < call.group; ++g) {
                const T* src = static_cast<const T*>(call.q) + int64_t(task.row_lo + r) * call.q_row +
                               int64_t(task.kv_head * call.group + g) * call.q_head;
                float* dst = queries + r * call.group + g;
                for (int d = 0; d < call.head_dim; ++d, dst += packed16) *dst = ttc::to_float(src[d]) * factor;
            }
        }
        const V neg = Simd::set1(kNegInf);
        for (int64_t i = 0; i < int64_t(packed) * kUnit; i += W) Simd::store(maxima + i, neg);
        for (int64_t i = 0; i < int64_t(packed) * acc_stride; i += W) Simd::store(acc + i, Simd::zero());
    }

    // One run of units for rows [lo, hi), whose cursors are equal: chunk by chunk, register block by register block.
    template <bool SCORES>
    void do_run(Run<T> run, int lo, int hi) {
        const int q0 = lo * call.group, q1 = hi * call.group;
        const int max_rows = SCORES ? kMaxRowsQk : kMaxRowsPv;
        const int num = (q1 - q0 + max_rows - 1) / max_rows;
        const int even = (q1 - q0 + num - 1) / num;
        const int stop = run.last, keys_in_last = run.keys_in_last;
        const int chunk = num == 1 ? stop - run.first : kChunk;
        int unit = cursor[lo];
        for (int u = run.first; u < stop; u += chunk) {
            run.first = u;
            run.last = min_int(stop, u + chunk);
            run.keys_in_last = run.last == stop ? keys_in_last : kUnit;
            for (int q = q0; q < q1; q += even) {
                const int n = min_int(even, q1 - q);
                if constexpr (SCORES)
                    score_fn<T>(n)(queries + q, packed16, call.head_dim, run, score_at(unit, q), unit_stride(),
                                   maxima + int64_t(q) * kUnit);
                else
                    weigh_fn<T>(n)(acc + int64_t(q) * acc_stride, acc_stride, run, call.head_dim,
                                   score_at(unit, q), unit_stride());
            }
            unit += run.last - run.first;
        }
    }

    // Units [first, ...) of a node up to `limit` keys, for rows [lo, hi): split where the rows' cursors differ.
    template <bool SCORES>
    void do_rows(Run<T> run, int first, int limit, int lo, int hi) {
        run.first = first;
        run.last = (limit + kUnit - 1) / kUnit;
        if (run.last <= first) return;
        run.keys_in_last = limit - (run.last - 1) * kUnit;
        for (int a = lo, b; a < hi; a = b) {
            for (b = a + 1; b < hi && cursor[b] == cursor[a]; ++b) {
            }
            do_run<SCORES>(run, a, b);
            for (int r = a; r < b; ++r) cursor[r] += run.last - first;
        }
    }

    template <bool SCORES>
    void walk() {
        for (int r = 0; r < rows; ++r) cursor[r] = 0;
        for (int i = 0; i < task.num_items; ++i) {
            const int32_t* item = call.items + int64_t(task.items[i]) * 5;
            const int lo = max_int(item[0] - task.row_lo, 0), hi = min_int(item[1] - task.row_lo, rows);
            Run<T> run;
            if (SCORES) {
                run.base = static_cast<const T*>(call.k) + task.kv_head * call.k_head;
                run.block_stride = call.k_block;
                run.inner_stride = call.k_dim;
            } else {
                run.base = static_cast<const T*>(call.v) + task.kv_head * call.v_head;
                run.block_stride = call.v_block;
                run.inner_stride = call.v_token;
            }
            run.blocks = call.blocks + item[2];
            run.units_per_block = call.block_size / kUnit;
            if (!item[4]) {
                do_rows<SCORES>(run, 0, item[3], lo, hi);
                continue;
            }
            // Causal: row r ends at its own limit.  The whole units that all rows see go together, the rest alone.
            const int first_limit = item[3] - (item[1] - 1 - (task.row_lo + lo));
            const int common = hi - lo == 1 ? 0 : max_int(0, first_limit) / kUnit;
            if (common) do_rows<SCORES>(run, 0, common * kUnit, lo, hi);
            for (int r = lo; r < hi; ++r) do_rows<SCORES>(run, common, first_limit + (r - lo), r, r + 1);
        }
    }

    // Scores become weights; a query without a single key (no such row in a plan of ours) gets zeros.
    void exponentials() {
        for (int r = 0; r < rows; ++r) {
            const int units = cursor[r];
            for (int q = r * call.group; q < (r + 1) * call.group; ++q) {
                V m = Simd::load(maxima + int64_t(q) * kUnit);
                for (int c = 1; c < kVecs; ++c) m = Simd::max(m, Simd::load(maxima + int64_t(q) * kUnit + c * W));
                m = Simd::set1(Simd::hmax(m));
                V sum[kVecs];
                for (int c = 0; c < kVecs; ++c) sum[c] = Simd::zero();
                float* s = score_at(0, q);
                for (int u = 0; u < units; ++u, s += unit_stride()) {
                    for (int c = 0; c < kVecs; ++c) {
                        const V p = Simd::exp2_neg(Simd::sub(Simd::load(s + c * W), m));
                        Simd::store(s + c * W, p);
                        sum[c] = Simd::add(sum[c], p);
                    }
                }
                for (int c = 1; c < kVecs; ++c) sum[0] = Simd::add(sum[0], sum[c]);
                inverse[q] = units ? 1.0f / Simd::hsum(sum[0]) : 0.0f;
            }
        }
    }

    void store_out() {
        for (int r = 0; r < rows; ++r) {
            for (int g = 0; g < call.group; ++g) {
                const int q = r * call.group + g;
                T* dst = static_cast<T*>(call.out) +
                         (int64_t(task.row_lo + r) * call.num_heads + task.kv_head * call.group + g) * call.head_dim;
                const float* src = acc + int64_t(q) * acc_stride;
                const V factor = Simd::set1(inverse[q]);
                int d = 0;
                for (; d + W <= call.head_dim; d += W) Simd::store(dst + d, Simd::mul(Simd::load(src + d), factor));
                if (d < call.head_dim)
                    Simd::store_tail(dst + d, Simd::mul(Simd::load(src + d), factor), call.head_dim - d);
            }
        }
    }

    void run_all() {
        load_queries();
        walk<true>();
        exponentials();
        walk<false>();
        store_out();
    }
};

inline void run_attention(const ttc::AttentionCall& call, const ttc::AttentionTask& task) {
    if (call.is_bf16)
        Task<ttc::bf16>(call, task).run_all();
    else
        Task<float>(call, task).run_all();
}

}  // namespace
