// The passes over a row of logits that every instruction set's build offers to `sample` (sample_cpu.cpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ttc {

enum class Isa;
class Scratch;

// Rows of logits, from each of which one token is drawn; ttc_kernels/sample/api.py says what may be passed.
struct SampleArgs {
    const float* logits;
    int64_t row_stride, num_rows, vocab;
    const uint64_t* keys;
    const int32_t* positions;
    const float* temperature;
    const int32_t* top_k;
    const float *top_p, *min_p;
    int32_t* tokens;
    float* logprobs;
};

// Throws std::invalid_argument for the first value out of range.
void check_sampling(const SampleArgs& args);

// Draws the token of one row, for callers with threads of their own.
void sample_row(const SampleArgs& args, int64_t row, Isa isa, Scratch* scratch);

// One row of logits. The filters keep the tokens whose logit is above `cut`, and of those at `cut` the first ones, up
// to token `last_tie`.
struct Row {
    const float* logits;  // (num)
    int64_t num;
    float top;   // the highest logit
    float rate;  // 1 / temperature, finite
    bool is_filtered;
    float cut;
    int32_t last_tie;
};

// For top-p a row's probability mass is gathered in bins of (logit - top) * rate, the last one open to the left.
constexpr int kNumBins = 512, kBinsPerUnit = 16;

struct SampleKernels {
    // The highest logit; *is_bad where the row holds NaN or +Inf, or nothing but -Inf.
    float (*row_max)(const float* x, int64_t num, bool* is_bad);
    // Sum of exp((logit - top) * rate).
    double (*sum_exp)(const Row& row);
    int64_t (*first_equal)(const float* x, int64_t num, float value);
    // Writes rank keys of the tokens with x > above, from *next on, until the row or the room ends; returns how many.
    // The room must be 64 keys larger than the number wanted.
    int64_t (*collect)(const float* x, int64_t num, int64_t* next, float above, uint64_t* keys, int64_t capacity);
    // Adds exp((logit - top) * rate) of every logit >= least, and of some below it, to its bin.
    void (*add_to_bins)(const Row& row, float least, double* bins);
    // Writes the rank keys of a bin's tokens; returns how many.
    int64_t (*collect_bin)(const Row& row, float least, int32_t bin, uint64_t* keys);
    // The token with the highest perturbed logit. For an unfiltered row it also sets *row_sum to what sum_exp returns.
    int64_t (*draw)(const Row& row, uint64_t key, uint32_t position, double* row_sum);
    // The noise of tokens 0 .. num - 1.
    void (*noise)(uint64_t key, uint32_t position, float* out, int64_t num);
};

// Orders tokens as the filters do: a higher logit first, among equals the lower index first (the larger key comes
// first). -0 counts as 0. Unnamed namespace: code built for one
// instruction set must not be linked into another's.
namespace {

inline uint64_t rank_key(float x, int64_t token) {
    x += 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits ^= (bits >> 31) ? 0xffffffffu : 0x80000000u;
    return ((uint64_t)bits << 32) | (uint32_t)~(uint32_t)token;
}

inline float key_logit(uint64_t key) {
    uint32_t bits = (uint32_t)(key >> 32);
    bits ^= (bits >> 31) ? 0x80000000u : 0xffffffffu;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline int32_t key_token(uint64_t key) { return (int32_t)~(uint32_t)key; }

// The largest float at or below x, the smallest at or above it.
inline float round_down(double x) {
    float f = (float)x;
    return (double)f > x ? nextafterf(f, -__builtin_inff()) : f;
}

inline float round_up(double x) {
    float f = (float)x;
    return (double)f < x ? nextafterf(f, __builtin_inff()) : f;
}

}  // namespace
}  // namespace ttc
