// The passes of `sample` over one row of logits; what they compute is in ttc_kernels/sample/reference.py.
#pragma once

#include "sample/sample.h"
#include "sample/vec.h"

namespace ttc {
namespace TTC_VEC {

const float kInf = __builtin_inff();

// Low 32 bits of every 64-bit lane times m, in full.
TTC_INLINE vq multiply(vq a, uint32_t m) {
#if TTC_VEC_WIDTH == 16
    return (vq)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
#elif TTC_VEC_WIDTH == 8
    return (vq)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#else
    return (a & 0xffffffffu) * (uint64_t)m;
#endif
}

TTC_INLINE vq xor3(vq a, vq b, vq c) {
#if TTC_VEC_WIDTH == 16
    return (vq)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
    return a ^ b ^ c;
#endif
}

TTC_INLINE vq splat_q(uint64_t x) { return x - vq{}; }

// A row's generator: the round keys, and the first round as far as the row alone decides it.
struct Stream {
    uint32_t key0[10], key1[10];
    uint32_t word2, word3;
};

TTC_INLINE Stream make_stream(uint64_t key, uint32_t position) {
    Stream s;
    for (int i = 0; i < 10; ++i) {
        s.key0[i] = (uint32_t)key + (uint32_t)i * 0x9e3779b9u;
        s.key1[i] = (uint32_t)(key >> 32) + (uint32_t)i * 0xbb67ae85u;
    }
    uint64_t product = (uint64_t)0xd2511f53u * position;
    s.word2 = (uint32_t)(product >> 32) ^ s.key1[0];
    s.word3 = (uint32_t)product;
    return s;
}

// Philox4x32-10 of W / 2 counters (position, counter + lane, 0, 0) -> bits of 2 W consecutive tokens, in order.
// A 64-bit lane holds one 32-bit word of one counter (the upper half is whatever the last product left there).
TTC_INLINE void philox(const Stream& s, uint32_t counter, vu* low, vu* high) {
    vq lane;
    // Even lanes end up in `low`, odd lanes in `high`.
    for (int i = 0; i < W / 2; ++i) lane[i] = i / 2 + (i % 2) * (W / 4);
    vq c0 = (lane + (uint64_t)counter) ^ (uint64_t)s.key0[0], c1 = vq{}, c2 = splat_q(s.word2), c3 = splat_q(s.word3);
#pragma GCC unroll 9
    for (int i = 1; i < 10; ++i) {
        vq product0 = multiply(c0, 0xd2511f53u), product1 = multiply(c2, 0xcd9e8d57u);
        c0 = xor3(product1 >> 32, c1, splat_q(s.key0[i]));
        c1 = product1;
        c2 = xor3(product0 >> 32, c3, splat_q(s.key1[i]));
        c3 = product0;
    }
    vq words01 = (c0 & 0xffffffffu) | (c1 << 32), words23 = (c2 & 0xffffffffu) | (c3 << 32);
#if TTC_VEC_WIDTH == 16
    *low = (vu)_mm512_unpacklo_epi64((__m512i)words01, (__m512i)words23);
    *high = (vu)_mm512_unpackhi_epi64((__m512i)words01, (__m512i)words23);
#elif TTC_VEC_WIDTH == 8
    *low = (vu)_mm256_unpacklo_epi64((__m256i)words01, (__m256i)words23);
    *high = (vu)_mm256_unpackhi_epi64((__m256i)words01, (__m256i)words23);
#else
    const vq even = {words01[0], words23[0]}, odd = {words01[1], words23[1]};
    *low = (vu)even;
    *high = (vu)odd;
#endif
}

// 1 - u for u = ((x >> 8) + 0.5) * 2^-24: exact in a float where u is above 1/2, as u itself is below.
TTC_INLINE vf complement(vu x) { return (to_float((vi)(x >> 8) ^ 0xffffff) + 0.5f) * (1.0f / 16777216.0f); }

// -log(u), to a few ulp everywhere.
TTC_INLINE vf exponential(vu x) {
    vf u = (to_float((vi)(x >> 8)) + 0.5f) * (1.0f / 16777216.0f);
    vf f;
    vi e = split(u, &f);
    f = e == 0 ? -complement(x) : f;
    return -log_parts(f, to_float(e));
}

// Two vectors of a row from token v on; lanes past its end are -Inf, a logit that changes nothing.
TTC_INLINE void load_pair(const float* x, int64_t v, int64_t num, vf* a, vf* b) {
    int64_t left = num - v;
    *a = left >= W ? load(x + v) : load_n(x + v, (int)left, -kInf);
    *b = left >= 2 * W ? load(x + v + W) : left > W ? load_n(x + v + W, (int)(left - W), -kInf) : splat(-kInf);
}

static float row_max(const float* x, int64_t num, bool* is_bad) {
    vf top_a = splat(-kInf), top_b = top_a, a, b;
    vi nan = vi{};
    for (int64_t v = 0; v < num; v += 2 * W) {
        load_pair(x, v, num, &a, &b);
        nan |= (a != a) | (b != b);
        top_a = a > top_a ? a : top_a;
        top_b = b > top_b ? b : top_b;
    }
    float top = -reduce_min(min(-top_a, -top_b));
    *is_bad = any(nan) || top == kInf || top == -kInf;
    return top;
}

// exp of a row's logits over its temperature, relative to the highest. Sums are of at most 64 floats a lane before
// they go on in double, which keeps them within a few ulp.
struct Weights {
    vf zero, rate;
    vf sum_a = vf{}, sum_b = vf{};
    int num_added = 0;
    double total = 0;

    TTC_MEMBER explicit Weights(const Row& row) : zero(splat(row.top)), rate(splat(row.rate)) {}
    TTC_MEMBER vf operator()(vf x) const { return exp((x - zero) * rate); }
    TTC_MEMBER void add(vf a, vf b) {
        sum_a += a;
        sum_b += b;
        if (++num_added == 64) flush();
    }
    TTC_MEMBER void flush() {
        total += reduce_add(sum_a + sum_b);
        sum_a = sum_b = vf{};
        num_added = 0;
    }
};

static double sum_exp(const Row& row) {
    Weights weight(row);
    vf a, b;
    for (int64_t v = 0; v < row.num; v += 2 * W) {
        load_pair(row.logits, v, row.num, &a, &b);
        weight.add(weight(a), weight(b));
    }
    weight.flush();
    return weight.total;
}

TTC_INLINE vi bin_of(const Row& row, vf x) {
    vf scaled = (x - splat(row.top)) * splat(row.rate) * -(float)kBinsPerUnit;
    scaled = scaled < splat((float)(kNumBins - 1)) ? scaled : splat((float)(kNumBins - 1));
    return __builtin_convertvector(scaled, vi);
}

static void add_to_bins(const Row& row, float least, double* bins) {
    const Weights weight(row);
    const vf limit = splat(least);
    vf a, b;
    for (int64_t v = 0; v < row.num; v += 2 * W) {
        load_pair(row.logits, v, row.num, &a, &b);
        if (!any((a >= limit) | (b >= limit))) continue;
        float weights[2 * W];
        store(weights, weight(a));
        store(weights + W, weight(b));
        const vi bin_a = bin_of(row, a), bin_b = bin_of(row, b);
        for (int i = 0; i < W; ++i) bins[bin_a[i]] += weights[i];
        for (int i = 0; i < W; ++i) bins[bin_b[i]] += weights[W + i];
    }
}

static int64_t collect_bin(const Row& row, float least, int32_t bin, uint64_t* keys) {
    const vf limit = splat(least);
    int64_t count = 0;
    vf a, b;
    for (int64_t v = 0; v < row.num; v += 2 * W) {
        load_pair(row.logits, v, row.num, &a, &b);
        if (!any((a >= limit) | (b >= limit))) continue;
        const vi bin_a = bin_of(row, a), bin_b = bin_of(row, b);
        if (!any((bin_a == bin) | (bin_b == bin))) continue;
        for (int i = 0; i < 2 * W && v + i < row.num; ++i) {
            keys[count] = rank_key(row.logits[v + i], v + i);
            count += (i < W ? bin_a[i] : bin_b[i - W]) == bin;
        }
    }
    return count;
}

static int64_t first_equal(const float* x, int64_t num, float value) {
    vf a, b;
    for (int64_t v = 0; v < num; v += 2 * W) {
        load_pair(x, v, num, &a, &b);
        if (!any((a == value) | (b == value))) continue;
        while (x[v] != value) ++v;
        return v;
    }
    return -1;
}

static int64_t collect(const float* x, int64_t num, int64_t* next, float above, uint64_t* keys, int64_t capacity) {
    const vf limit = splat(above);
    int64_t count = 0, v = *next;
    vf a, b;
    for (; v < num && count + 2 * W <= capacity; v += 2 * W) {
        load_pair(x, v, num, &a, &b);
        if (!any((a > limit) | (b > limit))) continue;
        const int64_t stop = num < v + 2 * W ? num : v + 2 * W;
        for (int64_t i = v; i < stop; ++i) {
            keys[count] = rank_key(x[i], i);
            count += x[i] > above;
        }
    }
    *next = v < num ? v : num;
    return count;
}

// argmax of z - log(-log(u)) is argmin of -log(u) / exp(z), a race of exponential clocks. `best` is the lowest time
// so far. -log(u) is at least 1 - u, and that at least 2^-25, so most tokens are out before any logarithm, and many
// before their random bits. (The tests leave out only what would lose.)
template <bool kFiltered>
TTC_INLINE int64_t draw_row(const Row& row, uint64_t key, uint32_t position, double* row_sum) {
    const Stream stream = make_stream(key, position);
    const vf none = splat(kInf), cut = splat(row.cut);
    const vi last_tie = splat_i(row.last_tie);
    Weights weight(row);
    vi lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    vf best_a = none, best_b = none, a, b;
    vi arg_a = vi{}, arg_b = vi{};
    float best = kInf, least_weight = 0;
    for (int64_t v = 0; v < row.num; v += 2 * W) {
        load_pair(row.logits, v, row.num, &a, &b);
        if (kFiltered && !any((a >= cut) | (b >= cut))) continue;
        const vi at_a = lane + (int32_t)v, at_b = at_a + W;
        vf weight_a = weight(a), weight_b = weight(b);
        if (kFiltered) {
            weight_a = ((a > cut) | ((a == cut) & (at_a <= last_tie))) ? weight_a : vf{};
            weight_b = ((b > cut) | ((b == cut) & (at_b <= last_tie))) ? weight_b : vf{};
        } else {
            weight.add(weight_a, weight_b);
        }
        if (!any((weight_a > least_weight) | (weight_b > least_weight))) continue;
        vu bits_a, bits_b;
        philox(stream, (uint32_t)(v / 4), &bits_a, &bits_b);
        if (!any((complement(bits_a) < weight_a * best) | (complement(bits_b) < weight_b * best))) continue;
        const vf time_a = exponential(bits_a) / weight_a, time_b = exponential(bits_b) / weight_b;
        arg_a = time_a < best_a ? at_a : arg_a;
        best_a = time_a < best_a ? time_a : best_a;
        arg_b = time_b < best_b ? at_b : arg_b;
        best_b = time_b < best_b ? time_b : best_b;
        if (row.num > 2 * W) {
            best = reduce_min(min(best_a, best_b));
            least_weight = (1.0f / 33554432.0f) / best;
        }
    }
    if (!kFiltered) {
        weight.flush();
        *row_sum = weight.total;
    }
    const float first = reduce_min(min(best_a, best_b));
    const vi nobody = splat_i(INT32_MAX);
    const vi won_a = best_a == first ? arg_a : nobody, won_b = best_b == first ? arg_b : nobody;
    return reduce_min(won_a < won_b ? won_a : won_b);
}

static int64_t draw(const Row& row, uint64_t key, uint32_t position, double* row_sum) {
    return row.is_filtered ? draw_row<true>(row, key, position, row_sum)
                           : draw_row<false>(row, key, position, row_sum);
}

static void noise(uint64_t key, uint32_t position, float* out, int64_t num) {
    const Stream stream = make_stream(key, position);
    for (int64_t v = 0; v < num; v += 2 * W) {
        vu low, high;
        philox(stream, (uint32_t)(v / 4), &low, &high);
        float both[2 * W];
        store(both, -log(exponential(low)));
        store(both + W, -log(exponential(high)));
        std::memcpy(out + v, both, sizeof(float) * (num - v < 2 * W ? num - v : 2 * W));
    }
}

extern const SampleKernels sample_kernels;
const SampleKernels sample_kernels = {row_max, sum_exp, first_equal, collect,
                                      add_to_bins, collect_bin, draw, noise};

}  // namespace TTC_VEC
}  // namespace ttc
