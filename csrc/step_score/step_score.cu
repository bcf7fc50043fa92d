// step_score on a GPU: final RMSNorm, head, score and fold into the running aggregates in one launch, for the rows
// whose step mask is set; the ops are defined in ttc_kernels/{rms_norm,step_score}/reference.py.
//
// A block of threads for each score. The block of a slot's first score goes on to its later ones, so that they are
// folded in order; the blocks of these find an earlier one with their slot and have nothing to do.
#include "cuda/launch.h"

namespace ttc {
namespace gpu {

// What Python passes, field for field (ttc_kernels/step_score/cuda.py), and what the kernel gets.
struct StepScoreArgs {
    const void* hidden;  // (num_hidden_rows, size), rows hidden_stride elements apart
    int64_t hidden_stride;
    const int32_t* rows;  // (n) or null: score i is that of row i
    const uint8_t* mask;  // (n) or null: all are scored
    const void* norm_weight;  // (size) or null: hidden is normed already
    float eps;
    const void* weight;  // (num_labels, size)
    const void* bias;    // (num_labels) or null
    int64_t size, num_labels, good_index;
    float* state;         // (num_slots, 4): last, min, product, mean; null, as counts and slot are: nothing is folded
    int32_t* counts;      // (num_slots)
    int64_t num_slots;
    const int32_t* slot;  // (n)
    float* scores;        // (n), NaN where the mask is not set or a slot is out of range
    int64_t n, num_hidden_rows;
    int64_t type;         // of hidden, the head and the norm: 0 float32, 1 float16, 2 bfloat16
};

namespace {

constexpr int kScoreThreads = 128, kScoreWarps = kScoreThreads / 32;
constexpr int kNobody = 0x7fffffff;

// Sum over the block, the same in all threads; the order of additions is fixed.
TTC_DEVICE float block_sum(float x) {
    float* parts = (float*)shared_memory();
    x = warp_sum(x);
    block_barrier();  // the last call's parts have been read
    if (thread_index() % 32 == 0) parts[thread_index() / 32] = x;
    block_barrier();
    float sum = 0.0f;
    for (int w = 0; w < kScoreWarps; ++w) sum += parts[w];
    return sum;
}

TTC_DEVICE int block_min(int x) {
    int* parts = (int*)shared_memory();
    x = warp_min(x);
    block_barrier();
    if (thread_index() % 32 == 0) parts[thread_index() / 32] = x;
    block_barrier();
    int least = parts[0];
    for (int w = 1; w < kScoreWarps; ++w) least = parts[w] < least ? parts[w] : least;
    return least;
}

TTC_DEVICE bool is_scored(const StepScoreArgs& a, int64_t i) { return !a.mask || a.mask[i]; }

// The first score within [lo, hi) that goes to `slot`; kNobody where there is none. All threads get it.
TTC_DEVICE int first_of_slot(const StepScoreArgs& a, int slot, int64_t lo, int64_t hi) {
    for (int64_t begin = lo; begin < hi; begin += kScoreThreads) {
        const int64_t i = begin + thread_index();
        const int found = block_min(i < hi && a.slot[i] == slot && is_scored(a, i) ? (int)i : kNobody);
        if (found != kNobody) return found;
    }
    return kNobody;
}

// The row as the head sees it. Rounds where the plain ops do: the normed value, then its product with the weight.
template <typename T>
TTC_DEVICE float normed(const StepScoreArgs& a, const T* row, float rate, int64_t i) {
    if (!a.norm_weight) return to_float(row[i]);
    const T x = from_float<T>(to_float(row[i]) * rate);
    return to_float(from_float<T>(to_float(((const T*)a.norm_weight)[i]) * to_float(x)));
}

template <typename T>
TTC_DEVICE float logit(const StepScoreArgs& a, const T* row, float rate, int64_t label) {
    const T* weight = (const T*)a.weight + label * a.size;
    float sum = 0.0f;
    for (int64_t i = thread_index(); i < a.size; i += kScoreThreads)
        sum += normed(a, row, rate, i) * to_float(weight[i]);
    sum = block_sum(sum);
    return a.bias ? sum + to_float(((const T*)a.bias)[label]) : sum;
}

// Sigmoid of the one logit, or the softmax's share of good_index as 1 / sum of exp(other - good).
template <typename T>
TTC_DEVICE float score_of(const StepScoreArgs& a, const T* row) {
    float rate = 1.0f;
    if (a.norm_weight) {
        float squares = 0.0f;
        for (int64_t i = thread_index(); i < a.size; i += kScoreThreads)
            squares += to_float(row[i]) * to_float(row[i]);
        rate = 1.0f / sqrtf(block_sum(squares) / (float)a.size + a.eps);
    }
    const float good = logit(a, row, rate, a.num_labels == 1 ? 0 : a.good_index);
    if (a.num_labels == 1) return 1.0f / (1.0f + expf(-good));
    float total = 0.0f;
    for (int64_t label = 0; label < a.num_labels; ++label)
        total += expf((label == a.good_index ? good : logit(a, row, rate, label)) - good);
    return 1.0f / total;
}

// The float operations of `fold` in reference.py.
TTC_DEVICE void fold(float* state, int32_t* count, float score) {
    if (*count == 0) {
        state[0] = state[1] = state[2] = state[3] = score;
    } else {
        state[0] = score;
        state[1] = score < state[1] || score != score ? score : state[1];
        state[2] *= score;
        state[3] += (score - state[3]) / (float)(*count + 1);
    }
    ++*count;
}

template <typename T>
TTC_KERNEL(kScoreThreads) step_score(StepScoreArgs a) {
    await_earlier_kernels();
    const int64_t own = block_index();
    const int slot = a.slot ? a.slot[own] : 0;
    if (!is_scored(a, own) || (a.slot && (slot < 0 || slot >= a.num_slots))) {
        if (thread_index() == 0) a.scores[own] = __builtin_nanf("");
        return;
    }
    if (a.slot && first_of_slot(a, slot, 0, own) != kNobody) return;
    for (int64_t i = own; i != kNobody; i = a.slot ? first_of_slot(a, slot, i + 1, a.n) : kNobody) {
        const int64_t row = a.rows ? a.rows[i] : i;
        // Indices on the device cannot be checked before the launch: a wrong one scores NaN and reads nothing.
        const bool is_row = row >= 0 && row < a.num_hidden_rows;
        const float score =
            is_row ? score_of(a, (const T*)a.hidden + row * a.hidden_stride) : __builtin_nanf("");
        if (thread_index() == 0) {
            a.scores[i] = score;
            if (a.slot) fold(a.state + 4 * slot, a.counts + slot, score);
        }
    }
}

}  // namespace
}  // namespace gpu
}  // namespace ttc

TTC_EXPORT const char* ttc_step_score(int64_t device, int64_t stream, const ttc::gpu::StepScoreArgs* args) {
    using namespace ttc::gpu;
    const DeviceGuard guard(device);
    if (guard.error()) return guard.error();
    if (args->n > kNobody) return "cudaErrorInvalidValue";
    const Grid grid = {args->n, kScoreThreads, kScoreWarps * 4};
    return args->type == 0   ? launch(step_score<float>, grid, false, stream, *args)
           : args->type == 1 ? launch(step_score<Half>, grid, false, stream, *args)
                             : launch(step_score<Bf16>, grid, false, stream, *args);
}
