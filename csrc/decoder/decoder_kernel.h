// The kernels between two attentions, written once over Simd and compiled once per instruction set.
//
// A strip of rows goes through all of it while its values are in the first-level cache; only the weights stream by.
// Every output of a matrix product is one chain of fused multiply-adds over its inputs in order, whatever register
// block the row falls in: a row's bits do not depend on how many rows there are or how they are cut into strips.
// bf16 rounds where plain torch would: after each product, norm, addition and activation.
#pragma once

#include <cmath>
#include <utility>

#include "common/silu.h"
#include "common/simd.h"
#include "decoder/decoder.h"
#include "rope_store_kv/rotate.h"

namespace ttc {
namespace TTC_ISA {
namespace {

using V = Simd::V;
constexpr int W = Simd::W;
constexpr int kWidth = 2 * W;
// Register blocks, rows x two vectors: as many rows as the register file holds. Few rows take several panels at once.
constexpr int kBlockRows = W == 16 ? 12 : W == 8 ? 6 : 4;
constexpr int kFewRows = W == 16 ? 3 : 1;
constexpr int kFewPanels = W == 16 ? 4 : 2;
constexpr int kMaxTile = kWidth * (kBlockRows > kFewRows * kFewPanels ? kBlockRows : kFewRows * kFewPanels);

// How T's operands are kept and multiplied: `Operand` in rows, `Weight` in panels.
#if defined(__AVX512BF16__)
struct Dot {
    using Operand = bf16;
    using Weight = bf16;
    static constexpr int kInputs = 2;
    static inline __m512i load(const bf16* w) { return _mm512_loadu_si512(w); }
    static inline __m512i repeat(const bf16* x) {
        int32_t bits;
        std::memcpy(&bits, x, sizeof bits);
        return _mm512_set1_epi32(bits);
    }
    static inline V fma(__m512i x, __m512i w, V sum) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w); }
};

// As the products do, the processor's own rounding takes numbers below 2^-126 for zero.
inline __m256i narrow(V v) { return (__m256i)_mm512_cvtneps_pbh(v); }
#else
struct Dot {
    using Operand = float;
    using Weight = float;
    static constexpr int kInputs = 1;
    static inline V load(const float* w) { return Simd::load(w); }
    static inline V repeat(const float* x) { return Simd::set1(*x); }
    static inline V fma(V x, V w, V sum) { return Simd::fma(x, w, sum); }
};
#endif
using Operand = Dot::Operand;
using Weight = Dot::Weight;

// The value that storing as T and loading again gives.
template <class T>
inline V as(V v) {
#if defined(__AVX512BF16__)
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(v)), 16));
#else
    return round_as(static_cast<const T*>(nullptr), v);
#endif
}

// v as an operand of the next product.
template <class T>
inline void put(Operand* to, V v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(v));
#else
    Simd::store(to, as<T>(v));
#endif
}

// How far the fetching of an Ahead has come.
class Fetch {
  public:
    explicit Fetch(const Ahead& ahead) : ahead_(ahead) { next_piece(); }
    // Lines for each step of the next product, 0 where there is nothing left.
    int per_step() const { return stride_ ? ahead_.per_step : 0; }
    inline void step(int num_lines) {
        for (int i = 0; i < num_lines; ++i) {
            __builtin_prefetch(line_, 0, 2);
            line_ += stride_;
            if (--left_ == 0) next_piece();
        }
    }

  private:
    void next_piece() {
        if (piece_ < ahead_.num_pieces) {
            line_ = ahead_.pieces[piece_++];
            left_ = ahead_.piece_lines;
            stride_ = 64;
        } else {  // the same line is fetched again and again until the product ends
            left_ = INT64_MAX;
            stride_ = 0;
        }
    }

    Ahead ahead_;
    const char* line_ = nullptr;
    int64_t left_ = 0, piece_ = 0, stride_ = 0;
};

// R rows of operands times P neighbouring panels, into tile (R, P, width).
template <int R, int P>
void block(const Operand* x, int64_t stride, const Weight* panel, int64_t num_steps, float* tile, Fetch& fetch) {
    constexpr int kStep = kWidth * Dot::kInputs, kGroups = (R + 2) / 3;
    V acc[R][2 * P];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < 2 * P; ++c) acc[r][c] = Simd::zero();
    const Operand* rows[kGroups];  // a pointer for every three rows: addresses then fit the registers
    for (int g = 0; g < kGroups; ++g) rows[g] = x + int64_t(g) * 3 * stride;
    const int64_t panel_size = num_steps * kStep;
    const int num_lines = fetch.per_step();
    for (int64_t k = 0; k < num_steps; ++k) {
        if (num_lines) fetch.step(num_lines);
        decltype(Dot::load(panel)) w[2 * P];
        for (int c = 0; c < 2 * P; ++c) w[c] = Dot::load(panel + (c / 2) * panel_size + (c % 2) * (kStep / 2));
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const auto value = Dot::repeat(rows[r / 3] + (r % 3) * stride);
            for (int c = 0; c < 2 * P; ++c) acc[r][c] = Dot::fma(value, w[c], acc[r][c]);
        }
        panel += kStep;
        for (int g = 0; g < kGroups; ++g) rows[g] += Dot::kInputs;
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < 2 * P; ++c) Simd::store(tile + (r * 2 * P + c) * W, acc[r][c]);
}

using BlockFn = void (*)(const Operand*, int64_t, const Weight*, int64_t, float*, Fetch&);

template <int P, int... R>
BlockFn pick_block(int rows, std::integer_sequence<int, R...>) {
    static constexpr BlockFn all[] = {block<R + 1, P>...};
    return all[rows - 1];
}

// x (rows, num_in) times the matrix; done(row, panel, low, high) takes a row's two vectors of a panel.
template <class Done>
inline void product(const Operand* x, int64_t stride, int rows, const PackedMatrix& m, Fetch& fetch, Done&& done) {
    alignas(64) float tile[kMaxTile];
    const Weight* panel = static_cast<const Weight*>(m.panels);
    const int64_t panel_size = m.num_steps * kWidth * Dot::kInputs;
    int64_t p = 0;
    if (rows <= kFewRows) {
        const BlockFn block = pick_block<kFewPanels>(rows, std::make_integer_sequence<int, kFewRows>());
        for (; p + kFewPanels <= m.num_panels; p += kFewPanels, panel += kFewPanels * panel_size) {
            block(x, stride, panel, m.num_steps, tile, fetch);
            for (int i = 0; i < rows * kFewPanels; ++i)
                done(i / kFewPanels, p + i % kFewPanels, Simd::load(tile + i * kWidth),
                     Simd::load(tile + i * kWidth + W));
        }
    }
    const int num_blocks = (rows + kBlockRows - 1) / kBlockRows;
    for (; p < m.num_panels; ++p, panel += panel_size) {
        for (int b = 0; b < num_blocks; ++b) {
            const int lo = rows * b / num_blocks, num = rows * (b + 1) / num_blocks - lo;
            const BlockFn block = pick_block<1>(num, std::make_integer_sequence<int, kBlockRows>());
            block(x + lo * stride, stride, panel, m.num_steps, tile, fetch);
            for (int r = 0; r < num; ++r)
                done(lo + r, p, Simd::load(tile + r * kWidth), Simd::load(tile + r * kWidth + W));
        }
    }
}

// The strip's own arrays.
struct Strip {
    Operand *normed, *attended, *activated;
    float* qkv;
    int64_t hidden_stride, q_stride, inter_stride, qkv_stride, wide;  // wide: padded hidden

    Strip(const DecoderCall& call, int64_t rows, void* scratch) {
        const int64_t q_out = int64_t(call.num_heads) * call.head_dim;
        wide = padded_width(call.hidden);
        hidden_stride = operand_stride(call.hidden);
        q_stride = operand_stride(q_out);
        inter_stride = operand_stride(call.intermediate);
        qkv_stride = padded_width(q_out + 2 * int64_t(call.num_kv_heads) * call.head_dim);
        qkv = static_cast<float*>(scratch);
        normed = reinterpret_cast<Operand*>(qkv + rows * qkv_stride);
        attended = normed + rows * hidden_stride;
        activated = attended + rows * q_stride;
    }
};

// scale of one row: 1 / sqrt(mean of squares + eps). The padding is zeros.
inline V norm_scale(const float* x, int64_t wide, int64_t hidden, float eps) {
    constexpr int kSums = 2;
    V sums[kSums] = {Simd::zero(), Simd::zero()};
    for (int64_t i = 0; i < wide; i += kSums * W)
        for (int s = 0; s < kSums; ++s) {
            const V v = Simd::load(x + i + s * W);
            sums[s] = Simd::fma(v, v, sums[s]);
        }
    const float square = Simd::hsum(Simd::add(sums[0], sums[1]));
    return Simd::set1(1.0f / std::sqrt(square / float(hidden) + eps));
}

template <class T>
void norm_rows(const DecoderCall& call, const float* residual, const float* weight, const Strip& s, int rows) {
    for (int r = 0; r < rows; ++r, residual += s.wide) {
        const V scale = norm_scale(residual, s.wide, call.hidden, call.eps);
        Operand* to = s.normed + r * s.hidden_stride;
        for (int64_t i = 0; i < s.wide; i += W)
            put<T>(to + i, Simd::mul(as<T>(Simd::mul(Simd::load(residual + i), scale)), Simd::load(weight + i)));
    }
}

// The last stage's norm, straight into the result, which has no padding.
template <class T>
void final_norm_rows(const DecoderCall& call, const float* residual, T* out, int64_t wide, int rows) {
    const int64_t whole = call.hidden / W * W;
    for (int r = 0; r < rows; ++r, residual += wide, out += call.hidden) {
        const V scale = norm_scale(residual, wide, call.hidden, call.eps);
        for (int64_t i = 0; i < call.hidden; i += W) {
            const V normed = as<T>(Simd::mul(Simd::load(residual + i), scale));
            const V v = Simd::mul(normed, Simd::load(call.final_norm + i));
            if (i < whole)
                Simd::store(out + i, v);
            else
                Simd::store_tail(out + i, v, int(call.hidden - whole));
        }
    }
}

template <class T>
void embed_rows(const DecoderCall& call, int64_t row_lo, int rows, float* residual, int64_t wide) {
    for (int r = 0; r < rows; ++r, residual += wide) {
        const T* from = static_cast<const T*>(call.embedding) + int64_t(call.token_ids[row_lo + r]) * call.hidden;
        for (int64_t i = 0; i < wide; i += W) {
            const int64_t left = call.hidden - i;
            V v = Simd::zero();
            if (left >= W)
                v = Simd::load(from + i);
            else if (left > 0)
                v = Simd::load_tail(from + i, int(left));
            Simd::store(residual + i, v);
        }
    }
}

// Asks for the cache lines that a row's keys and values will be stored to; they were last seen a whole token ago.
template <class T, int Locality>
inline void prefetch_slot(const DecoderCall& call, int layer, int64_t row) {
    const int64_t slot = call.slots[row];
    if (slot < 0) return;
    const int64_t block = slot / call.block_size, offset = slot % call.block_size;
    const T* k = static_cast<const T*>(call.k) + layer * call.k_layer + block * call.k_block + offset * call.k_token;
    const T* v = static_cast<const T*>(call.v) + layer * call.v_layer + block * call.v_block + offset * call.v_token;
    const int64_t per_line = 64 / int64_t(sizeof(T)), step = call.k_dim >= per_line ? 1 : per_line / call.k_dim;
    for (int h = 0; h < call.num_kv_heads; ++h, k += call.k_head, v += call.v_head) {
        for (int64_t d = 0; d < call.head_dim; d += step) __builtin_prefetch(k + d * call.k_dim, 1, Locality);
        for (int64_t d = 0; d < call.head_dim; d += per_line) __builtin_prefetch(v + d, 1, Locality);
    }
}

// Rotates the strip's queries into call.query, and stores its rotated keys and its values.
template <class T>
void rope_rows(const DecoderCall& call, int layer, int64_t row_lo, int rows, const Strip& s) {
    const int dim = call.head_dim, half = dim / 2;
    T* keys = static_cast<T*>(call.k) + layer * call.k_layer;
    T* values = static_cast<T*>(call.v) + layer * call.v_layer;
    T rotated[kMaxDecoderHeadDim];
    constexpr int kAhead = 2;  // rows whose lines are on their way to the first-level cache
    for (int r = 0; r < rows; ++r) {
        if (r + kAhead < rows) prefetch_slot<T, 3>(call, layer, row_lo + r + kAhead);
        const float* row = s.qkv + r * s.qkv_stride;
        const int64_t position = call.positions[row_lo + r];
        const Rotation turn(call.cos + position * half, call.sin + position * half, half);
        T* query = static_cast<T*>(call.query) + (row_lo + r) * call.num_heads * dim;
        for (int h = 0; h < call.num_heads; ++h) turn(row + h * dim, query + h * dim);
        const int64_t slot = call.slots[row_lo + r];
        if (slot < 0) continue;
        const int64_t block = slot / call.block_size, offset = slot % call.block_size;
        const float* k_row = row + call.num_heads * dim;
        const float* v_row = k_row + call.num_kv_heads * dim;
        for (int h = 0; h < call.num_kv_heads; ++h) {
            turn(k_row + h * dim, rotated);
            T* k = keys + block * call.k_block + h * call.k_head + offset * call.k_token;
            for (int d = 0; d < dim; ++d) k[d * call.k_dim] = rotated[d];
            T* v = values + block * call.v_block + h * call.v_head + offset * call.v_token;
            int d = 0;
            for (; d + W <= dim; d += W) Simd::store(v + d, Simd::load(v_row + h * dim + d));
            if (d < dim) Simd::store_tail(v + d, Simd::load_tail(v_row + h * dim + d, dim - d), dim - d);
        }
    }
}

// Rows of T as operands, by vectors; reads no further than `size`, writes zeros up to the next vector.
template <class T>
inline void copy_operands(const T* from, Operand* to, int64_t size) {
    int64_t i = 0;
    for (; i + W <= size; i += W) put<T>(to + i, Simd::load(from + i));
    if (i < size) put<T>(to + i, Simd::load_tail(from + i, int(size - i)));
}

// The first half of a layer: norm, queries, keys and values.
template <class T>
void before_attention(const DecoderCall& call, int layer, int64_t row_lo, int rows, float* residual, const Strip& s,
                      Fetch& fetch) {
    const PackedLayer& weights = call.layers[layer];
    for (int r = 0; r < rows; ++r) prefetch_slot<T, 2>(call, layer, row_lo + r);  // arrives during the product
    norm_rows<T>(call, residual, weights.input_norm, s, rows);
    product(s.normed, s.hidden_stride, rows, weights.qkv, fetch, [&](int r, int64_t panel, V low, V high) {
        float* to = s.qkv + r * s.qkv_stride + panel * kWidth;
        Simd::store(to, as<T>(low));
        Simd::store(to + W, as<T>(high));
    });
    rope_rows<T>(call, layer, row_lo, rows, s);
}

// The second half: the output of attention and the feed-forward, each added to the residual.
template <class T>
void after_attention(const DecoderCall& call, int layer, int64_t row_lo, int rows, float* residual, const Strip& s,
                     Fetch& fetch) {
    const PackedLayer& weights = call.layers[layer];
    const int64_t q_out = int64_t(call.num_heads) * call.head_dim;
    const auto add = [&](int r, int64_t panel, V low, V high) {
        float* to = residual + r * s.wide + panel * kWidth;
        Simd::store(to, as<T>(Simd::add(as<T>(low), Simd::load(to))));
        Simd::store(to + W, as<T>(Simd::add(as<T>(high), Simd::load(to + W))));
    };
    for (int r = 0; r < rows; ++r)
        copy_operands(static_cast<const T*>(call.attended) + (row_lo + r) * q_out, s.attended + r * s.q_stride, q_out);
    product(s.attended, s.q_stride, rows, weights.out, fetch, add);
    norm_rows<T>(call, residual, weights.post_norm, s, rows);
    product(s.normed, s.hidden_stride, rows, weights.gate_up, fetch, [&](int r, int64_t panel, V gate, V up) {
        put<T>(s.activated + r * s.inter_stride + panel * W, Simd::mul(as<T>(silu(as<T>(gate))), as<T>(up)));
    });
    product(s.activated, s.inter_stride, rows, weights.down, fetch, add);
}

template <class T>
void run_stage(const DecoderCall& call, int stage, int64_t row_lo, int64_t row_hi, void* scratch, const Ahead& ahead) {
    const int rows = int(row_hi - row_lo);
    const Strip s(call, rows, scratch);
    Fetch fetch(ahead);
    float* residual = call.residual + row_lo * s.wide;
    if (stage == 0)
        embed_rows<T>(call, row_lo, rows, residual, s.wide);
    else
        after_attention<T>(call, stage - 1, row_lo, rows, residual, s, fetch);
    if (stage < call.num_layers)
        before_attention<T>(call, stage, row_lo, rows, residual, s, fetch);
    else
        final_norm_rows<T>(call, residual, static_cast<T*>(call.out) + row_lo * call.hidden, s.wide, rows);
}

template <class T>
void run_linear(const LinearCall& call, int64_t row_lo, int64_t row_hi, void* scratch) {
    const PackedMatrix& m = *call.matrix;
    const int rows = int(row_hi - row_lo);
    const int64_t stride = operand_stride(m.num_in);
    Operand* x = static_cast<Operand*>(scratch);
    for (int r = 0; r < rows; ++r) {
        const int64_t from = call.chosen ? call.chosen[row_lo + r] : row_lo + r;
        copy_operands(static_cast<const T*>(call.x) + from * call.x_stride, x + r * stride, m.num_in);
    }
    float* out = call.out + row_lo * call.out_stride;
    Fetch nothing{Ahead{}};
    product(x, stride, rows, m, nothing, [&](int r, int64_t panel, V low, V high) {
        float* to = out + r * call.out_stride + panel * kWidth;
        const int64_t left = m.num_out - panel * kWidth;
        if (left >= kWidth) {
            Simd::store(to, low);
            Simd::store(to + W, high);
        } else if (left > W) {
            Simd::store(to, low);
            Simd::store_tail(to + W, high, int(left - W));
        } else {
            Simd::store_tail(to, low, int(left));
        }
    });
}

template <class T>
constexpr DecoderKernels kernels() {
    return {kWidth, Dot::kInputs, int(sizeof(Weight)), run_stage<T>, run_linear<T>};
}

}  // namespace

#if !defined(__AVX512BF16__)
extern const DecoderKernels decoder_f32;
const DecoderKernels decoder_f32 = kernels<float>();
#endif
extern const DecoderKernels decoder_bf16;
const DecoderKernels decoder_bf16 = kernels<bf16>();

}  // namespace TTC_ISA
}  // namespace ttc
