// Tree attention on a CPU: the op as Python calls it.
#include <stdexcept>
#include <string>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../common/cpu.h"
#include "../common/views.h"
#include "tree_attention.h"

namespace py = pybind11;

namespace ttc {
namespace {

void tree_attention(const TensorView& q, const TensorView& k_cache, const TensorView& v_cache, const PlanView& plan,
                    float scale, Elements<void> out, const std::string& isa) {
    plan.check("tree_attention");
    if (k_cache.shape[1] < 1)
        throw std::invalid_argument("tree_attention: num_kv_heads " + std::to_string(k_cache.shape[1]));
    const Isa chosen = parse_isa(isa);
    AttentionShape shape;
    shape.rows = int(q.shape[0]), shape.num_heads = int(q.shape[1]), shape.head_dim = int(q.shape[2]);
    shape.num_blocks = k_cache.shape[0], shape.num_kv_heads = int(k_cache.shape[1]);
    shape.block_size = int(k_cache.shape[2]);
    shape.num_items = int(plan.num_items()), shape.num_block_ids = plan.num_block_ids();
    if (shape.rows == 0) return;
    AttentionCall call;
    call.q = q.data, call.k = k_cache.data, call.v = v_cache.data, call.out = out;
    call.q_row = q.strides[0], call.q_head = q.strides[1];
    call.k_block = k_cache.strides[0], call.k_head = k_cache.strides[1], call.k_dim = k_cache.strides[3];
    call.v_block = v_cache.strides[0], call.v_head = v_cache.strides[1], call.v_token = v_cache.strides[2];
    call.items = plan.items.data(), call.blocks = plan.blocks.data();
    call.num_heads = shape.num_heads, call.group = shape.num_heads / shape.num_kv_heads;
    call.head_dim = shape.head_dim, call.block_size = shape.block_size;
    call.scale = scale, call.is_bf16 = q.is_bf16();
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
    m.def("tree_attention", &ttc::tree_attention, py::arg("q"), py::arg("k_cache"), py::arg("v_cache"),
          py::arg("plan"), py::arg("scale"), py::arg("out"), py::arg("isa") = "auto",
          "See ttc_kernels/tree_attention/api.py, which checks what it passes.");
}
