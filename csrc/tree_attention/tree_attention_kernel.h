// The kernel, written once over Simd and compiled once per instruction set.
//
// A task holds P = rows x group packed queries of one KV head.  Two passes over its items, each reading a node's
// keys (then values) once for all the queries below the node:
//   1. scores[unit][query][16] = q . K, and the running maximum of each query, lane by lane;
//   2. p = 2^(score - max), the sum in 16 lanes, then acc += p V, key after key.
// The true maximum is known before the first exponential, so nothing is ever rescaled.  Each score is one chain of
// fma over head_dim, each output element the sum of chains of 256 keys, counted from the start of the query's own path
// (one chain over thousands of keys would lose digits): the bits of a row depend on its own path only, not on which
// queries it shares a register block, a task or a thread with.
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
constexpr int kLine = 64;  // bytes of a cache line
constexpr int kFold = 16;  // units of a chain of sums
constexpr int kChunk = 8;  // units that stay in the cache while the queries pass over them

inline int min_int(int a, int b) { return a < b ? a : b; }
inline int max_int(int a, int b) { return a > b ? a : b; }

// Keeps what was loaded in its register: the compiler would rather read it again at each use, and a core loads one
// wide vector a cycle while it multiplies another.
inline __attribute__((always_inline)) V in_register(V v) {
#if defined(__x86_64__)
    __asm__("" : "+v"(v));
#endif
    return v;
}

// A run of units of one node: where its keys and values are, and how many keys of the last unit count.
template <class T>
struct Run {
    const T* base;              // this KV head's first element in block 0
    int64_t block_stride, inner_stride;
    const int32_t* blocks;      // of the node
    int units_per_block;
    int first, last;            // units [first, last) of the node
    int keys_in_last;           // 1..16
    const int32_t* ahead;       // of lone units: what to fetch while units[first] is worked on, and so on
};

template <class T>
inline const T* keys_at(const Run<T>& run, int block, int unit) {
    return run.base + block * run.block_stride + unit * kUnit;
}

template <class T>
inline const T* values_at(const Run<T>& run, int block, int unit) {
    return run.base + block * run.block_stride + int64_t(unit) * kUnit * run.inner_stride;
}

template <class T>
inline const T* unit_keys(const Run<T>& run, int u) {
    if (run.units_per_block == 1) return keys_at(run, run.blocks[u], 0);
    return keys_at(run, run.blocks[u / run.units_per_block], u % run.units_per_block);
}

template <class T>
inline const T* unit_values(const Run<T>& run, int u) {
    if (run.units_per_block == 1) return values_at(run, run.blocks[u], 0);
    return values_at(run, run.blocks[u / run.units_per_block], u % run.units_per_block);
}

template <class T>
inline const T* lone_keys(const Run<T>& run, int unit) {
    if (run.units_per_block == 1) return keys_at(run, unit, 0);
    return keys_at(run, unit / run.units_per_block, unit % run.units_per_block);
}

template <class T>
inline const T* lone_values(const Run<T>& run, int unit) {
    if (run.units_per_block == 1) return values_at(run, unit, 0);
    return values_at(run, unit / run.units_per_block, unit % run.units_per_block);
}

// Scores of R queries against N neighbouring units; `ahead` are the units that are fetched meanwhile.
template <class T, int R, int N>
inline __attribute__((always_inline)) void score_units(const float* q, int64_t q_stride, int head_dim,
                                                       const T* const* keys, const T* const* ahead, int64_t k_dim,
                                                       float* scores, int64_t unit_stride, float* maxima,
                                                       int keys_in_last) {
    V acc[R][N * kVecs];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < N * kVecs; ++c) acc[r][c] = Simd::zero();
    for (int d = 0; d < head_dim; ++d) {
        V k[N * kVecs];
        for (int c = 0; c < N * kVecs; ++c)
            k[c] = in_register(Simd::load(keys[c / kVecs] + d * k_dim + (c % kVecs) * W));
        for (int n = 0; n < N; ++n) __builtin_prefetch(ahead[n] + d * k_dim);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const V x = Simd::set1(q[r * q_stride + d]);
            for (int c = 0; c < N * kVecs; ++c) acc[r][c] = Simd::fma(x, k[c], acc[r][c]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        for (int lane = 0; lane < kUnit; lane += W) {
            V m = Simd::load(maxima + r * kUnit + lane);
            for (int n = 0; n < N; ++n) {
                V s = acc[r][n * kVecs + lane / W];
                if (n == N - 1 && keys_in_last < kUnit)
                    s = Simd::keep_first(s, max_int(0, min_int(W, keys_in_last - lane)), kNegInf);
                Simd::store(scores + n * unit_stride + r * kUnit + lane, s);
                m = Simd::max(s, m);
            }
            Simd::store(maxima + r * kUnit + lane, m);
        }
    }
}

template <class T>
using ScoreFn = void (*)(const float*, int64_t, int, const Run<T>&, float*, int64_t, float*);

template <class T, int R>
void score_rows(const float* q, int64_t q_stride, int head_dim, const Run<T>& run, float* scores,
                int64_t unit_stride, float* maxima) {
    int u = run.first;
    const int32_t* next = run.ahead;
    for (; kUnitsQk == 2 && u + 2 <= run.last; u += 2, scores += 2 * unit_stride) {
        const T* keys[2] = {unit_keys(run, u), unit_keys(run, u + 1)};
        const T* ahead[2] = {next ? lone_keys(run, next[0]) : keys[0], next ? lone_keys(run, next[1]) : keys[1]};
        if (next) next += 2;
        score_units<T, R, kUnitsQk>(q, q_stride, head_dim, keys, ahead, run.inner_stride, scores, unit_stride, maxima,
                                    u + 2 == run.last ? run.keys_in_last : kUnit);
    }
    for (; u < run.last; ++u, scores += unit_stride) {
        const T* keys[1] = {unit_keys(run, u)};
        const T* ahead[1] = {next ? lone_keys(run, *next++) : keys[0]};
        score_units<T, R, 1>(q, q_stride, head_dim, keys, ahead, run.inner_stride, scores, unit_stride, maxima,
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
    const int32_t* next = run.ahead;
    for (int u = run.first; u < run.last; ++u, p += unit_stride) {
        const T* row = unit_values(run, u) + dim;
        const int64_t ahead = next ? lone_values(run, *next++) + dim - row : 0;
        const int num_keys = u + 1 == run.last ? run.keys_in_last : kUnit;
        for (int j = 0; j < num_keys; ++j, row += run.inner_stride) {
            V v[C];
            for (int c = 0; c < C; c += kLine / int(sizeof(T)) / W) __builtin_prefetch(row + ahead + c * W);
            for (int c = 0; c < C; ++c)
                v[c] = in_register(TAIL ? Simd::load_tail(row + c * W, tail) : Simd::load(row + c * W));
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
    int rows, packed, stride;  // stride: of a query, and of its result
    int kv_head = 0;
    float *queries, *maxima, *inverse, *acc, *folded, *scores;
    int32_t* cursor;  // per row: units written so far

    Task(const ttc::AttentionCall& c, const ttc::AttentionTask& t) : call(c), task(t) {
        rows = t.row_hi - t.row_lo;
        packed = rows * c.group;
        stride = ttc::padded_dim(c.head_dim);
        queries = t.scratch;
        acc = queries + int64_t(packed) * stride;
        folded = acc + int64_t(packed) * stride;
        maxima = folded + int64_t(packed) * stride;
        inverse = maxima + int64_t(packed) * kUnit;
        scores = inverse + (packed + 15) / 16 * 16;
        cursor = reinterpret_cast<int32_t*>(scores + int64_t(task.max_units) * packed * kUnit);
    }

    int64_t unit_stride() const { return int64_t(packed) * kUnit; }
    float* score_at(int unit, int query) const { return scores + unit * unit_stride() + int64_t(query) * kUnit; }

    bool is_folded() const { return task.max_units >= kFold; }

    // Ends the chains of n queries.
    void fold(int q, int n) {
        float *from = acc + int64_t(q) * stride, *to = folded + int64_t(q) * stride;
        for (int64_t i = 0; i < int64_t(n) * stride; i += W) {
            Simd::store(to + i, Simd::add(Simd::load(to + i), Simd::load(from + i)));
            Simd::store(from + i, Simd::zero());
        }
    }

    // Queries times scale * log2(e), so that 2^score is the softmax's.
    void load_queries() {
        const V factor = Simd::set1(call.scale * 1.4426950408889634f);
        float* dst = queries;
        for (int r = 0; r < rows; ++r) {
            const T* src = static_cast<const T*>(call.q) + int64_t(task.row_lo + r) * call.q_row +
                           int64_t(kv_head * call.group) * call.q_head;
            for (int g = 0; g < call.group; ++g, dst += stride, src += call.q_head) {
                int d = 0;
                for (; d + W <= call.head_dim; d += W) Simd::store(dst + d, Simd::mul(Simd::load(src + d), factor));
                if (d < call.head_dim)
                    Simd::store(dst + d, Simd::mul(Simd::load_tail(src + d, call.head_dim - d), factor));
            }
        }
        const V neg = Simd::set1(kNegInf);
        for (int64_t i = 0; i < int64_t(packed) * kUnit; i += W) Simd::store(maxima + i, neg);
        const int64_t num_sums = int64_t(packed) * stride * (is_folded() ? 2 : 1);  // folded lies behind acc
        for (int64_t i = 0; i < num_sums; i += W) Simd::store(acc + i, Simd::zero());
    }

    // One run of units for n queries, as many as the registers hold; `unit` is the run's first in their scores.
    template <bool SCORES>
    void block_of_rows(const Run<T>& run, int q, int n, int unit) {
        if constexpr (SCORES)
            score_fn<T>(n)(queries + int64_t(q) * stride, stride, call.head_dim, run, score_at(unit, q),
                           unit_stride(), maxima + int64_t(q) * kUnit);
        else
            weigh_fn<T>(n)(acc + int64_t(q) * stride, stride, run, call.head_dim, score_at(unit, q), unit_stride());
    }

    // One run of units for queries [q0, q1), the run's first in their scores being `unit`: chunk by chunk, register
    // block by register block.
    template <bool SCORES>
    void do_chain(Run<T> run, int q0, int q1, int unit) {
        const int max_rows = SCORES ? kMaxRowsQk : kMaxRowsPv;
        if (q1 - q0 <= max_rows) {
            block_of_rows<SCORES>(run, q0, q1 - q0, unit);
            return;
        }
        const int num = (q1 - q0 + max_rows - 1) / max_rows;
        const int even = (q1 - q0 + num - 1) / num;
        const int stop = run.last, keys_in_last = run.keys_in_last;
        for (int u = run.first; u < stop; u += kChunk) {
            run.first = u;
            run.last = min_int(stop, u + kChunk);
            run.keys_in_last = run.last == stop ? keys_in_last : kUnit;
            for (int q = q0; q < q1; q += even) block_of_rows<SCORES>(run, q, min_int(even, q1 - q), unit);
            unit += run.last - run.first;
        }
    }

    // One run of units for rows [lo, hi), whose cursors are equal; values are summed in chains of kFold units.
    template <bool SCORES>
    void do_run(Run<T> run, int lo, int hi) {
        const int q0 = lo * call.group, q1 = hi * call.group;
        int unit = cursor[lo];
        if (SCORES || unit % kFold + run.last - run.first < kFold) {
            do_chain<SCORES>(run, q0, q1, unit);
            return;
        }
        const int stop = run.last, keys_in_last = run.keys_in_last;
        while (run.first < stop) {
            run.last = min_int(stop, run.first + kFold - unit % kFold);
            run.keys_in_last = run.last == stop ? keys_in_last : kUnit;
            do_chain<SCORES>(run, q0, q1, unit);
            const int done = run.last - run.first;
            if (run.ahead) run.ahead += done;
            unit += done;
            run.first = run.last;
            if (unit % kFold == 0) fold(q0, q1 - q0);
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

    // Where this KV head's keys (values) lie; the node's own fields come with each item.
    template <bool SCORES>
    Run<T> cache_of_head() const {
        Run<T> run;
        run.base = SCORES ? static_cast<const T*>(call.k) + kv_head * call.k_head
                          : static_cast<const T*>(call.v) + kv_head * call.v_head;
        run.block_stride = SCORES ? call.k_block : call.v_block;
        run.inner_stride = SCORES ? call.k_dim : call.v_token;
        run.units_per_block = call.block_size / kUnit;
        run.ahead = nullptr;
        return run;
    }

    // The first lone units; the others are fetched on the way, each while another is worked on.
    template <bool SCORES>
    void fetch_first() const {
        const Run<T> run = cache_of_head<SCORES>();
        const int num_lines = SCORES ? call.head_dim : kUnit;
        for (int i = 0; i < min_int(task.num_lone, ttc::kAhead); ++i) {
            const T* unit = SCORES ? lone_keys(run, task.lone_units[i]) : lone_values(run, task.lone_units[i]);
            for (int n = 0; n < num_lines; ++n) __builtin_prefetch(unit + n * run.inner_stride);
        }
    }

    template <bool SCORES>
    void walk() {
        for (int r = 0; r < rows; ++r) cursor[r] = 0;
        Run<T> run = cache_of_head<SCORES>();
        const int32_t* ahead = task.lone_units + ttc::kAhead;
        for (int i = 0; i < task.num_items; ++i) {
            const int32_t* item = call.items + int64_t(task.items[i]) * 5;
            const int lo = max_int(item[0] - task.row_lo, 0), hi = min_int(item[1] - task.row_lo, rows);
            run.blocks = call.blocks + item[2];
            // Row r of a causal item sees only the keys up to its own limit.
            const int first_limit = item[4] ? item[3] - (item[1] - 1 - (task.row_lo + lo)) : item[3];
            if (hi - lo == 1) {
                run.ahead = ahead;
                do_rows<SCORES>(run, 0, first_limit, lo, hi);
                run.ahead = nullptr;
                ahead += max_int(0, first_limit + kUnit - 1) / kUnit;
                continue;
            }
            if (!item[4]) {
                do_rows<SCORES>(run, 0, item[3], lo, hi);
                continue;
            }
            // The whole units that all rows see go together, the rest alone.
            const int common = max_int(0, first_limit) / kUnit;
            if (common) do_rows<SCORES>(run, 0, common * kUnit, lo, hi);
            for (int r = lo; r < hi; ++r) do_rows<SCORES>(run, common, first_limit + (r - lo), r, r + 1);
        }
    }

    // Scores become weights; a query without a single key (no such row in a plan of ours) gets zeros.
    void exponentials() {
        for (int r = 0; r < rows; ++r) {
            const int stop = (r + 1) * call.group;
            int q = r * call.group;
            for (; q + 4 <= stop; q += 4) weights_of<4>(q, cursor[r]);
            if (stop - q == 3) weights_of<3>(q, cursor[r]);
            if (stop - q == 2) weights_of<2>(q, cursor[r]);
            if (stop - q == 1) weights_of<1>(q, cursor[r]);
        }
    }

    // N queries of one row, side by side: each alone would wait for its own chain of instructions.
    template <int N>
    void weights_of(int q, int units) {
        V top[N], sum[N][kVecs];
        for (int n = 0; n < N; ++n) {
            const float* m = maxima + int64_t(q + n) * kUnit;
            top[n] = Simd::load(m);
            for (int c = 1; c < kVecs; ++c) top[n] = Simd::max(top[n], Simd::load(m + c * W));
            for (int c = 0; c < kVecs; ++c) sum[n][c] = Simd::zero();
        }
        for (int n = 0; n < N; ++n) top[n] = Simd::set1(Simd::hmax(top[n]));
        float* s = score_at(0, q);
        for (int u = 0; u < units; ++u, s += unit_stride()) {
            for (int n = 0; n < N; ++n) {
                for (int c = 0; c < kVecs; ++c) {
                    float* at = s + n * kUnit + c * W;
                    const V p = Simd::exp2_neg(Simd::sub(Simd::load(at), top[n]));
                    Simd::store(at, p);
                    sum[n][c] = Simd::add(sum[n][c], p);
                }
            }
        }
        for (int n = 0; n < N; ++n) {
            for (int c = 1; c < kVecs; ++c) sum[n][0] = Simd::add(sum[n][0], sum[n][c]);
            inverse[q + n] = units ? 1.0f / Simd::hsum(sum[n][0]) : 0.0f;
        }
    }

    void store_out() {
        if (is_folded()) fold(0, packed);
        for (int r = 0; r < rows; ++r) {
            for (int g = 0; g < call.group; ++g) {
                const int q = r * call.group + g;
                T* dst = static_cast<T*>(call.out) +
                         (int64_t(task.row_lo + r) * call.num_heads + kv_head * call.group + g) * call.head_dim;
                const float* src = (is_folded() ? folded : acc) + int64_t(q) * stride;
                const V factor = Simd::set1(inverse[q]);
                int d = 0;
                for (; d + W <= call.head_dim; d += W) Simd::store(dst + d, Simd::mul(Simd::load(src + d), factor));
                if (d < call.head_dim)
                    Simd::store_tail(dst + d, Simd::mul(Simd::load(src + d), factor), call.head_dim - d);
            }
        }
    }

    void run_all() {
        for (kv_head = task.head_lo; kv_head < task.head_hi; ++kv_head) {
            fetch_first<true>();
            load_queries();
            walk<true>();
            fetch_first<false>();
            exponentials();
            walk<false>();
            store_out();
        }
    }
};

inline void run_attention(const ttc::AttentionCall& call, const ttc::AttentionTask& task) {
    if (call.is_bf16)
        Task<ttc::bf16>(call, task).run_all();
    else
        Task<float>(call, task).run_all();
}

}  // namespace
