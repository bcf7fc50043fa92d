// Checks a plan, cuts its rows into tasks and runs them on the threads.
#include <algorithm>
#include <atomic>
#include <new>
#include <stdexcept>
#include <string>

#include "../common/scratch.h"
#include "tree_attention.h"

namespace ttc {
namespace {

// A group of rows is so small that its scores fit the first-level cache, where this many packed queries do.
constexpr int64_t kNearScoreBytes = 20 * 1024;
constexpr int kMinNearPacked = 12;
// Otherwise the scores should stay in a core's second-level cache, but a task has at least kMinFarPacked queries, so
// that reading a shared node again for the next task costs little beside the arithmetic.
constexpr int64_t kFarScoreBytes = 512 * 1024;
constexpr int kMinFarPacked = 64;
// Below this many multiply-adds a call is cheaper on one thread than the threads' wake-up.
constexpr int64_t kParallelWork = 200 * 1000;

void fail_item(int i, const int32_t* item, const char* why) {
    throw std::invalid_argument("tree_attention: item " + std::to_string(i) + " (" + std::to_string(item[0]) + ", " +
                                std::to_string(item[1]) + ", " + std::to_string(item[2]) + ", " +
                                std::to_string(item[3]) + ", " + std::to_string(item[4]) + ") " + why);
}

// Counts the units of every row; refuses a plan that points outside q or the cache.
void count_units(const int32_t* items, const int32_t* blocks, const AttentionShape& shape,
                 AttentionSchedule& schedule) {
    schedule.units.assign(size_t(shape.rows), 0);
    int32_t* units = schedule.units.data();
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
    schedule.max_units = 0;
    schedule.total_units = 0;
    for (int r = 0; r < shape.rows; ++r) {
        schedule.max_units = std::max(schedule.max_units, units[r]);
        schedule.total_units += units[r];
    }
}

// Rows of a group.  Several tasks per thread, so that a slow core does not keep the others waiting.
void choose_rows(const AttentionShape& shape, int num_threads, AttentionSchedule& schedule) {
    const int group = shape.num_heads / shape.num_kv_heads, num_wanted = 4 * num_threads;
    const int64_t row_bytes = int64_t(std::max(1, schedule.max_units)) * kUnit * 4 * group;
    const int64_t near_rows = kNearScoreBytes / row_bytes;
    const bool is_near = near_rows * group >= kMinNearPacked;
    const int64_t min_rows = is_near ? 1 : (kMinFarPacked + group - 1) / group;
    int64_t rows = is_near ? near_rows : std::max(min_rows, kFarScoreBytes / row_bytes);
    const int64_t wanted = (int64_t(shape.rows) * shape.num_kv_heads + num_wanted - 1) / num_wanted;
    if (num_threads > 1) rows = std::min(rows, std::max<int64_t>((min_rows + 1) / 2, wanted));
    rows = std::max<int64_t>(1, std::min<int64_t>(rows, shape.rows));
    schedule.num_groups = int((shape.rows + rows - 1) / rows);
    // The KV heads of a block lie side by side: one task for all of them where there are tasks enough.
    const bool has_enough = num_threads == 1 || schedule.num_groups >= num_wanted;
    schedule.heads_per_task = is_near && has_enough ? shape.num_kv_heads : 1;
}

// Lists the units that one row of a group reads alone, in the order in which the kernel comes to them.
void list_lone_units(const int32_t* items, const int32_t* blocks, const AttentionShape& shape,
                     AttentionSchedule& schedule) {
    const int units_per_block = shape.block_size / kUnit;
    schedule.lone_start.assign(1, 0);
    schedule.lone_units.clear();
    for (int g = 0; g < schedule.num_groups; ++g) {
        const int row_lo = schedule.row_start(g), row_hi = schedule.row_start(g + 1);
        const size_t before = schedule.lone_units.size();
        for (int k = schedule.group_start[size_t(g)]; k < schedule.group_start[size_t(g) + 1]; ++k) {
            const int32_t* it = items + int64_t(schedule.group_items[size_t(k)]) * 5;
            const int lo = std::max(it[0], row_lo), hi = std::min(it[1], row_hi);
            if (hi - lo != 1) continue;
            const int limit = it[4] ? it[3] - (it[1] - 1 - lo) : it[3];
            for (int u = 0; u * kUnit < limit; ++u)
                schedule.lone_units.push_back(blocks[it[2] + u / units_per_block] * units_per_block +
                                              u % units_per_block);
        }
        if (schedule.lone_units.size() > before)
            schedule.lone_units.insert(schedule.lone_units.end(), kAhead, int32_t(schedule.lone_units.back()));
        schedule.lone_start.push_back(int32_t(schedule.lone_units.size()));
    }
}

// Gives every group its items.
void cut_groups(const int32_t* items, const AttentionShape& shape, AttentionSchedule& schedule) {
    std::vector<int32_t>& start = schedule.group_start;
    start.assign(size_t(schedule.num_groups) + 1, 0);
    for (int i = 0; i < shape.num_items; ++i) {
        const int32_t* it = items + int64_t(i) * 5;
        for (int g = schedule.group_of(it[0]), last = schedule.group_of(it[1] - 1); g <= last; ++g) ++start[size_t(g) + 1];
    }
    for (int g = 0; g < schedule.num_groups; ++g) start[size_t(g) + 1] += start[size_t(g)];
    schedule.group_items.resize(size_t(start[size_t(schedule.num_groups)]));
    schedule.fill.assign(start.begin(), start.end() - 1);
    for (int i = 0; i < shape.num_items; ++i) {
        const int32_t* it = items + int64_t(i) * 5;
        for (int g = schedule.group_of(it[0]), last = schedule.group_of(it[1] - 1); g <= last; ++g)
            schedule.group_items[size_t(schedule.fill[size_t(g)]++)] = i;
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

}  // namespace

void make_schedule(const int32_t* items, const int32_t* blocks, const AttentionShape& shape, int max_threads,
                   AttentionSchedule& schedule, int num_groups) {
    if (shape.num_kv_heads < 1 || shape.num_heads % shape.num_kv_heads || shape.block_size < kUnit ||
        shape.block_size % kUnit)
        throw std::invalid_argument("tree_attention: num_heads " + std::to_string(shape.num_heads) +
                                    ", num_kv_heads " + std::to_string(shape.num_kv_heads) + ", block_size " +
                                    std::to_string(shape.block_size));
    schedule.rows = shape.rows;
    schedule.num_tasks = 0;
    schedule.num_threads = 1;
    if (shape.rows == 0) return;
    count_units(items, blocks, shape, schedule);
    const int64_t work = schedule.total_units * kUnit * shape.num_heads * shape.head_dim;
    const int num_threads = work >= kParallelWork ? std::max(1, max_threads) : 1;
    if (num_groups > 0) {
        schedule.num_groups = num_groups;
        schedule.heads_per_task = shape.num_kv_heads;
    } else {
        choose_rows(shape, num_threads, schedule);
    }
    cut_groups(items, shape, schedule);
    list_lone_units(items, blocks, shape, schedule);
    schedule.num_tasks = shape.num_kv_heads / schedule.heads_per_task * schedule.num_groups;
    schedule.num_threads = std::min(num_threads, schedule.num_tasks);
}

bool run_schedule_task(const AttentionCall& call, const AttentionSchedule& schedule, int t, Isa isa) noexcept {
    thread_local Scratch scratch;
    const int g = t % schedule.num_groups;
    AttentionTask task;
    task.items = schedule.group_items.data() + schedule.group_start[size_t(g)];
    task.num_items = schedule.group_start[size_t(g) + 1] - schedule.group_start[size_t(g)];
    task.row_lo = schedule.row_start(g);
    task.row_hi = schedule.row_start(g + 1);
    task.head_lo = t / schedule.num_groups * schedule.heads_per_task;
    task.head_hi = task.head_lo + schedule.heads_per_task;
    task.lone_units = schedule.lone_units.data() + schedule.lone_start[size_t(g)];
    task.num_lone = std::max(0, schedule.lone_start[size_t(g) + 1] - schedule.lone_start[size_t(g)] - kAhead);
    task.max_units = std::max(1, schedule.max_units);
    try {
        task.scratch = static_cast<float*>(scratch.take(
            4 * task_scratch_floats(schedule.most_rows(), call.group, call.head_dim, task.max_units)));
    } catch (const std::bad_alloc&) {
        return false;
    }
    run_fn(isa)(call, task);
    return true;
}

void run_schedule(const AttentionCall& call, const AttentionSchedule& schedule, Isa isa) {
    std::atomic<bool> out_of_memory{false};  // must not leave the parallel region as an exception
    if (schedule.num_threads == 1) {
        for (int t = 0; t < schedule.num_tasks; ++t)
            if (!run_schedule_task(call, schedule, t, isa)) out_of_memory = true;
    } else {
#pragma omp parallel for schedule(dynamic, 1) num_threads(schedule.num_threads)
        for (int t = 0; t < schedule.num_tasks; ++t)
            if (!run_schedule_task(call, schedule, t, isa)) out_of_memory = true;
    }
    if (out_of_memory) throw std::bad_alloc();
}

}  // namespace ttc
