// The packed decoder, the packed linear layer and the decode loop as Python calls them.
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "decode_loop.h"
#include "packed.h"

namespace py = pybind11;

namespace {

using ttc::Caches;
using ttc::PackedDecoder;
using ttc::PackedLinear;
using Ints = py::array_t<int32_t, py::array::c_style>;
using Bools = py::array_t<bool, py::array::c_style>;

template <class T>
const T* at(uintptr_t address) {
    return reinterpret_cast<const T*>(address);
}

void forward(const PackedDecoder& self, uintptr_t token_ids, uintptr_t positions, uintptr_t slots, int64_t num,
             const Ints& items, const Ints& blocks, const Caches& caches, uintptr_t out) {
    if (items.ndim() != 2 || items.shape(1) != 5)
        throw std::invalid_argument("decoder: plan.items must have shape (num_items, 5)");
    const ttc::ForwardRows rows{num,          at<int32_t>(token_ids), at<int32_t>(positions), at<int32_t>(slots),
                                items.data(), blocks.data(),          items.shape(0),         blocks.size()};
    py::gil_scoped_release release;
    self.forward(rows, caches, reinterpret_cast<void*>(out));
}

py::tuple decode(ttc::KVTree& tree, const PackedDecoder& trunk, const PackedLinear& head, const Caches& caches,
                 const Ints& handles, const Ints& pending, const std::vector<uintptr_t>& sampling, const Ints& limits,
                 const Ints& groups, const Ints& rules, const Bools& table, const std::optional<Bools>& marks,
                 const Ints& tokens, const py::array_t<float, py::array::c_style>& logprobs, const Ints& counts,
                 int64_t min_ready, int64_t max_live) {
    const int64_t num = handles.size(), max_forwards = tokens.ndim() == 2 ? tokens.shape(0) : 0;
    if (sampling.size() != 6 || pending.size() != num || limits.size() != num || groups.size() != num ||
        rules.size() != num || counts.size() != num || tokens.size() != max_forwards * num ||
        logprobs.size() != tokens.size() || num < 1 || max_forwards < 1)
        throw std::invalid_argument("decode: tokens and logprobs must be (forwards, branches), pending, limits, groups, "
                                    "rules and counts (branches), both sizes at least 1");
    if (table.ndim() != 2 || table.shape(1) != head.num_out() + 1 || (marks && marks->size() != head.num_out() + 1))
        throw std::invalid_argument("decode: table must be (rules, vocabulary + 1), marks (vocabulary + 1)");
    if (min_ready < 1)
        throw std::invalid_argument("decode: min_ready must be at least 1, got " + std::to_string(min_ready));
    if (max_live < 1)
        throw std::invalid_argument("decode: max_live must be at least 1, got " + std::to_string(max_live));
    const ttc::DecodeArgs args{{handles.data(), num},
                               pending.data(),
                               at<uint64_t>(sampling[0]),
                               at<int32_t>(sampling[1]),
                               at<float>(sampling[2]),
                               at<int32_t>(sampling[3]),
                               at<float>(sampling[4]),
                               at<float>(sampling[5]),
                               limits.data(),
                               groups.data(),
                               rules.data(),
                               table.data(),
                               marks ? marks->data() : nullptr,
                               table.shape(0),
                               max_forwards,
                               min_ready,
                               max_live};
    ttc::DecodeResult result{const_cast<int32_t*>(tokens.data()), const_cast<float*>(logprobs.data()),
                             const_cast<int32_t*>(counts.data()), {}, {}};
    int64_t num_done;
    {
        py::gil_scoped_release release;
        num_done = ttc::decode(tree, trunk, head, caches, args, result);
    }
    return py::make_tuple(num_done, py::array_t<int64_t>(py::ssize_t(result.marked.size()), result.marked.data()),
                          py::array_t<uint8_t>(py::ssize_t(result.states.size()), result.states.data()));
}

void bind_decoder_class(py::module_& m) {
    py::class_<PackedDecoder>(m, "PackedDecoder", "Addresses; see ttc_kernels/decoder/api.py.")
        .def(py::init([](int num_heads, int num_kv_heads, int head_dim, int64_t hidden, int64_t intermediate,
                         int64_t vocabulary, int64_t max_position, float eps, uintptr_t embedding, uintptr_t cos,
                         uintptr_t sin, uintptr_t final_norm, int num_layers, bool is_bf16, const std::string& isa) {
                 const ttc::Sizes sizes{num_heads, num_kv_heads, head_dim,     hidden,
                                        intermediate, vocabulary, max_position, eps};
                 const ttc::DecoderPointers pointers{at<void>(embedding), at<void>(final_norm), at<float>(cos),
                                                     at<float>(sin)};
                 return PackedDecoder(sizes, num_layers, pointers, is_bf16, isa);
             }),
             py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("hidden"),
             py::arg("intermediate"), py::arg("vocabulary"), py::arg("max_position"), py::arg("eps"),
             py::arg("embedding"), py::arg("cos"), py::arg("sin"), py::arg("final_norm"), py::arg("num_layers"),
             py::arg("is_bf16"), py::arg("isa") = "auto")
        .def("fill",
             [](PackedDecoder& self, int layer, int part, uintptr_t rows, int64_t first, int64_t num) {
                 self.fill(layer, part, at<void>(rows), first, num);
             },
             py::arg("layer"), py::arg("part"), py::arg("rows"), py::arg("first"), py::arg("num"))
        .def("forward", &forward, py::arg("token_ids"), py::arg("positions"), py::arg("slots"), py::arg("rows"),
             py::arg("items"), py::arg("blocks"), py::arg("caches"), py::arg("out"));
}

}  // namespace

void bind_decoder(py::module_& m) {
    m.def("decoder_isas", &ttc::decoder_isas, "Paths that PackedDecoder and PackedLinear can run here, best last.");
    py::class_<Caches>(m, "Caches", "Where keys and values are; strides in elements.")
        .def(py::init([](uintptr_t k, std::vector<int64_t> k_strides, uintptr_t v, std::vector<int64_t> v_strides,
                         int64_t num_blocks, int block_size) {
                 if (k_strides.size() != 5 || v_strides.size() != 4)
                     throw std::invalid_argument("decoder: 5 strides of k and 4 of v are needed");
                 return Caches{k, v, std::move(k_strides), std::move(v_strides), num_blocks, block_size};
             }),
             py::arg("k"), py::arg("k_strides"), py::arg("v"), py::arg("v_strides"), py::arg("num_blocks"),
             py::arg("block_size"));
    bind_decoder_class(m);
    py::class_<PackedLinear>(m, "PackedLinear", "Addresses; see ttc_kernels/decoder/api.py.")
        .def(py::init<int64_t, int64_t, bool, const std::string&>(), py::arg("num_out"), py::arg("num_in"),
             py::arg("is_bf16"), py::arg("isa") = "auto")
        .def("fill",
             [](PackedLinear& self, uintptr_t rows, int64_t first, int64_t num) {
                 self.fill(at<void>(rows), first, num);
             },
             py::arg("rows"), py::arg("first"), py::arg("num"))
        .def(
            "forward",
            [](const PackedLinear& self, uintptr_t x, int64_t x_stride, int64_t x_rows, uintptr_t chosen,
               int64_t rows, uintptr_t out, int64_t out_stride) {
                self.forward(at<void>(x), x_stride, x_rows, at<int64_t>(chosen), rows,
                             reinterpret_cast<float*>(out), out_stride);
            },
            py::arg("x"), py::arg("x_stride"), py::arg("x_rows"), py::arg("chosen"), py::arg("rows"), py::arg("out"),
            py::arg("out_stride"), py::call_guard<py::gil_scoped_release>());
    m.def("decode", &decode, py::arg("tree"), py::arg("trunk"), py::arg("head"), py::arg("caches"),
          py::arg("handles"), py::arg("pending"), py::arg("sampling"), py::arg("limits"), py::arg("groups"),
          py::arg("rules"), py::arg("table"), py::arg("marks"), py::arg("tokens"), py::arg("logprobs"),
          py::arg("counts"), py::arg("min_ready"), py::arg("max_live"), "See ttc_kernels/decoder/loop.py.");
}
