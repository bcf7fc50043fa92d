// A trunk and a linear layer over packed weights, as the bindings and the decode loop use them.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "../common/cpu.h"
#include "../common/scratch.h"
#include "../tree_attention/tree_attention.h"
#include "packing.h"

namespace ttc {

// The paths of this op: those of the machine, and products of bf16 pairs where it has them.
std::vector<std::string> decoder_isas();

struct Path {
    const DecoderKernels& kernels;
    Isa isa;
};

// Throws std::invalid_argument for a path that this machine lacks.
Path path_for(const std::string& name, bool is_bf16);

struct Sizes {
    int num_heads, num_kv_heads, head_dim;
    int64_t hidden, intermediate, vocabulary, max_position;
    float eps;
};

// Where a model's weights are.
struct DecoderPointers {
    const void *embedding, *final_norm;
    const float *cos, *sin;
};

// The parts of a layer, in the order in which Python fills them.
enum LayerPart { kInputNorm, kQkv, kOut, kPostNorm, kGateUp, kDown, kNumLayerParts };

// The caches of all layers; strides in elements.
struct Caches {
    void *k, *v;
    std::vector<int64_t> k_strides;  // layer, block, head, token, dim
    std::vector<int64_t> v_strides;  // layer, block, head, token
    int64_t num_blocks;
    int block_size;
};

// The rows of a forward with their plan.
struct ForwardRows {
    int64_t num;
    const int32_t *token_ids, *positions, *slots;  // (num)
    const int32_t *items, *blocks;                 // (num_items, 5), (num_block_ids)
    int64_t num_items, num_block_ids;
};

// All rows, cut evenly into strips of at most `size`; as many for each thread.
struct Strips {
    int64_t rows, num;

    Strips(int64_t rows, int64_t size, int num_threads);
    int64_t start(int64_t i) const { return rows * i / num; }
};

// The state of one forward; the next one uses its memory again.
struct Forward {
    DecoderCall call;
    AttentionCall attention;  // of the first layer
    AttentionShape shape;
    AttentionSchedule schedule;
    Strips strips{1, 1, 1};
    int num_threads = 1;
    Scratch buffers;
};

class PackedDecoder {
  public:
    // Its layers are zeros until they are filled.
    PackedDecoder(const Sizes& sizes, int num_layers, const DecoderPointers& pointers, bool is_bf16,
                  const std::string& isa);

    // Rows first .. first + num - 1 of a part of a layer; a norm is filled at once.  Throws std::invalid_argument for
    // what is not there.
    void fill(int layer, int part, const void* rows, int64_t first, int64_t num);

    // out: (rows, hidden).  Throws std::invalid_argument for a row or a plan that is out of range.
    void forward(const ForwardRows& rows, const Caches& caches, void* out) const;

    // Whether `rows` single tokens of as many branches are better run by start_apart.
    bool is_better_apart(int64_t rows) const;
    // A forward in which no row attends to the new token of another one: every strip of rows goes through all
    // layers without waiting for others.  Whoever calls this calls run_apart for all strips, from any threads.
    void start_apart(const ForwardRows& rows, const Caches& caches, void* out, Forward& forward) const;
    // Strips [lo, hi).  False: out of memory.
    bool run_apart(const Forward& forward, int64_t lo, int64_t hi) const noexcept;

    int64_t hidden_size() const { return sizes_.hidden; }
    bool is_bf16() const { return is_bf16_; }
    Isa isa() const { return path_.isa; }

  private:
    struct OwnedLayer {
        Aligned input_norm, post_norm;
        OwnedMatrix qkv, out, gate_up, down;
    };

    int64_t q_out() const { return int64_t(sizes_.num_heads) * sizes_.head_dim; }
    int64_t kv_out() const { return int64_t(sizes_.num_kv_heads) * sizes_.head_dim; }
    size_t scratch_bytes() const;
    void add_layer();
    void prepare(const ForwardRows& rows, const Caches& caches, void* out, Forward& forward) const;
    DecoderCall base_call(const Caches& caches) const;
    void check_rows(const DecoderCall& call, int64_t rows, const Caches& caches) const;
    AttentionCall attention_call(const DecoderCall& call, const ForwardRows& rows) const;
    AttentionCall attention_of_layer(const Forward& forward, int layer) const;
    void run_together(const Forward& forward, std::atomic<bool>& out_of_memory) const;
    Ahead kv_of_strip(const Forward& forward, int layer, int64_t strip, std::vector<const char*>& pieces) const;

    Sizes sizes_;
    Path path_;
    bool is_bf16_;
    const void* embedding_;
    const float *cos_, *sin_;
    Aligned final_norm_;
    std::vector<OwnedLayer> owned_;
    std::vector<PackedLayer> layers_;
    int64_t layer_weights_ = 0, strip_rows_ = 0;
};

class PackedLinear {
  public:
    // Zeros until it is filled.
    PackedLinear(int64_t num_out, int64_t num_in, bool is_bf16, const std::string& isa);

    // Outputs first .. first + num - 1.
    void fill(const void* rows, int64_t first, int64_t num);

    // out (rows, num_out) float = chosen rows of x, or all of them.  Throws std::invalid_argument for one outside x.
    void forward(const void* x, int64_t x_stride, int64_t x_rows, const int64_t* chosen, int64_t rows, float* out,
                 int64_t out_stride) const;
    // Rows [lo, hi) of x (any, num_in), for callers with threads of their own.  False: out of memory.
    bool run_rows(const void* x, int64_t lo, int64_t hi, float* out) const noexcept;

    int64_t num_out() const { return packed_.matrix.num_out; }

  private:
    const DecoderKernels& kernels_;
    bool is_bf16_;
    OwnedMatrix packed_;
};

}  // namespace ttc
