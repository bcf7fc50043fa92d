// The trunk of a model in one call, and a packed linear layer: threads over strips of rows.
#include "packed.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace ttc {
namespace {

// Below this many multiply-adds between two attentions a second thread costs more than it saves.
constexpr int64_t kParallelWork = 1000 * 1000;
// A strip's operands should stay in a core's first-level cache while the weights of a layer come from the second; but
// where a layer's weights do not fit there, a strip has enough rows for reading them to be no bottleneck.
constexpr int64_t kStripRows = kMaxBlockRows;
constexpr int64_t kLongStripRows = 8 * kMaxBlockRows;
constexpr int64_t kCachedLayerBytes = 512 * 1024;

// A strip's keys and values are fetched ahead of its attention where they leave room for a layer's weights in the
// second-level cache.
constexpr int64_t kFetchedBytes = 384 * 1024;
constexpr int kMaxLinesPerStep = 2;

int threads_for(int64_t work) {
#ifdef _OPENMP
    if (work >= kParallelWork && !omp_in_parallel()) return omp_get_max_threads();
#endif
    (void)work;
    return 1;
}

// This thread's scratch; null when there is no memory, as nothing may be thrown out of a parallel region.
void* take_scratch(size_t bytes) noexcept {
    thread_local Scratch scratch;
    try {
        return scratch.take(bytes);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void check(const char* what, int64_t value, int64_t row, int64_t lowest, int64_t end) {
    if (value >= lowest && value < end) return;
    throw std::invalid_argument("decoder: " + std::string(what) + " " + std::to_string(value) + " of row " +
                                std::to_string(row) + " is outside " + std::to_string(lowest) + ".." +
                                std::to_string(end - 1));
}

}  // namespace

Strips::Strips(int64_t rows, int64_t size, int num_threads) : rows(rows) {
    num = (rows + size - 1) / size;
    num = std::min(rows, (num + num_threads - 1) / num_threads * num_threads);
}

PackedDecoder::PackedDecoder(const Sizes& sizes, int num_layers, const DecoderPointers& pointers, bool is_bf16,
                             const std::string& isa)
    : sizes_(sizes),
      path_(path_for(isa, is_bf16)),
      is_bf16_(is_bf16),
      embedding_(pointers.embedding),
      cos_(pointers.cos),
      sin_(pointers.sin),
      final_norm_(pack_norm(pointers.final_norm, is_bf16, sizes.hidden)) {
    const int head_dim = sizes.head_dim;
    if (head_dim < 2 || head_dim % 2 || head_dim > kMaxDecoderHeadDim || sizes.num_kv_heads < 1 ||
        sizes.num_heads % sizes.num_kv_heads)
        throw std::invalid_argument("decoder: num_heads " + std::to_string(sizes.num_heads) + ", num_kv_heads " +
                                    std::to_string(sizes.num_kv_heads) + ", head_dim " + std::to_string(head_dim));
    for (int i = 0; i < num_layers; ++i) add_layer();
    for (const OwnedLayer& layer : owned_)
        layers_.push_back({static_cast<const float*>(layer.input_norm.get()),
                           static_cast<const float*>(layer.post_norm.get()), layer.qkv.matrix, layer.out.matrix,
                           layer.gate_up.matrix, layer.down.matrix});
    layer_weights_ = sizes.hidden * (2 * q_out() + 2 * kv_out() + 3 * sizes.intermediate);
    strip_rows_ = layer_weights_ * path_.kernels.element_bytes <= kCachedLayerBytes ? kStripRows : kLongStripRows;
}

void PackedDecoder::add_layer() {
    const int64_t hidden = sizes_.hidden, inter = sizes_.intermediate;
    const DecoderKernels& kernels = path_.kernels;
    const size_t norm_bytes = size_t(padded_width(hidden)) * sizeof(float);
    owned_.push_back({Aligned(norm_bytes), Aligned(norm_bytes),
                      empty_matrix(q_out() + 2 * kv_out(), hidden, kernels), empty_matrix(hidden, q_out(), kernels),
                      empty_gate_up(inter, hidden, kernels), empty_matrix(hidden, inter, kernels)});
}

void PackedDecoder::fill(int layer, int part, const void* rows, int64_t first, int64_t num) {
    if (layer < 0 || layer >= int(owned_.size()) || part < 0 || part >= kNumLayerParts)
        throw std::invalid_argument("decoder: no part " + std::to_string(part) + " of layer " + std::to_string(layer));
    OwnedLayer& owned = owned_[size_t(layer)];
    if (part == kInputNorm || part == kPostNorm) {
        if (first != 0 || num != sizes_.hidden) throw std::invalid_argument("decoder: a norm is filled at once");
        fill_norm(part == kInputNorm ? owned.input_norm : owned.post_norm, rows, is_bf16_, num);
        return;
    }
    OwnedMatrix* const parts[] = {nullptr, &owned.qkv, &owned.out, nullptr, &owned.gate_up, &owned.down};
    pack_rows(*parts[part], rows, is_bf16_, first, num, path_.kernels);
}

DecoderCall PackedDecoder::base_call(const Caches& caches) const {
    DecoderCall call{};
    call.num_layers = int(layers_.size());
    call.num_heads = sizes_.num_heads;
    call.num_kv_heads = sizes_.num_kv_heads;
    call.head_dim = sizes_.head_dim;
    call.block_size = caches.block_size;
    call.hidden = sizes_.hidden;
    call.intermediate = sizes_.intermediate;
    call.eps = sizes_.eps;
    call.layers = layers_.data();
    call.final_norm = static_cast<const float*>(final_norm_.get());
    call.embedding = embedding_;
    call.cos = cos_;
    call.sin = sin_;
    call.k = caches.k;
    call.v = caches.v;
    const std::vector<int64_t>&k = caches.k_strides, &v = caches.v_strides;
    call.k_layer = k[0], call.k_block = k[1], call.k_head = k[2], call.k_token = k[3], call.k_dim = k[4];
    call.v_layer = v[0], call.v_block = v[1], call.v_head = v[2], call.v_token = v[3];
    return call;
}

void PackedDecoder::check_rows(const DecoderCall& call, int64_t rows, const Caches& caches) const {
    for (int64_t r = 0; r < rows; ++r) {
        check("token", call.token_ids[r], r, 0, sizes_.vocabulary);
        check("position", call.positions[r], r, 0, sizes_.max_position);
        check("slot", call.slots[r], r, -1, caches.num_blocks * caches.block_size);
    }
}

AttentionCall PackedDecoder::attention_call(const DecoderCall& call, const ForwardRows& rows) const {
    AttentionCall attention{};
    attention.q = call.query;
    attention.out = call.attended;
    attention.q_row = q_out();
    attention.q_head = sizes_.head_dim;
    attention.k_block = call.k_block, attention.k_head = call.k_head, attention.k_dim = call.k_dim;
    attention.v_block = call.v_block, attention.v_head = call.v_head, attention.v_token = call.v_token;
    attention.items = rows.items;
    attention.blocks = rows.blocks;
    attention.num_heads = sizes_.num_heads;
    attention.group = sizes_.num_heads / sizes_.num_kv_heads;
    attention.head_dim = sizes_.head_dim;
    attention.block_size = call.block_size;
    attention.scale = 1.0f / std::sqrt(float(sizes_.head_dim));
    attention.is_bf16 = is_bf16_;
    return attention;
}

// The addresses of one layer's keys and values.
AttentionCall PackedDecoder::attention_of_layer(const Forward& forward, int layer) const {
    const int64_t element = is_bf16_ ? 2 : 4;
    AttentionCall attention = forward.attention;
    attention.k = static_cast<const char*>(forward.call.k) + layer * forward.call.k_layer * element;
    attention.v = static_cast<const char*>(forward.call.v) + layer * forward.call.v_layer * element;
    return attention;
}

size_t PackedDecoder::scratch_bytes() const {
    return stage_scratch_bytes(strip_rows_, sizes_.hidden, sizes_.intermediate, q_out(), kv_out());
}

// Everything but the schedule.
void PackedDecoder::prepare(const ForwardRows& rows, const Caches& caches, void* out, Forward& forward) const {
    DecoderCall& call = forward.call = base_call(caches);
    call.token_ids = rows.token_ids;
    call.positions = rows.positions;
    call.slots = rows.slots;
    call.out = out;
    check_rows(call, rows.num, caches);
    const int64_t element = is_bf16_ ? 2 : 4;
    const int64_t residual = rows.num * padded_width(sizes_.hidden) * 4;
    const int64_t heads = (rows.num * q_out() * element + 63) / 64 * 64;
    char* memory = static_cast<char*>(forward.buffers.take(size_t(residual + 2 * heads)));
    call.residual = reinterpret_cast<float*>(memory);
    call.query = memory + residual;
    call.attended = memory + residual + heads;
    forward.shape = {int(rows.num),     sizes_.num_heads,    sizes_.num_kv_heads, sizes_.head_dim,
                     caches.block_size, int(rows.num_items), caches.num_blocks,   rows.num_block_ids};
    forward.attention = attention_call(call, rows);
    forward.num_threads = threads_for(rows.num * layer_weights_);
    forward.strips = Strips(rows.num, strip_rows_, forward.num_threads);
}

void PackedDecoder::forward(const ForwardRows& rows, const Caches& caches, void* out) const {
    if (rows.num == 0) return;
    thread_local Forward kept;
    Forward& forward = kept;  // the region's threads must not see their own thread_local
    prepare(rows, caches, out, forward);
    make_schedule(rows.items, rows.blocks, forward.shape, threads_for(kParallelWork), forward.schedule);
    const int num_threads = std::max(forward.num_threads, forward.schedule.num_threads);
    std::atomic<bool> out_of_memory{false};
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    run_together(forward, out_of_memory);
    if (out_of_memory) throw std::bad_alloc();
}

// The work of each thread of the parallel region; the loops' ends are barriers.
void PackedDecoder::run_together(const Forward& forward, std::atomic<bool>& out_of_memory) const {
    const DecoderCall& call = forward.call;
    const Strips& strips = forward.strips;
    void* scratch = take_scratch(scratch_bytes());
    if (!scratch) out_of_memory = true;
    for (int stage = 0; stage <= call.num_layers; ++stage) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < strips.num; ++i)
            if (scratch) path_.kernels.stage(call, stage, strips.start(i), strips.start(i + 1), scratch, Ahead());
        if (stage == call.num_layers) break;
        const AttentionCall attention = attention_of_layer(forward, stage);
#pragma omp for schedule(dynamic, 1)
        for (int t = 0; t < forward.schedule.num_tasks; ++t)
            if (!run_schedule_task(attention, forward.schedule, t, path_.isa)) out_of_memory = true;
    }
}

// Every strip reads the weights of all layers for itself, which pays only as long as they are near; and one thread
// does all that a row needs.
bool PackedDecoder::is_better_apart(int64_t rows) const {
    return strip_rows_ == kStripRows && rows >= 2 * threads_for(kParallelWork);
}

void PackedDecoder::start_apart(const ForwardRows& rows, const Caches& caches, void* out, Forward& forward) const {
    prepare(rows, caches, out, forward);
    make_schedule(rows.items, rows.blocks, forward.shape, 1, forward.schedule, int(forward.strips.num));
}

bool PackedDecoder::run_apart(const Forward& forward, int64_t lo, int64_t hi) const noexcept {
    const DecoderCall& call = forward.call;
    void* scratch = take_scratch(scratch_bytes());
    if (!scratch) return false;
    thread_local std::vector<const char*> pieces;
    try {  // so that kv_of_strip finds its room
        pieces.reserve(2 * forward.schedule.lone_units.size());
    } catch (const std::bad_alloc&) {
        return false;
    }
    for (int stage = 0; stage <= call.num_layers; ++stage) {
        const bool has_attention = stage < call.num_layers;
        const AttentionCall attention = has_attention ? attention_of_layer(forward, stage) : AttentionCall{};
        for (int64_t i = lo; i < hi; ++i) {
            const Ahead ahead = has_attention ? kv_of_strip(forward, stage, i, pieces) : Ahead();
            path_.kernels.stage(call, stage, forward.strips.start(i), forward.strips.start(i + 1), scratch, ahead);
            if (has_attention && !run_schedule_task(attention, forward.schedule, int(i), path_.isa))
                return false;
        }
    }
    return true;
}

// The keys and values of a layer that only one row of the strip reads; others read the rest, which is in the cache
// already.
Ahead PackedDecoder::kv_of_strip(const Forward& forward, int layer, int64_t strip,
                                 std::vector<const char*>& pieces) const {
    const DecoderCall& call = forward.call;
    const AttentionSchedule& schedule = forward.schedule;
    const int64_t element = is_bf16_ ? 2 : 4, head_size = int64_t(call.head_dim) * call.block_size;
    const int64_t piece_bytes = call.num_kv_heads * head_size * element;
    const int32_t lone_lo = schedule.lone_start[size_t(strip)], lone_hi = schedule.lone_start[size_t(strip) + 1];
    const int units_per_block = call.block_size / kUnit;
    Ahead ahead;
    pieces.clear();
    if (call.k_head != head_size || call.v_head != head_size) return ahead;
    const char* k = static_cast<const char*>(call.k) + layer * call.k_layer * element;
    const char* v = static_cast<const char*>(call.v) + layer * call.v_layer * element;
    int64_t last = -1;
    for (int32_t i = lone_lo; i < lone_hi; ++i) {
        const int64_t block = schedule.lone_units[size_t(i)] / units_per_block;
        if (block == last) continue;
        last = block;
        pieces.push_back(k + block * call.k_block * element);
        pieces.push_back(v + block * call.v_block * element);
    }
    const int64_t num_lines = int64_t(pieces.size()) * piece_bytes / 64;
    if (pieces.empty() || num_lines * 64 > kFetchedBytes) return ahead;
    int64_t num_steps = 0;
    for (const PackedMatrix* m : {&layers_[size_t(layer)].qkv, &layers_[size_t(layer)].out,
                                  &layers_[size_t(layer)].gate_up, &layers_[size_t(layer)].down})
        num_steps += m->num_panels * m->num_steps;
    ahead.pieces = pieces.data();
    ahead.num_pieces = int64_t(pieces.size());
    ahead.piece_lines = piece_bytes / 64;
    ahead.per_step = int(std::min<int64_t>(kMaxLinesPerStep, (num_lines + num_steps - 1) / num_steps));
    return ahead;
}

PackedLinear::PackedLinear(int64_t num_out, int64_t num_in, bool is_bf16, const std::string& isa)
    : kernels_(path_for(isa, is_bf16).kernels), is_bf16_(is_bf16), packed_(empty_matrix(num_out, num_in, kernels_)) {}

void PackedLinear::fill(const void* rows, int64_t first, int64_t num) {
    pack_rows(packed_, rows, is_bf16_, first, num, kernels_);
}

void PackedLinear::forward(const void* x, int64_t x_stride, int64_t x_rows, const int64_t* chosen, int64_t rows,
                           float* out, int64_t out_stride) const {
    const PackedMatrix& m = packed_.matrix;
    const LinearCall call{x, x_stride, out_stride, chosen, &m, out};
    for (int64_t i = 0; chosen && i < rows; ++i)
        if (chosen[i] < 0 || chosen[i] >= x_rows)
            throw std::invalid_argument("packed_linear: row " + std::to_string(chosen[i]) + " at " +
                                        std::to_string(i) + " is outside 0.." + std::to_string(x_rows - 1));
    if (rows == 0) return;
    const int num_threads = threads_for(rows * m.num_in * m.num_out);
    const Strips strips(rows, kStripRows, num_threads);
    std::atomic<bool> out_of_memory{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads) if (num_threads > 1)
    for (int64_t i = 0; i < strips.num; ++i) {
        void* scratch = take_scratch(linear_scratch_bytes(kStripRows, m.num_in));
        if (scratch)
            kernels_.linear(call, strips.start(i), strips.start(i + 1), scratch);
        else
            out_of_memory = true;
    }
    if (out_of_memory) throw std::bad_alloc();
}

bool PackedLinear::run_rows(const void* x, int64_t lo, int64_t hi, float* out) const noexcept {
    const PackedMatrix& m = packed_.matrix;
    void* scratch = take_scratch(linear_scratch_bytes(kStripRows, m.num_in));
    if (!scratch) return false;
    const LinearCall call{x, m.num_in, m.num_out, nullptr, &m, out};
    for (; lo < hi; lo += kStripRows) kernels_.linear(call, lo, std::min(hi, lo + kStripRows), scratch);
    return true;
}

}  // namespace ttc
