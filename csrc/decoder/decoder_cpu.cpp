// The trunk of a model in one call, and a packed linear layer: the choice of an instruction set, threads over strips
// of rows, the binding.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../common/cpu.h"
#include "../common/scratch.h"
#include "../tree_attention/tree_attention.h"
#include "packing.h"

#define TTC_ISA portable
#include "decoder/decoder_kernel.h"

namespace py = pybind11;

namespace ttc {
#if TTC_X86
namespace avx2 {
extern const DecoderKernels decoder_f32, decoder_bf16;
}
namespace avx512 {
extern const DecoderKernels decoder_f32, decoder_bf16;
}
namespace avx512bf16 {
extern const DecoderKernels decoder_bf16;
}
#endif

namespace {

// Below this many multiply-adds between two attentions a second thread costs more than it saves.
constexpr int64_t kParallelWork = 1000 * 1000;
// A strip's operands should stay in a core's first-level cache while the weights of a layer come from the second; but
// where a layer's weights do not fit there, a strip has so many rows that reading them is no bottleneck.
constexpr int64_t kStripRows = kMaxBlockRows;
constexpr int64_t kLongStripRows = 8 * kMaxBlockRows;
constexpr int64_t kCachedLayerBytes = 512 * 1024;

bool has_avx512_bf16() {
#if TTC_X86
    static const bool has = has_avx512() && __builtin_cpu_supports("avx512bf16");
    return has;
#else
    return false;
#endif
}

// The paths of this op: those of the machine, and products of bf16 pairs where it has them.
std::vector<std::string> decoder_isas() {
    std::vector<std::string> names = supported_isas();
    if (has_avx512_bf16()) names.emplace_back("avx512_bf16");
    return names;
}

struct Path {
    const DecoderKernels& kernels;
    Isa isa;
};

Path path_for(const std::string& name, bool is_bf16) {
    const bool is_auto = name.empty() || name == "auto", has_pairs = has_avx512_bf16();
    const Isa isa = has_pairs && name == "avx512_bf16" ? Isa::Avx512 : parse_isa(name);
#if TTC_X86
    if (is_bf16 && has_pairs && (is_auto || name == "avx512_bf16")) return {avx512bf16::decoder_bf16, isa};
    if (isa == Isa::Avx512) return {is_bf16 ? avx512::decoder_bf16 : avx512::decoder_f32, isa};
    if (isa == Isa::Avx2) return {is_bf16 ? avx2::decoder_bf16 : avx2::decoder_f32, isa};
#endif
    (void)is_auto;
    return {is_bf16 ? portable::decoder_bf16 : portable::decoder_f32, isa};
}

int threads_for(int64_t work) {
#ifdef _OPENMP
    if (work >= kParallelWork && !omp_in_parallel()) return omp_get_max_threads();
#endif
    (void)work;
    return 1;
}

// All rows, cut evenly into strips of at most `size`; as many for each thread.
struct Strips {
    int64_t rows, num;

    Strips(int64_t rows, int64_t size, int num_threads) : rows(rows) {
        num = (rows + size - 1) / size;
        num = std::min(rows, (num + num_threads - 1) / num_threads * num_threads);
    }
    int64_t start(int64_t i) const { return rows * i / num; }
};

// This thread's scratch; null when there is no memory, as nothing may be thrown out of a parallel region.
void* take_scratch(size_t bytes) noexcept {
    thread_local Scratch scratch;
    try {
        return scratch.take(bytes);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

struct Sizes {
    int num_heads, num_kv_heads, head_dim;
    int64_t hidden, intermediate, vocabulary, max_position;
    float eps;
};

// Where a call's keys and values are; strides in elements.
struct Caches {
    uintptr_t k, v;
    std::vector<int64_t> k_strides;  // layer, block, head, token, dim
    std::vector<int64_t> v_strides;  // layer, block, head, token
    int64_t num_blocks;
    int block_size;
};

// Addresses of a layer's weights: input norm, qkv, out, post norm, gate_up, down.
using LayerPointers = std::vector<uintptr_t>;
using Ints = py::array_t<int32_t, py::array::c_style>;

class PackedDecoder {
  public:
    PackedDecoder(int num_heads, int num_kv_heads, int head_dim, int64_t hidden, int64_t intermediate,
                  int64_t vocabulary, int64_t max_position, float eps, uintptr_t embedding, uintptr_t cos,
                  uintptr_t sin, uintptr_t final_norm, const std::vector<LayerPointers>& layers, bool is_bf16,
                  const std::string& isa)
        : sizes_{num_heads, num_kv_heads, head_dim, hidden, intermediate, vocabulary, max_position, eps},
          path_(path_for(isa, is_bf16)),
          is_bf16_(is_bf16),
          embedding_(reinterpret_cast<const void*>(embedding)),
          cos_(reinterpret_cast<const float*>(cos)),
          sin_(reinterpret_cast<const float*>(sin)),
          final_norm_(pack_norm(reinterpret_cast<const void*>(final_norm), is_bf16, hidden)) {
        if (head_dim < 2 || head_dim % 2 || head_dim > kMaxDecoderHeadDim || num_kv_heads < 1 ||
            num_heads % num_kv_heads)
            throw std::invalid_argument("decoder: num_heads " + std::to_string(num_heads) + ", num_kv_heads " +
                                        std::to_string(num_kv_heads) + ", head_dim " + std::to_string(head_dim));
        for (const LayerPointers& layer : layers) add_layer(layer);
        for (const OwnedLayer& layer : owned_)
            layers_.push_back({static_cast<const float*>(layer.input_norm.get()),
                               static_cast<const float*>(layer.post_norm.get()), layer.qkv.matrix, layer.out.matrix,
                               layer.gate_up.matrix, layer.down.matrix});
        layer_weights_ = hidden * (2 * q_out() + 2 * kv_out() + 3 * intermediate);
        strip_rows_ = layer_weights_ * path_.kernels.element_bytes <= kCachedLayerBytes ? kStripRows : kLongStripRows;
    }

    void forward(uintptr_t token_ids, uintptr_t positions, uintptr_t slots, int64_t rows, const Ints& items,
                 const Ints& blocks, const Caches& caches, uintptr_t out) const {
        if (items.ndim() != 2 || items.shape(1) != 5)
            throw std::invalid_argument("decoder: plan.items must have shape (num_items, 5)");
        if (rows == 0) return;
        DecoderCall call = base_call(caches);
        call.token_ids = reinterpret_cast<const int32_t*>(token_ids);
        call.positions = reinterpret_cast<const int32_t*>(positions);
        call.slots = reinterpret_cast<const int32_t*>(slots);
        call.out = reinterpret_cast<void*>(out);
        check_rows(call, rows, caches);
        const int32_t *item_data = items.data(), *block_data = blocks.data();
        const AttentionShape shape{int(rows),       sizes_.num_heads,     sizes_.num_kv_heads, sizes_.head_dim,
                                   caches.block_size, int(items.shape(0)), caches.num_blocks,   int64_t(blocks.size())};
        py::gil_scoped_release release;
        run(call, shape, item_data, block_data);
    }

  private:
    struct OwnedLayer {
        Aligned input_norm, post_norm;
        OwnedMatrix qkv, out, gate_up, down;
    };

    int64_t q_out() const { return int64_t(sizes_.num_heads) * sizes_.head_dim; }
    int64_t kv_out() const { return int64_t(sizes_.num_kv_heads) * sizes_.head_dim; }

    void add_layer(const LayerPointers& pointers) {
        if (pointers.size() != 6) throw std::invalid_argument("decoder: a layer has six weights");
        const auto at = [&](int i) { return reinterpret_cast<const void*>(pointers[size_t(i)]); };
        const int64_t hidden = sizes_.hidden, inter = sizes_.intermediate;
        const DecoderKernels& kernels = path_.kernels;
        owned_.push_back({pack_norm(at(0), is_bf16_, hidden), pack_norm(at(3), is_bf16_, hidden),
                          pack_matrix(at(1), is_bf16_, q_out() + 2 * kv_out(), hidden, kernels),
                          pack_matrix(at(2), is_bf16_, hidden, q_out(), kernels),
                          pack_gate_up(at(4), is_bf16_, inter, hidden, kernels),
                          pack_matrix(at(5), is_bf16_, hidden, inter, kernels)});
    }

    DecoderCall base_call(const Caches& caches) const {
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
        call.k = reinterpret_cast<void*>(caches.k);
        call.v = reinterpret_cast<void*>(caches.v);
        const std::vector<int64_t>&k = caches.k_strides, &v = caches.v_strides;
        call.k_layer = k[0], call.k_block = k[1], call.k_head = k[2], call.k_token = k[3], call.k_dim = k[4];
        call.v_layer = v[0], call.v_block = v[1], call.v_head = v[2], call.v_token = v[3];
        return call;
    }

    static void check(const char* what, int64_t value, int64_t row, int64_t lowest, int64_t end) {
        if (value >= lowest && value < end) return;
        throw std::invalid_argument("decoder: " + std::string(what) + " " + std::to_string(value) + " of row " +
                                    std::to_string(row) + " is outside " + std::to_string(lowest) + ".." +
                                    std::to_string(end - 1));
    }

    void check_rows(const DecoderCall& call, int64_t rows, const Caches& caches) const {
        for (int64_t r = 0; r < rows; ++r) {
            check("token", call.token_ids[r], r, 0, sizes_.vocabulary);
            check("position", call.positions[r], r, 0, sizes_.max_position);
            check("slot", call.slots[r], r, -1, caches.num_blocks * caches.block_size);
        }
    }

    void run(DecoderCall& call, const AttentionShape& shape, const int32_t* items, const int32_t* blocks) const {
        thread_local Scratch buffers;
        thread_local AttentionSchedule schedule;
        const int64_t rows = shape.rows, element = is_bf16_ ? 2 : 4;
        const int64_t residual = rows * padded_width(sizes_.hidden) * 4;
        const int64_t heads = (rows * q_out() * element + 63) / 64 * 64;
        char* memory = static_cast<char*>(buffers.take(size_t(residual + 2 * heads)));
        call.residual = reinterpret_cast<float*>(memory);
        call.query = memory + residual;
        call.attended = memory + residual + heads;
        const int most_threads = threads_for(kParallelWork), wanted = threads_for(rows * layer_weights_);
        make_schedule(items, blocks, shape, most_threads, schedule);
        const int num_threads = std::max(wanted, schedule.num_threads);
        const Strips strips(rows, strip_rows_, wanted);
        AttentionCall attention = attention_call(call, items, blocks);
        std::atomic<bool> out_of_memory{false};
        const AttentionSchedule& tasks = schedule;  // the region's threads must not see their own thread_local
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
        run_stages(call, shape, strips, attention, tasks, out_of_memory);
        if (out_of_memory) throw std::bad_alloc();
    }

    // What each thread of the region does; the loops' ends are barriers.
    void run_stages(const DecoderCall& call, const AttentionShape& shape, const Strips& strips, AttentionCall attention,
                    const AttentionSchedule& tasks, std::atomic<bool>& out_of_memory) const {
        const int64_t element = is_bf16_ ? 2 : 4;
        const size_t bytes = stage_scratch_bytes(strip_rows_, sizes_.hidden, sizes_.intermediate, q_out(), kv_out());
        void* scratch = take_scratch(bytes);
        if (!scratch) out_of_memory = true;
        for (int stage = 0; stage <= call.num_layers; ++stage) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < strips.num; ++i)
                if (scratch) path_.kernels.stage(call, stage, strips.start(i), strips.start(i + 1), scratch);
            if (stage == call.num_layers) break;
            attention.k = static_cast<const char*>(call.k) + stage * call.k_layer * element;
            attention.v = static_cast<const char*>(call.v) + stage * call.v_layer * element;
#pragma omp for schedule(dynamic, 1)
            for (int t = 0; t < tasks.num_tasks; ++t)
                if (!run_schedule_task(attention, shape, tasks, t, path_.isa)) out_of_memory = true;
        }
    }

    AttentionCall attention_call(const DecoderCall& call, const int32_t* items, const int32_t* blocks) const {
        AttentionCall attention{};
        attention.q = call.query;
        attention.out = call.attended;
        attention.q_row = q_out();
        attention.q_head = sizes_.head_dim;
        attention.k_block = call.k_block, attention.k_head = call.k_head, attention.k_dim = call.k_dim;
        attention.v_block = call.v_block, attention.v_head = call.v_head, attention.v_token = call.v_token;
        attention.items = items;
        attention.blocks = blocks;
        attention.num_heads = sizes_.num_heads;
        attention.group = sizes_.num_heads / sizes_.num_kv_heads;
        attention.head_dim = sizes_.head_dim;
        attention.block_size = call.block_size;
        attention.scale = 1.0f / std::sqrt(float(sizes_.head_dim));
        attention.is_bf16 = is_bf16_;
        return attention;
    }

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
    PackedLinear(uintptr_t weight, int64_t num_out, int64_t num_in, bool is_bf16, const std::string& isa)
        : kernels_(path_for(isa, is_bf16).kernels),
          packed_(pack_matrix(reinterpret_cast<const void*>(weight), is_bf16, num_out, num_in, kernels_)) {}

    void forward(uintptr_t x, int64_t x_stride, int64_t x_rows, uintptr_t chosen, int64_t rows, uintptr_t out,
                 int64_t out_stride) const {
        const PackedMatrix& m = packed_.matrix;
        const LinearCall call{reinterpret_cast<const void*>(x), x_stride, out_stride,
                              reinterpret_cast<const int64_t*>(chosen), &m, reinterpret_cast<float*>(out)};
        for (int64_t i = 0; call.chosen && i < rows; ++i)
            if (call.chosen[i] < 0 || call.chosen[i] >= x_rows)
                throw std::invalid_argument("packed_linear: row " + std::to_string(call.chosen[i]) + " at " +
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

  private:
    const DecoderKernels& kernels_;
    OwnedMatrix packed_;
};

}  // namespace

size_t stage_scratch_bytes(int64_t rows, int64_t hidden, int64_t intermediate, int64_t q_out, int64_t kv_out) {
    return sizeof(float) * size_t(rows) *
           size_t(padded_width(q_out + 2 * kv_out) + operand_stride(hidden) + operand_stride(q_out) +
                  operand_stride(intermediate));
}

size_t linear_scratch_bytes(int64_t rows, int64_t num_in) {
    return sizeof(float) * size_t(rows) * size_t(operand_stride(num_in));
}

}  // namespace ttc

void bind_decoder(py::module_& m) {
    using ttc::PackedDecoder;
    using ttc::PackedLinear;
    m.def("decoder_isas", &ttc::decoder_isas, "Paths that PackedDecoder and PackedLinear can run here, best last.");
    py::class_<ttc::Caches>(m, "Caches", "Where keys and values are; strides in elements.")
        .def(py::init([](uintptr_t k, std::vector<int64_t> k_strides, uintptr_t v, std::vector<int64_t> v_strides,
                         int64_t num_blocks, int block_size) {
                 if (k_strides.size() != 5 || v_strides.size() != 4)
                     throw std::invalid_argument("decoder: 5 strides of k and 4 of v are needed");
                 return ttc::Caches{k, v, std::move(k_strides), std::move(v_strides), num_blocks, block_size};
             }),
             py::arg("k"), py::arg("k_strides"), py::arg("v"), py::arg("v_strides"), py::arg("num_blocks"),
             py::arg("block_size"));
    py::class_<PackedDecoder>(m, "PackedDecoder", "Addresses; see ttc_kernels/decoder/api.py.")
        .def(py::init<int, int, int, int64_t, int64_t, int64_t, int64_t, float, uintptr_t, uintptr_t, uintptr_t,
                      uintptr_t, const std::vector<ttc::LayerPointers>&, bool, const std::string&>(),
             py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("hidden"),
             py::arg("intermediate"), py::arg("vocabulary"), py::arg("max_position"), py::arg("eps"),
             py::arg("embedding"), py::arg("cos"), py::arg("sin"), py::arg("final_norm"), py::arg("layers"),
             py::arg("is_bf16"), py::arg("isa") = "auto")
        .def("forward", &PackedDecoder::forward, py::arg("token_ids"), py::arg("positions"), py::arg("slots"),
             py::arg("rows"), py::arg("items"), py::arg("blocks"), py::arg("caches"), py::arg("out"));
    py::class_<PackedLinear>(m, "PackedLinear", "Addresses; see ttc_kernels/decoder/api.py.")
        .def(py::init<uintptr_t, int64_t, int64_t, bool, const std::string&>(), py::arg("weight"), py::arg("num_out"),
             py::arg("num_in"), py::arg("is_bf16"), py::arg("isa") = "auto")
        .def("forward", &PackedLinear::forward, py::arg("x"), py::arg("x_stride"), py::arg("x_rows"),
             py::arg("chosen"), py::arg("rows"), py::arg("out"), py::arg("out_stride"),
             py::call_guard<py::gil_scoped_release>());
}
