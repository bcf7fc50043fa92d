// Who comes last to a row merges its partial results: always in position order, whoever that is.
#pragma once

#include "tree_attention/units_gpu.h"

namespace ttc {
namespace gpu {

// Four lanes merge the partial results of a row's head, or follow along where `is_wanted` is false.
template <typename T, int kDim>
TTC_DEVICE void merge_head(const AttentionArgs& args, int row, int head, int lane, bool is_wanted) {
    constexpr int kPieces = kDim / 32;  // of 8 columns; lane l has pieces l, l + 4, ...
    const WorkHeader& header = header_of(args);
    const int32_t *start = args.work + header.merge_start_at, *slots = args.work + header.merge_slots_at;
    const int lo = is_wanted ? start[row] : 0, hi = is_wanted ? start[row + 1] : 0;
    const bool is_there = lo < hi && slots[lo] == kDirect;  // a unit of another item has nothing to say to the row
    float top = -kInfinity, sum = 0.0f, acc[kPieces][8];
    for (int s = lo + lane; s < hi && !is_there; s += 4)
        top = fmaxf(top, args.partial_lse[(int64_t)slots[s] * args.num_heads + head]);
    top = quad_max(top);
    if (is_there || !is_wanted) return;
#pragma unroll
    for (int c = 0; c < kPieces; ++c)
#pragma unroll
        for (int i = 0; i < 8; ++i) acc[c][i] = 0.0f;
#pragma unroll 4
    for (int s = lo; s < hi; ++s) {
        const int64_t at = (int64_t)slots[s] * args.num_heads + head;
        const float weight = exp2_fast((args.partial_lse[at] - top) * kLog2e);
        sum += weight;
#pragma unroll
        for (int c = 0; c < kPieces; ++c) {
            const Chunk piece = ((const Chunk*)((const T*)args.partial + at * kDim))[4 * c + lane];
            const T* const x = (const T*)&piece;
#pragma unroll
            for (int i = 0; i < 8; ++i) acc[c][i] = fmaf(weight, to_float(x[i]), acc[c][i]);
        }
    }
    const float rate = sum == 0.0f ? 0.0f : 1.0f / sum;
    Chunk* const to = (Chunk*)((T*)args.out + ((int64_t)row * args.num_heads + head) * kDim);
#pragma unroll
    for (int c = 0; c < kPieces; ++c) {
        Chunk piece;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            ((uint32_t*)&piece)[i] = pack<T>(acc[c][2 * i] * rate, acc[c][2 * i + 1] * rate);
        to[4 * c + lane] = piece;
    }
}

// Counts a unit, all of whose results are stored and shown by a barrier, at its rows `first`, `first` + `step`, ...
// Appends those that are complete to the warp's list, which has `num` rows; returns how many it has then.
template <int kDim>
TTC_DEVICE int count_rows(const AttentionArgs& args, const Heads& heads, const WorkUnit& unit, int kv_head, int first,
                          int step, int num, int warp, int lane) {
    if (unit.slot_base == kDirect) return num;
    const WorkHeader& header = header_of(args);
    const int row_lo = unit.row_lo + heads.group.divide(unit.packed_lo);
    const int row_hi = unit.row_lo + heads.group.divide(unit.packed_lo + unit.num_packed - 1) + 1;
    const int row = row_lo + first + lane * step;
    bool is_complete = false;
    if (row < row_hi) {
        uint32_t* const arrived = (uint32_t*)args.work + header.arrived_at + row * args.num_kv_heads + kv_head;
        const uint32_t last = (uint32_t)args.work[header.writers_at + row] - 1;
        is_complete = count_up(arrived, last) == last;
    }
    const uint32_t complete = warp_ballot(is_complete);
    if (is_complete) {
        int32_t* const entry = shared<kDim>().merged[warp][num + count_bits(complete & ((1u << lane) - 1))];
        entry[0] = row, entry[1] = kv_head;
    }
    return num + count_bits(complete);
}

// A warp merges the rows of its list.
template <typename T, int kDim>
TTC_DEVICE void merge_rows(const AttentionArgs& args, const Heads& heads, int num, int warp, int lane) {
    if (num == 0) return;
    warp_barrier();  // the list is there
    const int total = num * (int)heads.group.by;
    for (int from = 0; from < total; from += 8) {
        const int i = from + lane / 4, at = i < total ? i : total - 1, by_entry = heads.group.divide(at);
        const int32_t* const entry = shared<kDim>().merged[warp][by_entry];
        const int head = entry[1] * (int)heads.group.by + at - by_entry * (int)heads.group.by;
        merge_head<T, kDim>(args, entry[0], head, lane % 4, i < total);
    }
    warp_barrier();  // the list may be written again
}

}  // namespace gpu
}  // namespace ttc
