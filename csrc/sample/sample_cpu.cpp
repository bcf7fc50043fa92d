// sample on a CPU: the filters, the portable build, the choice of an instruction set, threads over rows, the binding.
//
// Tokens are ranked by descending logit, ties by index. Every filter keeps a prefix of that ranking, so all of them
// together amount to one rank key: that of the last token kept. Finding it needs no sort and no mask.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>

#include "common/cpu.h"
#include "common/scratch.h"
#include "common/views.h"
#include "sample/sample.h"

#define TTC_VEC portable
#define TTC_VEC_WIDTH 4
#include "sample/sample_kernel.h"

namespace ttc {
#if TTC_X86
namespace avx2 {
extern const SampleKernels sample_kernels;
}
namespace avx512 {
extern const SampleKernels sample_kernels;
}
#endif

namespace {

constexpr int64_t kMinParallelTokens = 1 << 15;  // below, waking a second thread costs more than it saves
constexpr int64_t kRoom = 64;                    // keys of room that SampleKernels::collect needs beyond those wanted

const SampleKernels& kernels_for(Isa isa) {
#if TTC_X86
    if (isa == Isa::Avx512) return avx512::sample_kernels;
    if (isa == Isa::Avx2) return avx2::sample_kernels;
#endif
    (void)isa;
    return portable::sample_kernels;
}

struct Weighted {
    uint64_t key;
    double weight;
};

// The k first rank keys of the row, in any order, in `keys` (room: 2 k + kRoom). Fewer where fewer are above -Inf.
int64_t top_keys(const SampleKernels& kernels, const Row& row, int64_t k, uint64_t* keys) {
    int64_t next = 0, count = 0;
    float above = -__builtin_inff();
    while (next < row.num) {
        count += kernels.collect(row.logits, row.num, &next, above, keys + count, 2 * k + kRoom - count);
        if (count <= k) continue;
        std::nth_element(keys, keys + k - 1, keys + count, std::greater<uint64_t>());
        count = k;
        above = key_logit(keys[k - 1]);  // of a later token with the same logit the earlier one is better
    }
    return count;
}

// The rank key at which the weights, summed in rank order, reach `target`; the last one where they never do.
uint64_t key_at_mass(Weighted* tokens, int64_t count, double target) {
    auto before = [](const Weighted& a, const Weighted& b) { return a.key > b.key; };
    int64_t low = 0, high = count;
    double mass = 0;  // of the tokens before `low`
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        std::nth_element(tokens + low, tokens + middle, tokens + high, before);
        double half = 0;
        for (int64_t i = low; i < middle; ++i) half += tokens[i].weight;
        if (mass + half >= target) {
            high = middle;
        } else {
            mass += half;
            low = middle;
        }
    }
    return tokens[low].key;
}

// Gives each key its weight; their sum.
double weigh(const Row& row, const uint64_t* keys, int64_t count, Weighted* tokens) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) {
        tokens[i] = {keys[i], std::exp(((double)key_logit(keys[i]) - (double)row.top) * (double)row.rate)};
        total += tokens[i].weight;
    }
    return total;
}

// The last token that top-p keeps of the whole row. Only the bin in which the mass is reached is looked at closely.
uint64_t top_p_key(const SampleKernels& kernels, const Row& row, double top_p, double row_sum, uint64_t* keys,
                   Weighted* tokens) {
    // Tokens below this hold less than 1 - top_p together, however many they are.
    const double z = std::log((1 - top_p) * row_sum / (double)row.num) - 1e-3;
    const float least = round_down((double)row.top + z / (double)row.rate);
    double bins[kNumBins] = {}, mass = 0;
    kernels.add_to_bins(row, least, bins);
    int bin = 0, last = kNumBins - 1;
    while (last > 0 && bins[last] == 0) --last;
    for (; bin < last && mass + bins[bin] < top_p * row_sum; ++bin) mass += bins[bin];
    const int64_t count = kernels.collect_bin(row, least, bin, keys);
    weigh(row, keys, count, tokens);
    return key_at_mass(tokens, count, top_p * row_sum - mass);
}

// Sets the row's cut from its filters.
void filter(const SampleKernels& kernels, Row* row, int64_t top_k, float top_p, float min_p, double row_sum,
            Scratch* scratch) {
    const bool has_top_k = top_k > 0 && top_k < row->num, has_top_p = top_p < 1;
    // Few tokens are ranked at once; bins pay for many.
    const bool is_ranked = has_top_k || (has_top_p && row->num <= kNumBins);
    if (!has_top_k) top_k = row->num;
    const int64_t max_keys = is_ranked ? 2 * top_k + kRoom : has_top_p ? row->num + kRoom : 0;
    uint64_t* keys = (uint64_t*)scratch->take((size_t)max_keys * (sizeof(uint64_t) + sizeof(Weighted)));
    Weighted* tokens = (Weighted*)(keys + max_keys);
    uint64_t last = 0;
    if (is_ranked) {
        const int64_t count = top_keys(kernels, *row, top_k, keys);
        last = has_top_p ? key_at_mass(tokens, count, top_p * weigh(*row, keys, count, tokens))
                         : *std::min_element(keys, keys + count);
    } else if (has_top_p) {
        last = top_p_key(kernels, *row, top_p, row_sum, keys, tokens);
    }
    if (min_p > 0) {
        const double least = (double)row->top + std::log((double)min_p) / (double)row->rate;
        last = std::max(last, rank_key(round_up(least), INT32_MAX));
    }
    if (last == 0) return;  // a top-k of the whole vocabulary or more, and nothing else
    row->is_filtered = true;
    row->cut = key_logit(last);
    row->last_tie = key_token(last);
}

void sample_row(const SampleKernels& kernels, const SampleArgs& a, int64_t i, Scratch* scratch) {
    const bool is_greedy = a.temperature[i] == 0;
    const double rate = is_greedy ? 1.0 : 1.0 / (double)a.temperature[i];
    Row row = {a.logits + i * a.row_stride, a.vocab, 0, (float)std::min(rate, (double)FLT_MAX), false, 0, 0};
    bool is_bad = false;
    row.top = kernels.row_max(row.logits, row.num, &is_bad);
    a.tokens[i] = -1;
    a.logprobs[i] = __builtin_nanf("");
    if (is_bad) return;
    double row_sum = 0;
    int64_t token;
    if (is_greedy) {
        row_sum = kernels.sum_exp(row);
        token = kernels.first_equal(row.logits, row.num, row.top);
    } else {
        if (a.top_k[i] > 0 || a.top_p[i] < 1 || a.min_p[i] > 0) {
            row_sum = kernels.sum_exp(row);
            filter(kernels, &row, a.top_k[i], a.top_p[i], a.min_p[i], row_sum, scratch);
        }
        token = kernels.draw(row, a.keys[i], (uint32_t)a.positions[i], &row_sum);
    }
    a.tokens[i] = (int32_t)token;
    a.logprobs[i] = (float)(((double)row.logits[token] - (double)row.top) * rate - std::log(row_sum));
}

[[noreturn]] void refuse(const char* name, int64_t row, double value, const char* must) {
    char number[32];
    std::snprintf(number, sizeof number, "%g", value);
    throw std::invalid_argument(std::string("sample: ") + name + "[" + std::to_string(row) + "] must be " + must +
                                ", got " + number);
}

}  // namespace

void check_sampling(const SampleArgs& a) {
    for (int64_t i = 0; i < a.num_rows; ++i) {
        if (!(a.temperature[i] >= 0 && a.temperature[i] < __builtin_inff()))
            refuse("temperature", i, a.temperature[i], "finite and >= 0");
        if (a.top_k[i] < 0) refuse("top_k", i, a.top_k[i], ">= 0");
        if (!(a.top_p[i] > 0 && a.top_p[i] <= 1)) refuse("top_p", i, a.top_p[i], "within (0, 1]");
        if (!(a.min_p[i] >= 0 && a.min_p[i] <= 1)) refuse("min_p", i, a.min_p[i], "within [0, 1]");
        if (a.positions[i] < 0) refuse("positions", i, a.positions[i], ">= 0");
    }
}

void sample_row(const SampleArgs& args, int64_t row, Isa isa, Scratch* scratch) {
    sample_row(kernels_for(isa), args, row, scratch);
}

namespace {

void sample(const TensorView& logits, Elements<const uint64_t> keys, Elements<const int32_t> positions,
            Elements<const float> temperature, Elements<const int32_t> top_k, Elements<const float> top_p,
            Elements<const float> min_p, Elements<int32_t> tokens, Elements<float> logprobs, const std::string& isa) {
    const SampleKernels& kernels = kernels_for(parse_isa(isa));
    const int64_t num_rows = logits.shape[0], vocab = logits.shape[1];
    const SampleArgs args = {(const float*)logits.data, logits.strides[0], num_rows, vocab, keys,   positions,
                             temperature,               top_k,             top_p,    min_p, tokens, logprobs};
    check_sampling(args);
#pragma omp parallel if (num_rows > 1 && num_rows * vocab >= kMinParallelTokens)
    {
        Scratch scratch;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num_rows; ++i) sample_row(kernels, args, i, &scratch);
    }
}

void sample_noise(uint64_t key, int32_t position, uintptr_t out, int64_t num, const std::string& isa) {
    kernels_for(parse_isa(isa)).noise(key, (uint32_t)position, (float*)out, num);
}

}  // namespace
}  // namespace ttc

void bind_sample(pybind11::module_& m) {
    namespace py = pybind11;
    m.def("sample", &ttc::sample, py::arg("logits"), py::arg("keys"), py::arg("positions"), py::arg("temperature"),
          py::arg("top_k"), py::arg("top_p"), py::arg("min_p"), py::arg("tokens"), py::arg("logprobs"),
          py::arg("isa") = "auto", py::call_guard<py::gil_scoped_release>(),
          "See ttc_kernels/sample/api.py, which checks what it passes.");
    m.def("sample_noise", &ttc::sample_noise, py::arg("key"), py::arg("position"), py::arg("out"), py::arg("num"),
          py::arg("isa") = "auto", "The noise that `sample` adds to tokens 0 .. num - 1: float32 at `out`.");
}
