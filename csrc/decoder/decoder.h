// The trunk of a model as one call: the structs that each instruction set's kernels take.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ttc {

// The most rows of a register block of the micro-kernel.
constexpr int kMaxBlockRows = 12;
constexpr int kMaxDecoderHeadDim = 256;

// Row buffers and norm weights are zero-filled up to a multiple of every panel's width.
static inline int64_t padded_width(int64_t n) { return (n + 31) / 32 * 32; }

// A weight matrix (num_out, num_in), cut into panels of `width` columns (outputs) that the micro-kernel reads front
// to back: (num_panels, num_steps, width, inputs per step), zeros beyond num_out and num_in.
struct PackedMatrix {
    int64_t num_in = 0, num_out = 0, num_steps = 0, num_panels = 0;
    const void* panels = nullptr;
};

struct PackedLayer {
    const float *input_norm, *post_norm;  // padded_width(hidden)
    PackedMatrix qkv, out, gate_up, down;  // a panel of gate_up: half its columns of gate, the same ones of up
};

// One forward; strides in elements. Type is float or bf16.
struct DecoderCall {
    int num_layers, num_heads, num_kv_heads, head_dim, block_size;
    int64_t hidden, intermediate;
    float eps;
    const PackedLayer* layers;
    const float* final_norm;    // padded_width(hidden)
    const void* embedding;      // (vocabulary, hidden), contiguous
    const float *cos, *sin;     // (max_position, head_dim / 2), contiguous
    const int32_t *token_ids, *positions, *slots;  // (rows)
    float* residual;            // (rows, padded_width(hidden)), values of the type
    void* query;                // (rows, num_heads * head_dim)
    void* attended;             // the same
    void* out;                  // (rows, hidden)
    void *k, *v;                // (num_layers, num_blocks, num_kv_heads, block_size, head_dim)
    int64_t k_layer, k_block, k_head, k_token, k_dim, v_layer, v_block, v_head, v_token;
};

// out (rows, num_out) float32 = chosen rows of x, times the matrix.
struct LinearCall {
    const void* x;
    int64_t x_stride, out_stride;
    const int64_t* chosen;  // (rows), or null: all of x in order
    const PackedMatrix* matrix;
    float* out;
};

// Pieces of memory to be fetched into the second-level cache during the matrix products, `per_step` lines for each of
// their steps.
struct Ahead {
    const char* const* pieces = nullptr;
    int64_t num_pieces = 0, piece_lines = 0;  // lines of 64 bytes
    int per_step = 0;
};

// The work between two attentions, for rows [row_lo, row_hi): the second half of layer `stage - 1` (stage 0: the
// embedding), then the first half of layer `stage` (the last stage: the final norm).
using DecoderStage = void (*)(const DecoderCall& call, int stage, int64_t row_lo, int64_t row_hi, void* scratch,
                              const Ahead& ahead);
using LinearRows = void (*)(const LinearCall& call, int64_t row_lo, int64_t row_hi, void* scratch);

// One build of the kernels for one type.
struct DecoderKernels {
    int width;             // columns of a panel
    int inputs_per_step;   // 2 where bf16 products are summed in pairs
    int element_bytes;     // of a packed weight: 4, or 2 where weights stay bf16
    DecoderStage stage;
    LinearRows linear;
};

// Bytes of scratch for a strip of `rows` rows.
size_t stage_scratch_bytes(int64_t rows, int64_t hidden, int64_t intermediate, int64_t q_out, int64_t kv_out);
size_t linear_scratch_bytes(int64_t rows, int64_t num_in);

// Elements from one row of operands to the next: padded, and never a power of two, at which rows share cache sets.
static inline int64_t operand_stride(int64_t n) { return padded_width(n) + 32; }

}  // namespace ttc
