// Sampling fused with the LM head: tokens from hidden states, in two launches, without the logits ever being stored.
// The draw is that of ttc_kernels/sample/reference.py without filters, over logits = hidden @ weight^T in float32.
//
// Launch 1: a block takes 64 rows and 128 tokens. Its product goes through shared memory, where two threads take
// each row: its highest logit, the sum of exp((logit - highest) / T), and the token that wins. The argmax of
// z + Gumbel noise is the argmin of -log(u) / exp(z), a race of exponential clocks: -log(u) is at least 1 - u, so
// most tokens are out before any logarithm. Launch 2: a warp merges a row's tiles, and looks the token up in the
// tables that say where steps and texts end.
#include "cuda/launch.h"
#include "cuda/philox.h"
#include "cuda/tile.h"

namespace ttc {
namespace gpu {

// What Python passes, field for field (ttc_kernels/sample/cuda.py), and what both kernels get.
struct SampleHeadArgs {
    const void* hidden;  // (rows, size), rows hidden_stride elements apart
    const void* weight;  // (vocab, size), rows weight_stride elements apart
    int64_t hidden_stride, weight_stride, num_rows, size, vocab, num_tiles;
    const uint64_t* keys;      // (rows)
    const int32_t* positions;  // (rows)
    const float* temperature;  // (rows)
    // What launch 1 leaves for each row and tile: (4, rows, num_tiles) highest logit, sum, noised value of the winner
    // relative to the highest logit, its logit; and the winner's token.
    float* parts;
    int32_t* part_tokens;
    int32_t* tokens;         // (rows)
    float* logprobs;         // (rows)
    const uint8_t* ends;     // (num_rules, vocab + 1): whether a step ends after a token; the last is for token -1
    const int32_t* rule;     // (rows)
    const uint8_t* is_eos;   // (vocab + 1)
    uint8_t* flags;          // (rows): 1 the step ends, 2 the text ends; null, as the tables are, where none are wanted
    int64_t is_bf16;         // else float16
};

namespace {

constexpr int kThreads = 128, kStages = 3;
constexpr int kRows = 64, kTokens = 128, kDepth = 64;  // of a block's product, and how much of `size` in a stage
constexpr int kChunks = kDepth / 8;
constexpr int kStageBytes = (kRows + kTokens) * kDepth * 2;
constexpr int kPitch = kTokens + 8;  // floats from row to row of the product: pairs of eight rows in different banks
constexpr int kSharedBytes = kStages * kStageBytes;
static_assert(kRows * kPitch * 4 <= kSharedBytes, "the product reuses the ring");
constexpr float kMaxRate = 3.402823466e38f;
constexpr int kNoToken = 0x7fffffff;

TTC_DEVICE float rate_of(float temperature) {
    if (temperature == 0.0f) return 1.0f;
    const float rate = 1.0f / temperature;
    return rate < kMaxRate ? rate : kMaxRate;
}

// Starts the copy of depth [from, from + 64) of the block's rows and tokens; zeros where there is none.
TTC_DEVICE void copy_stage(const SampleHeadArgs& a, char* stage, int64_t row_lo, int64_t token_lo, int64_t from) {
    for (int i = thread_index(); i < (kRows + kTokens) * kChunks; i += kThreads) {
        const int at = i / kChunks, chunk = i % kChunks;
        const bool is_row = at < kRows;
        const int64_t index = is_row ? row_lo + at : token_lo + (at - kRows);
        const bool is_there = index < (is_row ? a.num_rows : a.vocab) && from + chunk * 8 < a.size;
        const uint16_t* data = (const uint16_t*)(is_row ? a.hidden : a.weight);
        const int64_t offset = index * (is_row ? a.hidden_stride : a.weight_stride) + from + chunk * 8;
        copy_async(chunk_at<kChunks>(stage, at, chunk), data + (is_there ? offset : 0), is_there);
    }
}

// The product of the block's rows and tokens, (64, kPitch) float32, over the ring. Each warp has 32 tokens.
template <typename T>
TTC_DEVICE float* multiply(const SampleHeadArgs& a, int64_t row_lo, int64_t token_lo) {
    char* const ring = shared_memory();
    const int lane = thread_index() % 32, warp = thread_index() / 32;
    const int num_steps = (int)((a.size + kDepth - 1) / kDepth);
    float sum[kRows / 16][4][4];
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m)
        for (int n = 0; n < 4; ++n)
            for (int e = 0; e < 4; ++e) sum[m][n][e] = 0.0f;
    for (int i = 0; i < kStages - 1; ++i) {
        if (i < num_steps) copy_stage(a, ring + i * kStageBytes, row_lo, token_lo, (int64_t)i * kDepth);
        copy_commit();
    }
    for (int i = 0; i < num_steps; ++i) {
        copy_wait<kStages - 2>();  // this thread's part of step i is there
        block_barrier();           // everyone's is, and everyone is done with step i - 1
        const int next = i + kStages - 1;
        if (next < num_steps)
            copy_stage(a, ring + next % kStages * kStageBytes, row_lo, token_lo, (int64_t)next * kDepth);
        copy_commit();
        char* const stage = ring + i % kStages * kStageBytes;
#pragma unroll
        for (int d = 0; d < kDepth / 16; ++d) {
            uint32_t left[kRows / 16][4];
#pragma unroll
            for (int m = 0; m < kRows / 16; ++m) load_matrices(left[m], rows_at<kChunks>(stage, 16 * m, 2 * d, lane));
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                uint32_t right[4];
                load_matrices(right, columns_at<kChunks>(stage, kRows + 32 * warp + 16 * n, 2 * d, lane));
#pragma unroll
                for (int m = 0; m < kRows / 16; ++m) {
                    multiply_add<T>(sum[m][2 * n], left[m], right[0], right[1]);
                    multiply_add<T>(sum[m][2 * n + 1], left[m], right[2], right[3]);
                }
            }
        }
    }
    block_barrier();  // all warps are done with the ring
    float* const product = (float*)ring;
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                product[(16 * m + lane / 4 + e / 2 * 8) * kPitch + 32 * warp + 8 * n + 2 * (lane % 4) + e % 2] =
                    sum[m][n][e];
    block_barrier();
    return product;
}

// What a thread, and then its pair, knows of a row's tile.
struct Winner {
    float time;  // of its clock, at the tile's highest logit; of a greedy row 0
    int token;
    float logit;
};

TTC_DEVICE bool is_better(float time, int token, const Winner& than) {
    return time < than.time || (time == than.time && token < than.token);
}

TTC_DEVICE void sample_tile(const SampleHeadArgs& a, const float* product, int64_t row_lo, int64_t tile) {
    const int half = thread_index() % 2;  // takes every other group of four tokens
    const int64_t row = row_lo + thread_index() / 2, token_lo = tile * kTokens;
    const float* const logits = product + thread_index() / 2 * kPitch;
    const int64_t num_left = a.vocab - token_lo;
    const int num = num_left < kTokens ? (int)num_left : kTokens;
    const bool is_row = row < a.num_rows;  // others follow along, for the exchanges
    const float temperature = is_row ? a.temperature[row] : 1.0f;
    const bool is_greedy = temperature == 0.0f;
    float top = -kInfinity;
    bool is_nan = false;
    for (int t = 4 * half; t < num; t += 8)
        for (int i = 0; i < 4 && t + i < num; ++i) {
            top = fmaxf(top, logits[t + i]);
            is_nan |= logits[t + i] != logits[t + i];
        }
    top = fmaxf(top, shuffle_xor(top, 1));
    is_nan |= shuffle_xor(is_nan ? 1 : 0, 1) != 0;
    const float rate = rate_of(temperature) * kLog2e;  // may be +inf: 0 * inf is never formed below
    const uint64_t key = is_row ? a.keys[row] : 0;
    const uint32_t position = is_row ? (uint32_t)a.positions[row] : 0;
    Winner best = {kInfinity, kNoToken, -kInfinity};
    float sum = 0.0f;
    for (int t = 4 * half; t < num && top > -kInfinity; t += 8) {
        uint32_t words[4];
        if (!is_greedy) philox(key, position, (uint32_t)((token_lo + t) / 4), words);
        for (int i = 0; i < 4 && t + i < num; ++i) {
            const float x = logits[t + i];
            const float weight = x == top ? 1.0f : exp2_fast((x - top) * rate);
            sum += weight;
            float time = kInfinity;
            if (is_greedy)
                time = x == top ? 0.0f : kInfinity;
            else if (complement(words[i]) < weight * best.time)
                time = exponential(words[i]) / weight;
            if (time < best.time) best = {time, (int)token_lo + t + i, x};
        }
    }
    sum += shuffle_xor(sum, 1);
    const Winner other = {shuffle_xor(best.time, 1), shuffle_xor(best.token, 1), shuffle_xor(best.logit, 1)};
    if (is_better(other.time, other.token, best)) best = other;
    if (half == 1 || !is_row) return;
    const int64_t at = row * a.num_tiles + tile, stride = a.num_rows * a.num_tiles;
    a.parts[at] = is_nan ? kInfinity : top;  // either is a bad row
    a.parts[stride + at] = sum;
    a.parts[2 * stride + at] = is_greedy ? 0.0f : -logf(best.time);
    a.parts[3 * stride + at] = best.logit;
    a.part_tokens[at] = best.token;
}

template <typename T>
TTC_KERNEL(kThreads) sample_head_parts(SampleHeadArgs a) {
    await_earlier_kernels();
    const int64_t row_tiles = (a.num_rows + kRows - 1) / kRows;
    // Row tiles of one stretch of the vocabulary lie side by side: they read the same weights.
    const int64_t row_lo = block_index() % row_tiles * kRows, tile = block_index() / row_tiles;
    sample_tile(a, multiply<T>(a, row_lo, tile * kTokens), row_lo, tile);
}

TTC_KERNEL(kThreads) sample_head_merge(SampleHeadArgs a) {
    await_earlier_kernels();
    const int lane = thread_index() % 32;
    const int64_t row = (int64_t)block_index() * (kThreads / 32) + thread_index() / 32;
    if (row >= a.num_rows) return;
    const int64_t stride = a.num_rows * a.num_tiles, lo = row * a.num_tiles;
    float top = -kInfinity;
    for (int64_t i = lane; i < a.num_tiles; i += 32) top = fmaxf(top, a.parts[lo + i]);
    top = warp_max(top);
    const bool is_bad = top == kInfinity || top == -kInfinity;
    const float rate = rate_of(a.temperature[row]);
    float sum = 0.0f, value = -kInfinity, logit = -kInfinity;
    int token = kNoToken;
    for (int64_t i = lane; i < a.num_tiles && !is_bad; i += 32) {
        const float part_top = a.parts[lo + i];
        if (part_top == -kInfinity) continue;
        const float z = part_top == top ? 0.0f : (part_top - top) * rate;
        sum += a.parts[stride + lo + i] * exp2_fast(z * kLog2e);
        const float part_value = z + a.parts[2 * stride + lo + i];
        if (part_value > value || (part_value == value && a.part_tokens[lo + i] < token)) {
            value = part_value;
            token = a.part_tokens[lo + i];
            logit = a.parts[3 * stride + lo + i];
        }
    }
    sum = warp_sum(sum);
    for (int mask = 16; mask > 0; mask /= 2) {
        const float other_value = shuffle_xor(value, mask), other_logit = shuffle_xor(logit, mask);
        const int other_token = shuffle_xor(token, mask);
        if (other_value > value || (other_value == value && other_token < token)) {
            value = other_value;
            token = other_token;
            logit = other_logit;
        }
    }
    if (lane != 0) return;
    token = is_bad ? -1 : token;
    a.tokens[row] = token;
    a.logprobs[row] = is_bad ? __builtin_nanf("") : (logit == top ? 0.0f : (logit - top) * rate) - logf(sum);
    if (a.flags) {
        const int64_t at = is_bad ? a.vocab : token;
        const int ends = a.ends[a.rule[row] * (a.vocab + 1) + at] ? 1 : 0;
        a.flags[row] = (uint8_t)(ends | (a.is_eos[at] ? 2 : 0));
    }
}

}  // namespace
}  // namespace gpu
}  // namespace ttc

TTC_EXPORT const char* ttc_sample_head(int64_t device, int64_t stream, const ttc::gpu::SampleHeadArgs* args) {
    using namespace ttc::gpu;
    const DeviceGuard guard(device);
    if (guard.error()) return guard.error();
    if (args->num_tiles != (args->vocab + kTokens - 1) / kTokens) return "cudaErrorInvalidValue";
    const int64_t row_tiles = (args->num_rows + kRows - 1) / kRows;
    const Grid grid = {row_tiles * args->num_tiles, kThreads, kSharedBytes};
    const char* error = args->is_bf16 ? launch(sample_head_parts<Bf16>, grid, false, stream, *args)
                                      : launch(sample_head_parts<Half>, grid, false, stream, *args);
    if (error) return error;
    return launch(sample_head_merge, {(args->num_rows + 3) / 4, kThreads, 0}, false, stream, *args);
}
