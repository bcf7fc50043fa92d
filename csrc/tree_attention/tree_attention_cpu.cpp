// Tree attention on a CPU: checks the plan, cuts the rows into tasks, runs them on the threads.
#include <algorithm>
#include <atomic>
#include <exception>
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
#include "tree_attention.h"

namespace py = pybind11;

namespace ttc {
namespace {

// A task's scores should stay in a core's second-level cache, but so many queries share a task at least that
// reading a shared node again for the next task costs little beside the arithmetic.
constexpr int64_t kScoreBytes = 512 * 1024;
constexpr int kMinPacked = 64;
// Below this many multiply-adds a call is cheaper on one thread than the threads' wake-up.
constexpr int64_t kParallelWork = 200 * 1000;

struct Shape {
    int rows, num_heads, num_kv_heads, head_dim, block_size, num_items;
    int64_t num_blocks, num_block_ids;
};

// What the tasks need to know about the plan; the vectors keep their memory between calls.
struct Layout {
    std::vector<int32_t> units;        // per row: units of 16 keys on its path
    std::vector<int32_t> group_start;  // per row group: where its items begin in group_items
    std::vector<int32_t> group_items;
    std::vector<int32_t> fill;
    int max_units = 0;
    int64_t total_units = 0;
    int rows_per_group = 0, num_groups = 0;
};

void fail_item(int i, const int32_t* item, const char* why) {
    throw std::invalid_argument("tree_attention: item " + std::to_string(i) + " (" + std::to_string(item[0]) + ", " +
                                std::to_string(item[1]) + ", " + std::to_string(item[2]) + ", " +
                                std::to_string(item[3]) + ", " + std::to_string(item[4]) + ") " + why);
}

// Counts the units of every row; refuses a plan that points outside q or the cache.
void count_units(const int32_t* items, const int32_t* blocks, const Shape& shape, Layout& layout) {
    layout.units.assign(size_t(shape.rows), 0);
    int32_t* units = layout.units.data();
    for (int i = 0; i < shape.num_items; ++i) {
        const int32_t* it = items + int64_t(i) * 5;
        if (it[0] < 0 || it[0] >= it[1] || it[1] > shape.rows) fail_item(i, it, "has rows outside q");
        const int64_t num = (int64_t(it[3]) + shape.block_size - 1) / shape.block_size;
        if (it[2] < 0 || it[3] < 1 || it[2] + num > shape.num_block_ids) fail_item(i, it, "exceeds the plan's blocks");
        for (int64_t b = it[2]; b < it[2] + num; ++b)
            if (blocks[b] < 0 || blocks[b] >= shape.num_blocks) fail_item(i, it, "names a block outside the cache");
        if (!it[4]) {
            const int n = (it[3] + kUnit - 1) / kUnit;
            for (int r = it[0]; r < it[1]; ++r) units[r] += n;
        } else {
            for (int r = it[0]; r < it[1]; ++r)
                units[r] += std::max(0, it[3] - (it[1] - 1 - r) + kUnit - 1) / kUnit;
        }
    }
    layout.max_units = 0;
    layout.total_units = 0;
    for (int r = 0; r < shape.rows; ++r) {
        layout.max_units = std::max(layout.max_units, units[r]);
        layout.total_units += units[r];
    }
}

void cut_groups(const int32_t* items, const Shape& shape, int num_threads, Layout& layout) {
    const int group = shape.num_heads / shape.num_kv_heads;
    const int64_t row_bytes = int64_t(std::max(1, layout.max_units)) * kUnit * 4 * group;
    const int64_t min_rows = (kMinPacked + group - 1) / group;
    int64_t rows = std::max(min_rows, kScoreBytes / row_bytes);
    // Several tasks per thread, so that a slow core does not keep the others waiting.
    const int64_t wanted = (int64_t(shape.rows) * shape.num_kv_heads + 4 * num_threads - 1) / (4 * num_threads);
    if (num_threads > 1) rows = std::min(rows, std::max<int64_t>((min_rows + 1) / 2, wanted));
    rows = std::max<int64_t>(1, std::min<int64_t>(rows, shape.rows));
    const int num_groups = int((shape.rows + rows - 1) / rows);
    const int even = (shape.rows + num_groups - 1) / num_groups;
    layout.rows_per_group = even;
    layout.num_groups = (shape.rows + even - 1) / even;

    layout.group_start.assign(size_t(layout.num_groups) + 1, 0);
    for (int i = 0; i < shape.num_items; ++i) {
        const int32_t* it = items + int64_t(i) * 5;
        for (int g = it[0] / even; g <= (it[1] - 1) / even; ++g) ++layout.group_start[size_t(g) + 1];
    }
    for (int g = 0; g < layout.num_groups; ++g) layout.group_start[size_t(g) + 1] += layout.group_start[size_t(g)];
    layout.group_items.resize(size_t(layout.group_start[size_t(layout.num_groups)]));
    layout.fill.assign(layout.group_start.begin(), layout.group_start.end() - 1);
    for (int i = 0; i < shape.num_items; ++i) {
        const int32_t* it = items + int64_t(i) * 5;
        for (int g = it[0] / even; g <= (it[1] - 1) / even; ++g)
            layout.group_items[size_t(layout.fill[size_t(g)]++)] = i;
    }
}

using RunFn = void (*)(const AttentionCall&, const AttentionTask&);

RunFn run_fn(Isa isa) {
#if TTC_X86
    if (isa == Isa::Avx512) return run_attention_avx512;
    if (isa == Isa::Avx2) return run_attention_avx2;
#endif
    (void)isa;
    return run_attention_portable;
}

void run_tasks(const AttentionCall& call, const Shape& shape, const Layout& layout, int num_threads, RunFn run) {
    const int group = call.group;
    const size_t bytes =
        4 * task_scratch_floats(layout.rows_per_group, group, call.head_dim, std::max(1, layout.max_units));
    const int num_tasks = shape.num_kv_heads * layout.num_groups;
    std::atomic<bool> out_of_memory{false};
    auto do_task = [&](int t) {
        thread_local Scratch scratch;
        const int g = t % layout.num_groups;
        AttentionTask task;
        task.items = layout.group_items.data() + layout.group_start[size_t(g)];
        task.num_items = layout.group_start[size_t(g) + 1] - layout.group_start[size_t(g)];
        task.row_lo = g * layout.rows_per_group;
        task.row_hi = std::min(shape.rows, task.row_lo + layout.rows_per_group);
        task.kv_head = t / layout.num_groups;
        task.max_units = std::max(1, layout.max_units);
        try {
            task.scratch = static_cast<float*>(scratch.take(bytes));
        } catch (const std::bad_alloc&) {  // must not leave the parallel region
            out_of_memory = true;
            return;
        }
        run(call, task);
    };
    if (num_threads == 1) {
        for (int t = 0; t < num_tasks; ++t) do_task(t);
    } else {
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
        for (int t = 0; t < num_tasks; ++t) do_task(t);
    }
    if (out_of_memory) throw std::bad_alloc();
}

void tree_attention(const AttentionCall& call, const Shape& shape, Isa isa) {
    thread_local Layout layout;
    count_units(call.items, call.blocks, shape, layout);
    const int64_t work = layout.total_units * kUnit * shape.num_heads * shape.head_dim;
    int num_threads = 1;
#ifdef _OPENMP
    if (work >= kParallelWork && !omp_in_parallel()) num_threads = omp_get_max_threads();
#else
    (void)work;
#endif
    cut_groups(call.items, shape, num_threads, layout);
    num_threads = std::min(num_threads, shape.num_kv_heads * layout.num_groups);
    run_tasks(call, shape, layout, num_threads, run_fn(isa));
}

using Ints = py::array_t<int32_t, py::array::c_style>;

void bound(uintptr_t q, int64_t q_row, int64_t q_head, uintptr_t k, int64_t k_block, int64_t k_head, int64_t k_dim,
           uintptr_t v, int64_t v_block, int64_t v_head, int64_t v_token, uintptr_t out, const Ints& items,
           const Ints& blocks, int rows, int num_heads, int num_kv_heads, int head_dim, int block_size,
           int64_t num_blocks, float scale, bool is_bf16, const std::string& isa) {
    if (items.ndim() != 2 || items.shape(1) != 5)
        throw std::invalid_argument("tree_attention: plan.items must have shape (num_items, 5)");
    if (num_kv_heads < 1 || num_heads % num_kv_heads || block_size < kUnit || block_size % kUnit)
        throw std::invalid_argument("tree_attention: num_heads " + std::to_string(num_heads) + ", num_kv_heads " +
                                    std::to_string(num_kv_heads) + ", block_size " + std::to_string(block_size));
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
    const Shape shape{rows, num_heads, num_kv_heads, head_dim, block_size, int(items.shape(0)), num_blocks,
                      blocks.size()};
    py::gil_scoped_release release;
    tree_attention(call, shape, chosen);
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
