// Python's view of the KV tree. Integer arrays come in as numpy int32 without a copy; plans go out the same way.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "kv_tree/kv_tree.h"

namespace py = pybind11;

namespace {

using ttc::Int32View;
using ttc::KVTree;
using ttc::Plan;
using Int32Array = py::array_t<int32_t, py::array::c_style>;

// One int32 dimension. Contiguous int32 arrays are borrowed; lists and other integer arrays are copied.
class Int32Arg {
public:
    Int32Arg(const py::object& value, const char* name) {
        if (Int32Array::check_(value)) {
            array_ = py::reinterpret_borrow<Int32Array>(value);
        } else {
            const py::array any = py::array::ensure(value);
            const char kind = any ? any.dtype().kind() : '?';
            if (!any) PyErr_Clear();
            if (kind != 'i' && kind != 'u' && !(any && any.size() == 0))
                throw std::invalid_argument(std::string(name) + " must be int32, got " + describe(value, any));
            const auto wide = py::array_t<int64_t, py::array::c_style | py::array::forcecast>::ensure(any);
            for (py::ssize_t i = 0; i < wide.size(); ++i)
                if (wide.data()[i] != static_cast<int32_t>(wide.data()[i]))
                    throw std::invalid_argument(std::string(name) + " must fit in int32, got " +
                                                std::to_string(wide.data()[i]));
            array_ = py::array_t<int32_t, py::array::c_style | py::array::forcecast>::ensure(any);
        }
        if (array_.ndim() != 1)
            throw std::invalid_argument(std::string(name) + " must have one dimension, got " +
                                        std::to_string(array_.ndim()));
    }
    Int32View view() const { return {array_.data(), array_.size()}; }

private:
    static std::string describe(const py::object& value, const py::array& any) {
        return any ? "an array of " + py::str(any.dtype()).cast<std::string>()
                   : py::str(py::type::of(value)).cast<std::string>();
    }
    Int32Array array_;
};

Int32Array to_array(const std::vector<int32_t>& values) {
    return Int32Array(static_cast<py::ssize_t>(values.size()), values.data());
}

// The arrays of a plan. They share the plan's memory and keep it from being used again.
struct PlanArrays {
    explicit PlanArrays(std::shared_ptr<const Plan> plan) {
        const py::capsule owner(new std::shared_ptr<const Plan>(plan),
                                [](void* p) { delete static_cast<std::shared_ptr<const Plan>*>(p); });
        auto flat = [&](const std::vector<int32_t>& values) {
            return Int32Array({static_cast<py::ssize_t>(values.size())}, {sizeof(int32_t)}, values.data(), owner);
        };
        order = flat(plan->order);
        row_start = flat(plan->row_start);
        positions = flat(plan->positions);
        slots = flat(plan->slots);
        tokens = flat(plan->tokens);
        blocks = flat(plan->blocks);
        items = Int32Array({static_cast<py::ssize_t>(plan->items.size() / 5), py::ssize_t{5}},
                           {5 * sizeof(int32_t), sizeof(int32_t)}, plan->items.data(), owner);
    }
    Int32Array order, row_start, positions, slots, tokens, items, blocks;
};

void bind_plan(py::module_& m) {
    py::class_<PlanArrays>(m, "Plan", R"(Query rows and what they see; made by KVTree.plan. Arrays are int32.

Item (row_lo, row_hi, block_offset, num_tokens, causal): rows [row_lo, row_hi) see tokens [0, num_tokens) of the node
whose blocks start at blocks[block_offset]; where causal is 1, row r sees num_tokens - (row_hi - 1 - r) of them.
The items of a row come in position order.)")
        .def_readonly("order", &PlanArrays::order, "(num_branches) depth-first: order[i] indexes the handles given")
        .def_readonly("row_start", &PlanArrays::row_start, "(num_branches + 1) first row of each branch, in `order`")
        .def_readonly("positions", &PlanArrays::positions, "(num_rows) absolute position of each query row")
        .def_readonly("slots", &PlanArrays::slots, "(num_rows) KV slot of each query row")
        .def_readonly("tokens", &PlanArrays::tokens, "(num_rows) token of each query row")
        .def_readonly("items", &PlanArrays::items, "(num_items, 5)")
        .def_readonly("blocks", &PlanArrays::blocks, "block ids of the nodes that items name");
}

void bind_out_of_blocks(py::module_& m) {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> type;
    type.call_once_and_store_result(
        [&] { return py::object(py::exception<ttc::OutOfBlocks>(m, "OutOfBlocks", PyExc_RuntimeError)); });
    type.get_stored().attr("__doc__") =
        "The pool holds too few blocks: num_needed by the call, num_available free or evictable.";
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const ttc::OutOfBlocks& error) {
            const py::object& raised = type.get_stored();
            const py::object value = raised(error.what());
            value.attr("num_needed") = error.num_needed;
            value.attr("num_available") = error.num_available;
            PyErr_SetObject(raised.ptr(), value.ptr());
        }
    });
}

void bind_calls(py::class_<KVTree>& tree) {
    tree.def(
            "open",
            [](KVTree& self, const py::object& tokens, bool reuse) {
                return self.open(Int32Arg(tokens, "tokens").view(), reuse);
            },
            py::arg("tokens"), py::arg("reuse") = true,
            R"(Opens a branch after the longest cached prefix of `tokens`: (handle, num_cached).

The prefix is whole blocks counted from the prompt's start; extend by tokens[num_cached:]. It may run over places
where another branch was cut: to compute a branch again bit for bit, open only its tokens before its first cut.)")
        .def(
            "extend",
            [](KVTree& self, const py::object& handles, const py::object& counts, const py::object& tokens) {
                self.extend(Int32Arg(handles, "handles").view(), Int32Arg(counts, "counts").view(),
                            Int32Arg(tokens, "tokens").view());
            },
            py::arg("handles"), py::arg("counts"), py::arg("tokens"),
            R"(Appends counts[i] of the flat `tokens` to each branch, all or nothing.

Evicts cached nodes, least recently used first, where blocks are short. Raises OutOfBlocks.)")
        .def(
            "rewrite",
            [](KVTree& self, const py::object& handles, const py::object& num_dropped, const py::object& counts,
               const py::object& tokens) {
                self.rewrite(Int32Arg(handles, "handles").view(), Int32Arg(num_dropped, "num_dropped").view(),
                             Int32Arg(counts, "counts").view(), Int32Arg(tokens, "tokens").view());
            },
            py::arg("handles"), py::arg("num_dropped"), py::arg("counts"), py::arg("tokens"),
            R"(Removes the last num_dropped[i] tokens of each branch and replaces the counts[i] before them by `tokens`.

For tokens that were appended as placeholders, before they were drawn. All of them must have been appended since the
branch was opened, forked or cut, and one such token must stay; so must those that `open` has found for another branch.
The tokens that stay keep their slots.)")
        .def(
            "fork",
            [](KVTree& self, int32_t handle, int64_t n) {
                Int32Array children(n > 0 ? n : 0);
                self.fork(handle, n, children.mutable_data());
                return children;
            },
            py::arg("handle"), py::arg("n"),
            "n new branches, int32 (n). They and the parent, which stays open, are at a cut.")
        .def("cut", &KVTree::cut, py::arg("handle"), "The branch's next token starts a node.")
        .def(
            "cuts", [](const KVTree& self, int32_t handle) { return to_array(self.cuts(handle)); }, py::arg("handle"),
            R"(Positions at which the branch was forked or cut, int32, ascending.

The last one equals num_tokens where the branch is at a cut. Cuts in the prefix that open() found are not among them.)")
        .def("close", &KVTree::close, py::arg("handle"), py::arg("keep") = true,
             R"(Closes a branch; others are untouched.

keep=True leaves what only it held as a cached prefix; keep=False frees it at once.)")
        .def("clear_cache", &KVTree::clear_cache, "Evicts all cached nodes.")
        .def("check_integrity", &KVTree::check_integrity, "Raises RuntimeError on the first broken invariant.")
        .def(
            "plan",
            [](KVTree& self, const py::object& handles, const py::object& num_queries) {
                return PlanArrays(
                    self.plan(Int32Arg(handles, "handles").view(), Int32Arg(num_queries, "num_queries").view()));
            },
            py::arg("handles"), py::arg("num_queries"),
            "The Plan in which the last num_queries[i] (>= 1) tokens of each branch are query rows.");
}

void bind_counts(py::class_<KVTree>& tree) {
    tree.def("num_tokens", &KVTree::num_tokens, py::arg("handle"))
        .def(
            "tokens", [](const KVTree& self, int32_t handle) { return to_array(self.tokens(handle)); },
            py::arg("handle"), "All tokens of the branch, int32.")
        .def(
            "blocks_needed",
            [](KVTree& self, const py::object& handles, const py::object& counts) {
                return self.blocks_needed(Int32Arg(handles, "handles").view(), Int32Arg(counts, "counts").view());
            },
            py::arg("handles"), py::arg("counts"), "Blocks that extend() would take.")
        .def(
            "unique_tokens",
            [](KVTree& self, const py::object& handles) {
                return self.unique_tokens(Int32Arg(handles, "handles").view());
            },
            py::arg("handles"), "Tokens of KV that the branches hold together.")
        .def(
            "path_tokens",
            [](const KVTree& self, const py::object& handles) {
                return self.path_tokens(Int32Arg(handles, "handles").view());
            },
            py::arg("handles"), "Tokens of KV that the branches would hold without sharing.")
        .def_property_readonly("num_blocks", &KVTree::num_blocks)
        .def_property_readonly("block_size", &KVTree::block_size, "Slots in a block.")
        .def_property_readonly("num_free_blocks", &KVTree::num_free_blocks, "Blocks that no node owns.")
        .def_property_readonly("num_cached_blocks", &KVTree::num_cached_blocks, "Blocks that can be evicted.")
        .def_property_readonly("num_open", &KVTree::num_open, "Open branches.");
}

}  // namespace

void bind_kv_tree(py::module_& m) {
    bind_out_of_blocks(m);
    bind_plan(m);
    py::class_<KVTree> tree(m, "KVTree", R"(Which slot of a block pool holds which token of which branch.

Branches share the nodes (runs of tokens) of their common prefix. A handle is an open branch; a closed or unknown one
raises ValueError. A slot is block * block_size + offset. Arguments that are int32 arrays are not copied.)");
    tree.def(py::init<int64_t, int64_t>(), py::arg("num_blocks"), py::arg("block_size") = 16);
    bind_calls(tree);
    bind_counts(tree);
}
