// The packed decoder, the packed linear layer and the decode loop as Python calls them.
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <pybind11/stl.h>

#include "../common/views.h"
#include "decode_loop.h"
#include "packed.h"

namespace py = pybind11;

namespace {

using ttc::Caches;
using ttc::Elements;
using ttc::PackedDecoder;
using ttc::PackedLinear;
using ttc::PlanView;
using ttc::TensorView;
using Ints = py::array_t<int32_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Bools = py::array_t<bool, py::array::c_style>;

void forward(const PackedDecoder& self, const TensorView& token_ids, Elements<const int32_t> positions,
             Elements<const int32_t> slots, const PlanView& plan, const Caches& caches, Elements<void> out) {
    plan.check("decoder");
    const ttc::ForwardRows rows{token_ids.shape[0],
                                static_cast<const int32_t*>(token_ids.data),
                                positions,
                                slots,
                                plan.items.data(),
                                plan.blocks.data(),
                                plan.num_items(),
                                plan.num_block_ids()};
    py::gil_scoped_release release;
    self.forward(rows, caches, out);
}

// A field of a Python dataclass. Throws TypeError where it has another type.
template <class T>
T field(const py::object& owner, const char* name) {
    try {
        return owner.attr(name).cast<T>();
    } catch (const py::cast_error&) {
        throw py::type_error(std::string(name) + " cannot be " + py::repr(owner.attr(name)).cast<std::string>());
    }
}

// The arrays of a DecodeBatch (ttc_kernels/decoder/loop.py), which this keeps alive, and its numbers.
struct Batch {
    Ints handles, pending, limits, groups, rules;
    Bools table;
    std::optional<Bools> marks;
    ttc::DecodeArgs args;

    explicit Batch(const py::object& batch)
        : handles(field<Ints>(batch, "handles")),
          pending(field<Ints>(batch, "pending")),
          limits(field<Ints>(batch, "limits")),
          groups(field<Ints>(batch, "groups")),
          rules(field<Ints>(batch, "rules")),
          table(field<Bools>(batch, "table")),
          marks(field<std::optional<Bools>>(batch, "marks")) {
        const py::sequence sampling = field<py::sequence>(batch, "sampling");
        if (sampling.size() != 6) throw std::invalid_argument("decode: sampling must be six tensors");
        args.handles = {handles.data(), handles.size()};
        args.pending = pending.data();
        args.keys = py::cast<Elements<const uint64_t>>(sampling[0]);
        args.positions = py::cast<Elements<const int32_t>>(sampling[1]);
        args.temperature = py::cast<Elements<const float>>(sampling[2]);
        args.top_k = py::cast<Elements<const int32_t>>(sampling[3]);
        args.top_p = py::cast<Elements<const float>>(sampling[4]);
        args.min_p = py::cast<Elements<const float>>(sampling[5]);
        args.limits = limits.data(), args.groups = groups.data(), args.rules = rules.data();
        args.table = table.data(), args.marks = marks ? marks->data() : nullptr;
        args.num_rules = table.ndim() == 2 ? table.shape(0) : 0;
        args.max_forwards = field<int64_t>(batch, "max_forwards");
        args.min_ready = field<int64_t>(batch, "min_ready");
        args.max_live = field<std::optional<int64_t>>(batch, "max_live").value_or(handles.size());
    }

    // Throws std::invalid_argument for sizes that do not fit.
    void check(int64_t vocabulary, const Ints& tokens, const Floats& logprobs, const Ints& counts) const {
        const int64_t num = handles.size(), num_drawn = args.max_forwards * num;
        if (num < 1 || args.max_forwards < 1 || pending.size() != num || limits.size() != num ||
            groups.size() != num || rules.size() != num || counts.size() != num || tokens.size() != num_drawn ||
            logprobs.size() != num_drawn)
            throw std::invalid_argument("decode: tokens and logprobs must be (forwards, branches), pending, limits, "
                                        "groups, rules and counts (branches), both sizes at least 1");
        if (table.ndim() != 2 || table.shape(1) != vocabulary + 1 || (marks && marks->size() != vocabulary + 1))
            throw std::invalid_argument("decode: table must be (rules, vocabulary + 1), marks (vocabulary + 1)");
        if (args.min_ready < 1)
            throw std::invalid_argument("decode: min_ready must be at least 1, got " + std::to_string(args.min_ready));
        if (args.max_live < 1)
            throw std::invalid_argument("decode: max_live must be at least 1, got " + std::to_string(args.max_live));
    }
};

py::tuple decode(ttc::KVTree& tree, const PackedDecoder& trunk, const PackedLinear& head, const Caches& caches,
                 const py::object& given, Ints& tokens, Floats& logprobs, Ints& counts) {
    const Batch batch(given);
    batch.check(head.num_out(), tokens, logprobs, counts);
    ttc::DecodeResult result{tokens.mutable_data(), logprobs.mutable_data(), counts.mutable_data(), {}, {}};
    int64_t num_done;
    {
        py::gil_scoped_release release;
        num_done = ttc::decode(tree, trunk, head, caches, batch.args, result);
    }
    return py::make_tuple(num_done, py::array_t<int64_t>(py::ssize_t(result.marked.size()), result.marked.data()),
                          py::array_t<uint8_t>(py::ssize_t(result.states.size()), result.states.data()));
}

void bind_packed_decoder(py::module_& m) {
    py::class_<ttc::Sizes>(m, "DecoderSizes", "The sizes of a packed trunk, in units of elements.")
        .def(py::init([](int num_heads, int num_kv_heads, int head_dim, int64_t hidden, int64_t intermediate,
                         int64_t vocabulary, int64_t max_position, float eps) {
                 return ttc::Sizes{num_heads, num_kv_heads, head_dim, hidden, intermediate, vocabulary, max_position,
                                   eps};
             }),
             py::kw_only(), py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("hidden"),
             py::arg("intermediate"), py::arg("vocabulary"), py::arg("max_position"), py::arg("eps"));
    py::class_<PackedDecoder>(m, "PackedDecoder", "See ttc_kernels/decoder/api.py, which checks what it passes.")
        .def(py::init([](const ttc::Sizes& sizes, int num_layers, const TensorView& embedding,
                         Elements<const float> cos, Elements<const float> sin, Elements<const void> final_norm,
                         const std::string& isa) {
                 const ttc::DecoderPointers pointers{embedding.data, final_norm, cos, sin};
                 return PackedDecoder(sizes, num_layers, pointers, embedding.is_bf16(), isa);
             }),
             py::arg("sizes"), py::arg("num_layers"), py::arg("embedding"), py::arg("cos"), py::arg("sin"),
             py::arg("final_norm"), py::arg("isa") = "auto")
        .def("fill",
             [](PackedDecoder& self, int layer, int part, const TensorView& rows, int64_t first) {
                 self.fill(layer, part, rows.data, first, rows.shape[0]);
             },
             py::arg("layer"), py::arg("part"), py::arg("rows"), py::arg("first"))
        .def("forward", &forward, py::arg("token_ids"), py::arg("positions"), py::arg("slots"), py::arg("plan"),
             py::arg("caches"), py::arg("out"));
}

void bind_packed_linear(py::module_& m) {
    py::class_<PackedLinear>(m, "PackedLinear", "See ttc_kernels/decoder/api.py, which checks what it passes.")
        .def(py::init<int64_t, int64_t, bool, const std::string&>(), py::arg("num_out"), py::arg("num_in"),
             py::arg("is_bf16"), py::arg("isa") = "auto")
        .def("fill",
             [](PackedLinear& self, const TensorView& rows, int64_t first) {
                 self.fill(rows.data, first, rows.shape[0]);
             },
             py::arg("rows"), py::arg("first"))
        .def(
            "forward",
            [](const PackedLinear& self, const TensorView& x, Elements<const int64_t> chosen, const TensorView& out) {
                self.forward(x.data, x.strides[0], x.shape[0], chosen, out.shape[0], static_cast<float*>(out.data),
                             out.strides[0]);
            },
            py::arg("x"), py::arg("rows"), py::arg("out"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void bind_decoder(py::module_& m) {
    m.def("decoder_isas", &ttc::decoder_isas, "Paths that PackedDecoder and PackedLinear can run here, best last.");
    py::class_<Caches>(m, "Caches", "The caches of all layers: their addresses and strides.")
        .def(py::init([](const TensorView& k, const TensorView& v) {
                 return Caches{k.data, v.data, {k.strides, k.strides + 5}, {v.strides, v.strides + 4}, k.shape[1],
                               int(k.shape[3])};
             }),
             py::arg("k_cache"), py::arg("v_cache"));
    bind_packed_decoder(m);
    bind_packed_linear(m);
    m.def("decode", &decode, py::arg("tree"), py::arg("trunk"), py::arg("head"), py::arg("caches"), py::arg("batch"),
          py::arg("tokens"), py::arg("logprobs"), py::arg("counts"),
          "Draws a DecodeBatch into `tokens`, `logprobs` and `counts`; see ttc_kernels/decoder/loop.py.");
}
