// The GPU's work list of an attention plan: one int32 buffer, made on the host, uploaded in one copy, read by tree
// attention's kernels. Its counts and offsets are read from the buffer too, so that a captured CUDA graph can be
// replayed over whatever list lies there.
#pragma once

#include <cstdint>
#include <vector>

namespace ttc {

constexpr int kWorkTokens = 64;      // keys in a tile; splits of a node are whole tiles counted from its start
constexpr int kNarrowRows = 16;      // packed rows of a narrow unit, which spreads its keys over the warps
constexpr int kWideRows = 64;        // packed rows of a wide unit, which spreads its rows, 16 to a warp
constexpr int kTallRows = 128;       // packed rows of a tall unit, 32 to a warp
constexpr int32_t kDirect = -1;      // WorkUnit::slot_base of a unit that writes `out` itself
constexpr int32_t kAllTokens = 1 << 30;  // WorkUnit::causal_add where every row sees all of the unit's keys

// The buffer begins with it. Offsets count int32 from the buffer's start. ttc_kernels/tree_attention/work.py lists the
// fields of both structs again.
struct WorkHeader {
    int32_t num_units, num_rows;
    int32_t num_long_units;  // the first of the units, which take a block each; a warp alone takes one of the others
    int32_t short_at_once;   // how many of the others, times KV heads, a warp takes at once
    int32_t units_at;        // (num_units) WorkUnit: the long ones, the costliest first, then the others
    int32_t blocks_at;       // the plan's block ids
    int32_t merge_start_at;  // (num_rows + 1) where each row's slots begin in merge_slots
    int32_t merge_slots_at;  // slots of the partial results of each row, in position order; kDirect: none to merge
    int32_t num_slots;       // partial results, each of one row and all heads
    int32_t num_ints;        // length of the buffer
    int32_t writers_at;      // (num_rows) units of a KV head that have the row and write partial results
    int32_t arrived_at;      // (num_rows, num_kv_heads) how many of those are done; 0 before and after each launch
    int32_t queue_at;        // (2) tickets that blocks and warps have drawn; 0 before and after each launch
};

// Packed row p of an item is query row row_lo + p / group and, for each KV head, its query head p % group.
// A unit is packed rows [packed_lo, packed_lo + num_packed) of an item against tokens [kv_lo, kv_hi) of its node, for
// each KV head. Row r sees the tokens below min(kv_hi, r + causal_add); its result goes to partial slot
// slot_base + (r - row_lo), or to row r of `out`.
struct WorkUnit {
    int32_t row_lo, packed_lo, num_packed, block_offset, kv_lo, kv_hi, causal_add, slot_base;
};

// Sizes of the rows and the cache that a plan is for, and into how many units its work is cut.
struct WorkShape {
    int32_t num_rows;  // of q; those that no item names see nothing
    int32_t num_heads, num_kv_heads;
    int64_t num_blocks;  // of the cache
    int32_t block_size;
    int32_t num_wanted;    // how many blocks the device holds at a time, about
    int32_t split_tokens;  // most tokens of a node in one unit; 0: as keeps the blocks busy, at least 128
};

// items (num_items, 5) and blocks are the plan's. Throws std::invalid_argument for a plan that points outside the
// rows or the cache.
void make_work(const int32_t* items, int64_t num_items, const int32_t* blocks, int64_t num_block_ids,
               const WorkShape& shape, std::vector<int32_t>& buffer);

}  // namespace ttc
