// sample on a GPU: a token of each row of logits, by the definition in ttc_kernels/sample/reference.py.
//
// Tokens are ranked by logit, ties by index: a rank is a number of 52 bits, higher for what is drawn rather. Every filter
// keeps the tokens from some rank on, its cut. Top-k's is where a number of tokens is reached, top-p's where a mass is.
// Either is found by histograms of number and mass: the first has bins of equal width in (top - logit) / T, each later
// one divides the ranks of a bin of the one before into 2048, until a single token is left.
//
// Each launch is one pass over the logits, by `num_parts` blocks for each row. The block of a row that comes last goes
// on with the histogram of all. A mass is a whole number, so that sums do not depend on the order or on num_parts.
#include "sample/sample_filtered_gpu.h"

namespace ttc {
namespace gpu {
namespace {

// Counts the tokens of some groups whose ranks are left.
TTC_DEVICE void count_left(const Row& row, int64_t first_group, int64_t end_group) {
    const Search& search = shared()->search;
    const uint64_t lowest = search.lowest, span = search.span;
    const int shift = search.shift;
    clear_bins();
    for (int64_t g = first_group + thread_index(); g < end_group; g += kThreads) {
        const Four four = row.group(g);
        for (int i = 0; i < 4 && 4 * g + i < row.vocab; ++i) {
            const uint64_t above = rank_of(four.x[i], 4 * g + i) - lowest;  // wraps where it is below
            if (above < span) add_to_bin(kBins - 1 - (int)(above >> shift), row.mass(four.x[i]));
        }
    }
}

// Pass 1: the highest rank of each part, of which kBadRank is higher than all.
TTC_KERNEL(kThreads) sample_top(FilteredSampleArgs a) {
    await_earlier_kernels();
    const Row row = row_of(a, false);
    uint64_t best = 0;
    for (int64_t g = row.first_group + thread_index(); g < row.end_group; g += kThreads) {
        const Four four = row.group(g);
        for (int i = 0; i < 4 && 4 * g + i < row.vocab; ++i) {
            const uint64_t rank = four.x[i] != four.x[i] ? kBadRank : rank_of(four.x[i], 4 * g + i);
            best = rank > best ? rank : best;
        }
    }
    best = block_max(best);
    clear_stored(&row.work->coarse, row.part * kThreads + thread_index(), a.num_parts * kThreads);
    clear_stored(&row.work->fine, row.part * kThreads + thread_index(), a.num_parts * kThreads);
    if (thread_index() != 0) return;
    row.parts[row.part] = best;
    if (row.part == 0) row.work->num_arrived = 0;
}

// Pass 2: the first histogram, and what is sought.
TTC_KERNEL(kThreads) sample_weigh(FilteredSampleArgs a) {
    await_earlier_kernels();
    const Row row = row_of(a, true);
    if (!row.is_right) return;
    clear_bins();
    for (int64_t g = row.first_group + thread_index(); g < row.end_group; g += kThreads) {
        const Four four = row.group(g);
        for (int i = 0; i < 4 && 4 * g + i < row.vocab; ++i) add_to_bin(row.coarse_bin(four.x[i]), row.mass(four.x[i]));
    }
    store_bins(&row.work->coarse);
    if (!is_last(a, row)) return;
    load_bins(row.work->coarse);
    Shared* const s = shared();
    Sum own = {0, 0}, before, total;
    for (int i = thread_index(); i < kBins; i += kThreads) own.mass += s->bins.at(i).mass;
    scan(own, &before, &total);
    const int64_t k = a.temperature[row.index] == 0.0f ? 1 : a.top_k[row.index];
    if (thread_index() == 0) {
        s->search = {k == 1 ? row.top_rank : cut_of_min_p(a, row), total.mass, 0, 0, 0, 0, (uint64_t)k, 0, kNothing};
        if (1 < k && k < row.vocab)
            s->search.sought = kByNumber;
        else if (k != 1 && a.top_p[row.index] < 1.0f)
            look_for_mass(a, row, total.mass, &s->search);
    }
    block_barrier();
    if (s->search.sought != kNothing) proceed(a, row, true);
    if (thread_index() == 0) row.work->search = s->search;
}

// Passes 3 to 5, of the rows in which something is sought still.
template <bool kIsFinal>
TTC_KERNEL(kThreads) sample_narrow(FilteredSampleArgs a) {
    await_earlier_kernels();
    const Row row = row_of(a, true);
    if (!row.is_right || row.work->search.sought == kNothing) return;
    Shared* const s = shared();
    if (thread_index() == 0) s->search = row.work->search;
    block_barrier();
    count_left(row, row.first_group, row.end_group);
    store_bins(&row.work->fine);
    if (!is_last(a, row)) return;
    load_bins(row.work->fine);
    clear_stored(&row.work->fine, thread_index(), kThreads);
    proceed(a, row, false);
    while (kIsFinal && s->search.sought != kNothing) {
        count_left(row, 0, row.num_groups);
        block_barrier();
        proceed(a, row, false);
    }
    if (thread_index() == 0) row.work->search = s->search;
}

TTC_DEVICE void write_token(const FilteredSampleArgs& a, const Row& row, int64_t token) {
    const float temperature = a.temperature[row.index];
    const double rate = temperature == 0.0f ? 1.0 : 1.0 / (double)temperature;
    const float total = (float)row.work->search.total * (1.0f / (float)((uint64_t)1 << kMassBits));
    a.tokens[row.index] = (int32_t)token;
    a.logprobs[row.index] = (float)(((double)row.logits[token] - (double)row.top) * rate - (double)logf(total));
}

// Pass 6: the draw from what is kept, a race of exponential clocks (sample.cu). What could not win is left out early,
// by a margin wider than rounding, so that the result does not depend on the parts.
TTC_KERNEL(kThreads) sample_draw(FilteredSampleArgs a) {
    await_earlier_kernels();
    const Row row = row_of(a, true);
    if (!row.is_right) {
        if (row.part == 0 && thread_index() == 0) a.tokens[row.index] = -1, a.logprobs[row.index] = __builtin_nanf("");
        return;
    }
    const uint64_t cut = row.work->search.cut;
    float time = kInfinity;
    int64_t token = 0;
    for (int64_t g = row.first_group + thread_index(); g < row.end_group; g += kThreads) {
        const Four four = row.group(g);
        float weight[4];
        bool is_any = false;
        for (int i = 0; i < 4; ++i) {
            weight[i] = rank_of(four.x[i], 4 * g + i) >= cut ? row.weight(four.x[i]) : 0.0f;
            is_any |= weight[i] > 0.0f;
        }
        if (!is_any) continue;
        uint32_t words[4];
        philox(a.keys[row.index], (uint32_t)a.positions[row.index], (uint32_t)g, words);
        for (int i = 0; i < 4; ++i) {
            if (!(complement(words[i]) < weight[i] * (time * 1.000001f))) continue;
            const float own = exponential(words[i]) / weight[i];
            if (own < time) time = own, token = 4 * g + i;
        }
    }
    // The earliest, of equals the first.
    const uint64_t best = block_max(~((uint64_t)bits_of(time) << 32 | (uint64_t)token));
    if (thread_index() == 0) row.parts[a.num_parts + row.part] = best;
    if (!is_last(a, row) || thread_index() != 0) return;
    uint64_t won = 0;
    for (int64_t i = 0; i < a.num_parts; ++i)
        won = row.parts[a.num_parts + i] > won ? row.parts[a.num_parts + i] : won;
    write_token(a, row, (int64_t)(uint32_t)~won);
}

}  // namespace
}  // namespace gpu
}  // namespace ttc

TTC_EXPORT const char* ttc_sample(int64_t device, int64_t stream, const ttc::gpu::FilteredSampleArgs* args) {
    using namespace ttc::gpu;
    const DeviceGuard guard(device);
    if (guard.error()) return guard.error();
    if (args->work_bytes != sizeof(RowWork) || args->vocab > kMaxVocab) return "cudaErrorInvalidValue";
    const Grid grid = {args->num_rows * args->num_parts, kThreads, (int)sizeof(Shared)};
    const char* error = launch(sample_top, grid, false, stream, *args);
    if (!error) error = launch(sample_weigh, grid, false, stream, *args);
    for (int i = 0; i < kNarrowings - 1 && !error; ++i) error = launch(sample_narrow<false>, grid, false, stream, *args);
    if (!error) error = launch(sample_narrow<true>, grid, false, stream, *args);
    return error ? error : launch(sample_draw, grid, false, stream, *args);
}
