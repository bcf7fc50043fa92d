// Bias, rotary embedding of queries and keys, keys and values stored at their slots: one pass over the fused QKV rows.
#include <algorithm>
#include <stdexcept>
#include <string>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../common/cpu.h"
#include "../common/views.h"
#include "rope_store_kv.h"

namespace py = pybind11;

namespace ttc {
namespace {

// Below this many elements a call is cheaper on one thread.
constexpr int64_t kParallelElements = 64 * 1024;

using RunFn = void (*)(const RopeCall&, int, int);

RunFn run_fn(Isa isa) {
#if TTC_X86
    if (isa == Isa::Avx512) return run_rope_avx512;
    if (isa == Isa::Avx2) return run_rope_avx2;
#endif
    (void)isa;
    return run_rope_portable;
}

void check_rows(const RopeCall& call, int rows, int64_t max_position, int64_t num_slots) {
    for (int r = 0; r < rows; ++r) {
        if (call.positions[r] < 0 || call.positions[r] >= max_position)
            throw std::invalid_argument("rope_store_kv: position " + std::to_string(call.positions[r]) + " of row " +
                                        std::to_string(r) + " is outside the table of " +
                                        std::to_string(max_position));
        if (call.slots[r] < -1 || call.slots[r] >= num_slots)
            throw std::invalid_argument("rope_store_kv: slot " + std::to_string(call.slots[r]) + " of row " +
                                        std::to_string(r) + " is outside the cache of " + std::to_string(num_slots));
    }
}

void run_rows(const RopeCall& call, int rows, RunFn run) {
    const int64_t elements = int64_t(rows) * (call.num_heads + 2 * call.num_kv_heads) * call.head_dim;
    int num_threads = 1;
#ifdef _OPENMP
    if (elements >= kParallelElements && !omp_in_parallel()) num_threads = std::min(rows, omp_get_max_threads());
#endif
    if (num_threads == 1) {
        run(call, 0, rows);
        return;
    }
    (void)elements;
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (int t = 0; t < num_threads; ++t)
        run(call, int(int64_t(rows) * t / num_threads), int(int64_t(rows) * (t + 1) / num_threads));
}

void rope_store_kv(const TensorView& qkv, const TensorView& cos, Elements<const float> sin,
                   Elements<const int32_t> positions, Elements<const int32_t> slots, const TensorView& k_cache,
                   const TensorView& v_cache, Elements<const void> bias, const std::string& isa) {
    const RunFn run = run_fn(parse_isa(isa));
    const int rows = int(qkv.shape[0]);
    RopeCall call;
    call.qkv = qkv.data, call.qkv_row = qkv.strides[0];
    call.cos = static_cast<const float*>(cos.data), call.sin = sin;
    call.positions = positions, call.slots = slots;
    call.k = k_cache.data, call.v = v_cache.data;
    call.k_block = k_cache.strides[0], call.k_head = k_cache.strides[1];
    call.k_token = k_cache.strides[2], call.k_dim = k_cache.strides[3];
    call.v_block = v_cache.strides[0], call.v_head = v_cache.strides[1], call.v_token = v_cache.strides[2];
    call.bias = bias;
    call.block_size = int(k_cache.shape[2]), call.head_dim = int(k_cache.shape[3]);
    call.num_kv_heads = int(k_cache.shape[1]);
    call.num_heads = int(qkv.shape[1]) / call.head_dim - 2 * call.num_kv_heads;
    call.is_bf16 = qkv.is_bf16();
    check_rows(call, rows, cos.shape[0], k_cache.shape[0] * call.block_size);
    py::gil_scoped_release release;
    run_rows(call, rows, run);
}

}  // namespace
}  // namespace ttc

void bind_rope_store_kv(py::module_& m) {
    m.def("rope_store_kv", &ttc::rope_store_kv, py::arg("qkv"), py::arg("cos"), py::arg("sin"), py::arg("positions"),
          py::arg("slots"), py::arg("k_cache"), py::arg("v_cache"), py::arg("bias") = py::none(),
          py::arg("isa") = "auto",
          "See ttc_kernels/rope_store_kv/api.py, which checks what it passes.");
}
