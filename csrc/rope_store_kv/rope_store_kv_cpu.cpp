// Rotary embedding of queries and keys, keys and values stored at their slots: one pass over the fused QKV rows.
#include <algorithm>
#include <stdexcept>
#include <string>

#include <pybind11/pybind11.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../common/cpu.h"
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

void rope_store_kv(const RopeCall& call, int rows, RunFn run) {
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

void bound(uintptr_t qkv, int64_t qkv_row, uintptr_t cos, uintptr_t sin, int64_t max_position, uintptr_t positions,
           uintptr_t slots, uintptr_t k, int64_t k_block, int64_t k_head, int64_t k_token, int64_t k_dim, uintptr_t v,
           int64_t v_block, int64_t v_head, int64_t v_token, int rows, int num_heads, int num_kv_heads, int head_dim,
           int64_t num_blocks, int block_size, bool is_bf16, const std::string& isa) {
    const RunFn run = run_fn(parse_isa(isa));
    RopeCall call;
    call.qkv = reinterpret_cast<void*>(qkv);
    call.cos = reinterpret_cast<const float*>(cos);
    call.sin = reinterpret_cast<const float*>(sin);
    call.positions = reinterpret_cast<const int32_t*>(positions);
    call.slots = reinterpret_cast<const int32_t*>(slots);
    call.k = reinterpret_cast<void*>(k);
    call.v = reinterpret_cast<void*>(v);
    call.qkv_row = qkv_row;
    call.k_block = k_block, call.k_head = k_head, call.k_token = k_token, call.k_dim = k_dim;
    call.v_block = v_block, call.v_head = v_head, call.v_token = v_token;
    call.num_heads = num_heads, call.num_kv_heads = num_kv_heads;
    call.head_dim = head_dim, call.block_size = block_size;
    call.is_bf16 = is_bf16;
    check_rows(call, rows, max_position, num_blocks * block_size);
    py::gil_scoped_release release;
    rope_store_kv(call, rows, run);
}

}  // namespace
}  // namespace ttc

void bind_rope_store_kv(py::module_& m) {
    m.def("rope_store_kv", &ttc::bound, py::arg("qkv"), py::arg("qkv_row"), py::arg("cos"), py::arg("sin"),
          py::arg("max_position"), py::arg("positions"), py::arg("slots"), py::arg("k"), py::arg("k_block"),
          py::arg("k_head"), py::arg("k_token"), py::arg("k_dim"), py::arg("v"), py::arg("v_block"),
          py::arg("v_head"), py::arg("v_token"), py::arg("rows"), py::arg("num_heads"), py::arg("num_kv_heads"),
          py::arg("head_dim"), py::arg("num_blocks"), py::arg("block_size"), py::arg("is_bf16"),
          py::arg("isa") = "auto", "Addresses and strides in elements; see ttc_kernels/rope_store_kv/api.py.");
}
