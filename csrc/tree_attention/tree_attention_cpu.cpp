// Tree attention on a CPU: the op as Python calls it.
#include <stdexcept>
#include <string>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../common/cpu.h"
#include "tree_attention.h"

namespace py = pybind11;

namespace ttc {
namespace {

using Ints = py::array_t<int32_t, py::array::c_style>;

void bound(uintptr_t q, int64_t q_row, int64_t q_head, uintptr_t k, int64_t k_block, int64_t k_head, int64_t k_dim,
           uintptr_t v, int64_t v_block, int64_t v_head, int64_t v_token, uintptr_t out, const Ints& items,
           const Ints& blocks, int rows, int num_heads, int num_kv_heads, int head_dim, int block_size,
           int64_t num_blocks, float scale, bool is_bf16, const std::string& isa) {
    if (items.ndim() != 2 || items.shape(1) != 5)
        throw std::invalid_argument("tree_attention: plan.items must have shape (num_items, 5)");
    if (num_kv_heads < 1) throw std::invalid_argument("tree_attention: num_kv_heads " + std::to_string(num_kv_heads));
    const Isa chosen = parse_isa(isa);
    if (rows == 0) return;
    AttentionCall call;
    call.q = reinterpret_cast<const void*>(q);
    call.k = reinterpret_cast<const void*>(k);
    call.v = reinterpret_cast<const void*>(v);
    call.out = reinterpret_cast<void*>(out);
    call.q_row = q_row, call.q_head = q_head;
    call.k_block = k_block, call.k_head = k_head, call.k_dim = k_dim;
    call.v_block = v_block, call.v_head = v_head, call.v_token = v_token;
    call.items = items.data();
    call.blocks = blocks.data();
    call.num_heads = num_heads, call.group = num_heads / num_kv_heads;
    call.head_dim = head_dim, call.block_size = block_size;
    call.scale = scale, call.is_bf16 = is_bf16;
    const AttentionShape shape{rows, num_heads, num_kv_heads, head_dim, block_size, int(items.shape(0)), num_blocks,
                               blocks.size()};
    py::gil_scoped_release release;
    int max_threads = 1;
#ifdef _OPENMP
    if (!omp_in_parallel()) max_threads = omp_get_max_threads();
#endif
    thread_local AttentionSchedule schedule;
    make_schedule(call.items, call.blocks, shape, max_threads, schedule);
    run_schedule(call, schedule, chosen);
}

}  // namespace
}  // namespace ttc

void bind_tree_attention(py::module_& m) {
    m.def("supported_isas", &ttc::supported_isas, "Instruction sets this machine can run, best last.");
    m.def("tree_attention", &ttc::bound, py::arg("q"), py::arg("q_row"), py::arg("q_head"), py::arg("k"),
          py::arg("k_block"), py::arg("k_head"), py::arg("k_dim"), py::arg("v"), py::arg("v_block"),
          py::arg("v_head"), py::arg("v_token"), py::arg("out"), py::arg("items"), py::arg("blocks"),
          py::arg("rows"), py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("block_size"),
          py::arg("num_blocks"), py::arg("scale"), py::arg("is_bf16"), py::arg("isa") = "auto",
          "Addresses and strides in elements; see ttc_kernels/tree_attention/api.py.");
}
