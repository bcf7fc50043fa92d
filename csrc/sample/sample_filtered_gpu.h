// How `sample` on a GPU finds a row's cut: the ranks of its tokens, histograms of them, and the search in these.
// Included by sample_filtered.cu alone, which says what the passes are.
#pragma once

#include "cuda/launch.h"
#include "cuda/philox.h"

namespace ttc {
namespace gpu {

// What Python passes, field for field (ttc_kernels/sample/cuda.py), and what all kernels get.
struct FilteredSampleArgs {
    const float* logits;  // (rows, vocab), rows logits_stride elements apart
    int64_t logits_stride, num_rows, vocab;
    const uint64_t* keys;      // this and the next five: (rows)
    const int32_t* positions;
    const float* temperature;
    const int32_t* top_k;
    const float* top_p;
    const float* min_p;
    int32_t* tokens;    // (rows)
    float* logprobs;    // (rows)
    int64_t num_parts;  // blocks for each row
    uint64_t* parts;    // (rows, 2, num_parts): the highest rank of each part, and what is drawn from it
    void* work;         // (rows) RowWork
    int64_t work_bytes;  // of one
};

namespace {

constexpr int kThreads = 256, kBins = 2048, kBinsPerThread = kBins / kThreads, kGroup = 16;
constexpr int kBinsPerUnit = 64;  // of the first histogram, whose last bin is open to the left
constexpr int kIndexBits = 20, kMassBits = 44;
constexpr int kNarrowings = 3;  // launches that divide a bin further; the last one goes on until a token is left
constexpr int64_t kMaxVocab = (1 << kIndexBits) - 1;  // of which masses of 2^kMassBits add up to less than 2^64
constexpr uint32_t kLeastKey = 0x007fffff, kInfinityKey = 0xff800000;  // those of -Inf and +Inf
constexpr uint64_t kBadRank = ~(uint64_t)0;
constexpr float kMaxRate = 3.402823466e38f;

enum Sought { kNothing, kByNumber, kByMass };

// Where a row's cut is looked for, and what is known of it.
struct Search {
    uint64_t cut;    // tokens of lower rank are not kept; by the filters that are through
    uint64_t total;  // mass of the row
    uint64_t lowest, span;  // ranks [lowest, lowest + span) are left, which are at most kBins << shift
    uint64_t num_before, mass_before;  // of the tokens above them
    uint64_t target;  // number or mass, of the first tokens that reach it the last one is sought
    int32_t shift;
    int32_t sought;  // a Sought
};

struct Sum {
    uint64_t num, mass;
};

struct StoredBins {
    uint64_t mass[kBins];
    uint32_t num[kBins];
};

struct RowWork {
    Search search;
    StoredBins coarse, fine;  // bin 0 holds the highest ranks
    uint32_t num_arrived, unused;
};

// A histogram in shared memory, where 32 bits are added at once; the mass in two words.
struct Bins {
    uint32_t num[kBins], low[kBins], high[kBins];

    TTC_DEVICE Sum at(int bin) const { return {num[bin], (uint64_t)high[bin] << 32 | low[bin]}; }
};

struct Shared {
    Bins bins;
    Sum of_threads[kThreads], of_groups[kThreads / kGroup];
    uint64_t of_warps[kThreads / 32];
    Search search;
    Sum before, in_bin;  // what is above the bin in which the target is reached, and in it
    int32_t bin;
    int32_t is_last;
};

TTC_DEVICE uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}

// Orders as float does, with -0 as 0.
TTC_DEVICE uint32_t key_of(float x) {
    const uint32_t bits = bits_of(x + 0.0f);
    return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

TTC_DEVICE float logit_of(uint32_t key) {
    const uint32_t bits = key ^ (key >> 31 ? 0x80000000u : 0xffffffffu);
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}

TTC_DEVICE uint64_t rank_of(float x, int64_t token) {
    return (uint64_t)key_of(x) << kIndexBits | (uint64_t)(kMaxVocab - token);
}

struct alignas(16) Four {
    float x[4];
};

// A row, and the part of it that the block takes, in groups of four tokens.
struct Row {
    int64_t index, part;
    const float* logits;
    int64_t vocab, first_group, end_group, num_groups;
    bool is_aligned;
    RowWork* work;
    uint64_t* parts;
    uint64_t top_rank;
    float top, rate;  // the highest logit; 1 / temperature, finite
    bool is_right;    // whether a token can be drawn

    TTC_DEVICE Four group(int64_t i) const {
        if (is_aligned && 4 * i + 4 <= vocab) return *(const Four*)(logits + 4 * i);
        Four four;
        for (int j = 0; j < 4; ++j) four.x[j] = 4 * i + j < vocab ? logits[4 * i + j] : -kInfinity;
        return four;
    }
    // exp((x - top) / temperature).
    TTC_DEVICE float weight(float x) const { return x == top ? 1.0f : exp2_fast((x - top) * (rate * kLog2e)); }
    TTC_DEVICE uint64_t mass(float x) const { return (uint64_t)(weight(x) * (float)((uint64_t)1 << kMassBits)); }
    TTC_DEVICE int coarse_bin(float x) const {
        const float distance = x == top ? 0.0f : (top - x) * (rate * kBinsPerUnit);
        return distance < kBins - 1 ? (int)distance : kBins - 1;
    }
};

TTC_DEVICE bool are_right(const FilteredSampleArgs& a, int64_t row) {
    return a.temperature[row] >= 0.0f && a.temperature[row] < kInfinity && a.top_k[row] >= 0 && a.top_p[row] > 0.0f &&
           a.top_p[row] <= 1.0f && a.min_p[row] >= 0.0f && a.min_p[row] <= 1.0f && a.positions[row] >= 0;
}

// The row of this block. What its top is, all lanes of a warp find out together.
TTC_DEVICE Row row_of(const FilteredSampleArgs& a, bool knows_top) {
    Row row;
    row.index = block_index() / a.num_parts;
    row.part = block_index() % a.num_parts;
    row.logits = a.logits + row.index * a.logits_stride;
    row.vocab = a.vocab;
    row.num_groups = (a.vocab + 3) / 4;
    const int64_t per_part = (row.num_groups + a.num_parts - 1) / a.num_parts;
    const int64_t end = (row.part + 1) * per_part;
    row.first_group = row.part * per_part;
    row.end_group = end < row.num_groups ? end : row.num_groups;
    row.is_aligned = (uint64_t)row.logits % 16 == 0;
    row.work = (RowWork*)a.work + row.index;
    row.parts = a.parts + row.index * 2 * a.num_parts;
    if (!knows_top) return row;
    uint64_t best = 0;
    for (int64_t i = thread_index() % 32; i < a.num_parts; i += 32) best = row.parts[i] > best ? row.parts[i] : best;
    row.top_rank = warp_max(best);
    const uint32_t key = (uint32_t)(row.top_rank >> kIndexBits);
    row.is_right = row.top_rank != kBadRank && key > kLeastKey && key < kInfinityKey && are_right(a, row.index);
    row.top = logit_of(key);
    const float temperature = a.temperature[row.index];
    const float rate = temperature == 0.0f ? 1.0f : 1.0f / temperature;
    row.rate = rate < kMaxRate ? rate : kMaxRate;
    return row;
}

TTC_DEVICE Shared* shared() { return (Shared*)shared_memory(); }

// The greatest of all threads' numbers; all get it.
TTC_DEVICE uint64_t block_max(uint64_t x) {
    uint64_t* const of_warps = shared()->of_warps;
    x = warp_max(x);
    if (thread_index() % 32 == 0) of_warps[thread_index() / 32] = x;
    block_barrier();
    for (int w = 0; w < kThreads / 32; ++w) x = of_warps[w] > x ? of_warps[w] : x;
    return x;
}

// Whether the row's other blocks have come here before; then what they have written is there.
TTC_DEVICE bool is_last(const FilteredSampleArgs& a, const Row& row) {
    block_barrier();
    if (thread_index() == 0)
        shared()->is_last = count_up(&row.work->num_arrived, (uint32_t)(a.num_parts - 1)) == a.num_parts - 1;
    block_barrier();
    return shared()->is_last;
}

// What of_threads holds for the threads before this one, and for all.
TTC_DEVICE void scan(Sum own, Sum* before, Sum* total) {
    Shared* const s = shared();
    const int thread = thread_index(), group = thread / kGroup;
    auto add = [](Sum& to, const Sum& x) { to.num += x.num, to.mass += x.mass; };
    s->of_threads[thread] = own;
    block_barrier();
    *before = {0, 0}, *total = {0, 0};
    for (int i = group * kGroup; i < thread; ++i) add(*before, s->of_threads[i]);
    if (thread % kGroup == kGroup - 1) {
        s->of_groups[group] = *before;
        add(s->of_groups[group], own);
    }
    block_barrier();
    for (int g = 0; g < kThreads / kGroup; ++g) {
        if (g < group) add(*before, s->of_groups[g]);
        add(*total, s->of_groups[g]);
    }
}

TTC_DEVICE void clear_bins() {
    Bins& bins = shared()->bins;
    block_barrier();  // their last readers are done
    for (int i = thread_index(); i < kBins; i += kThreads) bins.num[i] = bins.low[i] = bins.high[i] = 0;
    block_barrier();
}

TTC_DEVICE void add_to_bin(int bin, uint64_t mass) {
    Bins& bins = shared()->bins;
    atomic_add(&bins.num[bin], 1u);
    const uint32_t low = (uint32_t)mass;
    if (mass == 0) return;
    const uint32_t before = atomic_add(&bins.low[bin], low);
    const uint32_t high = (uint32_t)(mass >> 32) + ((uint32_t)(before + low) < low ? 1u : 0u);
    if (high) atomic_add(&bins.high[bin], high);
}

// Adds the block's bins to the row's.
TTC_DEVICE void store_bins(StoredBins* to) {
    block_barrier();
    for (int i = thread_index(); i < kBins; i += kThreads) {
        const Sum sum = shared()->bins.at(i);
        if (sum.num) atomic_add(&to->num[i], (uint32_t)sum.num);
        if (sum.mass) atomic_add(&to->mass[i], sum.mass);
    }
}

TTC_DEVICE void load_bins(const StoredBins& from) {
    Bins& bins = shared()->bins;
    block_barrier();
    for (int i = thread_index(); i < kBins; i += kThreads) {
        bins.num[i] = from.num[i];
        bins.low[i] = (uint32_t)from.mass[i], bins.high[i] = (uint32_t)(from.mass[i] >> 32);
    }
    block_barrier();
}

TTC_DEVICE void clear_stored(StoredBins* bins, int64_t from, int64_t step) {
    for (int64_t i = from; i < kBins; i += step) bins->num[i] = 0, bins->mass[i] = 0;
}

// The lowest key from `low` on that is taken, as all above it are and `high` is.
template <typename IsTaken>
TTC_DEVICE uint32_t first_taken(uint32_t low, uint32_t high, IsTaken is_taken) {
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (is_taken(middle))
            high = middle;
        else
            low = middle + 1;
    }
    return high;
}

// The lowest key whose logit falls into a bin of the first histogram up to `bin`; one above the top's for -1.
TTC_DEVICE uint32_t lowest_key(const Row& row, int bin) {
    const uint32_t top = key_of(row.top);
    if (bin < 0) return top + 1;
    return first_taken(kLeastKey, top, [&](uint32_t key) { return row.coarse_bin(logit_of(key)) <= bin; });
}

// The lowest rank that min-p keeps: that of the lowest key of which reference.py's comparison is true.
TTC_DEVICE uint64_t cut_of_min_p(const FilteredSampleArgs& a, const Row& row) {
    const float min_p = a.min_p[row.index], temperature = a.temperature[row.index];
    if (min_p == 0.0f || temperature == 0.0f) return 0;
    const double least = log((double)min_p), top = (double)row.top;
    auto is_kept = [=](uint32_t key) { return ((double)logit_of(key) - top) / (double)temperature >= least; };
    const double nearly = top + least * (double)temperature;
    uint32_t low = kLeastKey + 1, high = key_of(row.top);
    const uint32_t guess = nearly > (double)logit_of(low) ? key_of((float)nearly) : low;
    // Mostly right, but for rounding. Close to 0 many million keys lie within the rounding of `top`.
    if (guess > low + 1 && !is_kept(guess - 2)) low = guess - 1;
    if (guess < high && is_kept(guess + 1)) high = guess + 1;
    return (uint64_t)first_taken(low, high, is_kept) << kIndexBits;
}

TTC_DEVICE void look_for_mass(const FilteredSampleArgs& a, const Row& row, uint64_t of, Search* search) {
    search->sought = kByMass;
    search->target = (uint64_t)ceil((double)a.top_p[row.index] * (double)of);
    search->num_before = search->mass_before = 0;
}

// Takes the bin in which the target is reached for the ranks that are left. Where that is one token, the filter's cut
// is known, and nothing is sought any more, or after top-k top-p's: then it returns true.
TTC_DEVICE bool narrow(const FilteredSampleArgs& a, const Row& row, bool is_coarse) {
    Shared* const s = shared();
    Search* const search = &s->search;
    const int first = thread_index() * kBinsPerThread;
    Sum own = {0, 0}, before, total;
    for (int i = first; i < first + kBinsPerThread; ++i) own.num += s->bins.at(i).num, own.mass += s->bins.at(i).mass;
    scan(own, &before, &total);
    before.num += search->num_before, before.mass += search->mass_before;
    for (int i = first; i < first + kBinsPerThread; ++i) {
        const Sum in_bin = s->bins.at(i);
        const bool by_number = search->sought == kByNumber;
        const uint64_t left = search->target - (by_number ? before.num : before.mass);  // wraps where it is reached
        if (left - 1 < (by_number ? in_bin.num : in_bin.mass)) s->before = before, s->in_bin = in_bin, s->bin = i;
        before.num += in_bin.num, before.mass += in_bin.mass;
    }
    block_barrier();
    const int bin = s->bin, old_shift = search->shift;
    const bool is_found = s->in_bin.num == 1 || (!is_coarse && old_shift == 0);
    const bool is_next = is_found && search->sought == kByNumber && a.top_p[row.index] < 1.0f;
    uint64_t lowest = search->lowest + ((uint64_t)(kBins - 1 - bin) << old_shift);
    uint64_t span = search->lowest + search->span - lowest;  // the first bin may be cut off at the end
    if (span >> old_shift) span = (uint64_t)1 << old_shift;
    if (is_coarse) {  // the even lanes seek the bin's lower end, the odd ones its upper end
        const uint32_t key = lowest_key(row, bin - thread_index() % 2);
        const uint32_t other = (uint32_t)shuffle_xor((int)key, 1);
        lowest = (uint64_t)(thread_index() % 2 ? other : key) << kIndexBits;
        span = ((uint64_t)(thread_index() % 2 ? key : other) << kIndexBits) - lowest;
    }
    int shift = 0;
    while (span > (uint64_t)kBins << shift) ++shift;
    block_barrier();  // all have read
    if (thread_index() == 0) {
        search->lowest = lowest, search->span = span, search->shift = shift;
        search->num_before = s->before.num, search->mass_before = s->before.mass;
        if (is_found) {
            search->cut = lowest > search->cut ? lowest : search->cut;
            search->sought = kNothing;
            if (is_next) look_for_mass(a, row, s->before.mass + s->in_bin.mass, search);
        }
    }
    block_barrier();
    return is_next;
}

// The same, and after top-k the first step of top-p.
TTC_DEVICE void proceed(const FilteredSampleArgs& a, const Row& row, bool is_coarse) {
    if (!narrow(a, row, is_coarse)) return;
    load_bins(row.work->coarse);
    narrow(a, row, true);
}

}  // namespace
}  // namespace gpu
}  // namespace ttc
