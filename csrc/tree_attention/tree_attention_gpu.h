// Tree attention on a GPU, in one launch; the op is defined in ttc_kernels/tree_attention/reference.py, and the work
// list in csrc/cuda/work.h.
//
// Blocks of four warps take the long units, the longest first, from a queue. Keys and values come in tiles of 64 tokens
// through a ring of three in shared memory, filled by asynchronous copies, those of the next unit while the present one
// ends. The packed rows of a tall or wide unit are spread over the warps, 32 or 16 each; in a narrow unit each warp takes
// all 16 rows and 16 keys of every tile, and the warps' results are merged at the end. Then each warp by itself takes
// the short units, through a ring of its own with tiles of 16 tokens. Scores and sums are float32; weights and partial
// results are rounded to the values' type. Which block or warp computes a unit changes no bit.
#pragma once

#include "tree_attention/merge_gpu.h"
#include "tree_attention/softmax_gpu.h"

namespace ttc {
namespace gpu {

// The tiles of the units that a block, or a warp, computes one after the other, in a ring of kStages. Two of them, or
// one in a tall unit, are on their way while a third is looked at.
template <typename T, int kDim, int kTokens>
struct Ring {
    const AttentionArgs& args;
    char* const memory;
    const int thread;         // of those that share the ring
    Keys next = Keys::none();  // whose tiles follow those of the present unit
    int first = 0;            // stage of the present unit's first tile
    int num_started = 0;      // tiles of `next` whose place in the order of copies is taken

    TTC_DEVICE char* stage(int i) const { return memory + (first + i) % kStages * (2 * kTokens * kDim * 2); }

    // Starts the copy of a tile into a stage, or of nothing where the unit does not have it.
    TTC_DEVICE void start(const Keys& keys, int tile, int stage_of) {
        if (tile < keys.num_tiles(kTokens)) copy_tile<T, kDim, kTokens>(args, keys, tile, stage(stage_of), thread);
        copy_commit();
    }

    // While tile i of `num_tiles` is looked at, starts the copy of the tile after the next one: of this unit, or of the
    // next one where that is known.
    TTC_DEVICE void start_ahead(const Keys& keys, int i, int num_tiles, bool is_next_known) {
        const bool is_next = i + 2 >= num_tiles;
        if (is_next && !is_next_known) return copy_commit();  // who waits for tiles counts groups of copies
        const int tile = is_next ? num_started : i + 2;
        num_started += is_next;
        start(Keys::either(is_next, next, keys), tile, is_next ? num_tiles + tile : tile);
    }

    // The next unit, the first tile of which is in stage `first_stage`, becomes the present one; starts what its loop
    // counts on. Everyone is done with the unit before.
    TTC_DEVICE Keys advance(int first_stage) {
        first = (first + first_stage) % kStages;
#pragma unroll 1
        for (; num_started < 2; ++num_started) start(next, num_started, num_started);
        num_started = 0;
        const Keys keys = next;
        next = Keys::none();
        return keys;
    }
};

template <typename T, int kDim>
using BlockRing = Ring<T, kDim, kWorkTokens>;
template <typename T, int kDim>
using WarpRing = Ring<T, kDim, kWarpTile>;

// A block's place in the queue of long units. Its first ticket is its own number, the others are drawn.
struct LongQueue {
    const AttentionArgs& args;
    int32_t& shared_next;
    int drawn = 0;  // by thread 0
    bool is_known = false;

    TTC_DEVICE int num_pairs() const {  // of unit and KV head
        return header_of(args).num_long_units * args.num_kv_heads;
    }

    // Thread 0 asks for the ticket after the present one; it need not wait for the answer. Each block that computes
    // units draws one ticket in vain: num_pairs tickets in all, after which the counter is 0 again.
    TTC_DEVICE void draw() {
        is_known = false;
        if (thread_index() == 0)
            drawn = (int)count_up((uint32_t*)args.work + header_of(args).queue_at, (uint32_t)num_pairs() - 1);
    }
    // Shows it to whoever meets thread 0 at the next barrier.
    TTC_DEVICE void show() const {
        if (thread_index() == 0) shared_next = drawn + num_blocks();
    }
    TTC_DEVICE Keys next_keys() const {
        const int ticket = shared_next;
        return ticket < num_pairs() ? Keys::of(args, 0, ticket) : Keys::none();
    }
    TTC_DEVICE Keys take() {
        is_known = true;
        return next_keys();
    }
};

// A narrow or a wide unit.
template <typename T, int kDim, bool kIsWide>
TTC_DEVICE void attend_unit(const AttentionArgs& args, const Heads& heads, const Keys& keys, BlockRing<T, kDim>& ring,
                            LongQueue& queue) {
    constexpr int kKeys = kIsWide ? kWorkTokens : kWarpTile;
    const int thread = ring.thread, lane = thread % 32, warp = thread / 32;
    const int row = kIsWide ? 16 * warp : 0, first = kIsWide ? 0 : kKeys * warp;
    const Rows<T, kDim> rows(args, heads, unit_at(args, keys.unit), keys.kv_head);
    const QueryInRegisters<kDim> query(rows, row, lane);
    const LimitsInRegisters limits(rows, row, lane);
    Running<kDim> run[1];
    const int num_tiles = keys.num_tiles(kWorkTokens);
    for (int i = 0; i < num_tiles; ++i) {
        copy_wait<1>();   // this thread's part of tile i is there
        block_barrier();  // everyone's is, and everyone is done with tile i - 1, whose place is filled next
        if (i == 1) ring.next = queue.take();
        ring.start_ahead(keys, i, num_tiles, i > 0);
        if (row < rows.num_packed)
            add_tile<T, kDim, kWorkTokens, kKeys>(args, ring.stage(i), keys.kv_lo + i * kWorkTokens, first, lane, query,
                                                  limits, run);
        if (i == 0) queue.show();
    }
    if (kIsWide)
        store_rows(rows, row, lane, run[0]);
    else
        store_narrow(rows, ring.stage(num_tiles - 1), thread, run[0]);
}

// A tall unit: its queries lie in the third stage, and its tiles come through the other two. What is known of the unit
// is read again where it is needed: in between it would not fit the registers.
template <typename T, int kDim>
TTC_DEVICE void attend_tall_unit(const AttentionArgs& args, const Heads& heads, int unit, int kv_head,
                                 BlockRing<T, kDim>& ring, LongQueue& queue) {
    constexpr int kKeys = kWarpTile;  // at a time: the scores of more do not fit the registers
    const int thread = ring.thread, lane = thread % 32, row = thread / 32 * 32;
    const QueryInShared<kDim> query = {ring.stage(2), row, lane};
    const bool is_idle = row >= unit_at(args, unit).num_packed;
    const LimitsInList<T, kDim> limits = {args, heads, unit, row, lane};
    copy_queries(Rows<T, kDim>(args, heads, unit_at(args, unit), kv_head), ring.stage(2), thread);
    copy_commit();
    Running<kDim> run[2];
    const int num_tiles = Keys::of_unit(args, unit, kv_head).num_tiles(kWorkTokens);
    for (int i = 0; i < num_tiles; ++i) {
        copy_wait<0>();
        block_barrier();
        if (i > 0) {
            const bool is_next = i + 1 == num_tiles;
            const Keys keys = is_next ? queue.next_keys() : Keys::of_unit(args, unit, kv_head);
            ring.start(keys, is_next ? 0 : i + 1, (i + 1) % 2);
            ring.num_started = is_next;
        }
        const int token = unit_at(args, unit).kv_lo + i * kWorkTokens;
#pragma unroll 1
        for (int first = 0; first < kWorkTokens && !is_idle; first += kKeys)
            add_tile<T, kDim, kWorkTokens, kKeys>(args, ring.stage(i % 2), token, first, lane, query, limits, run);
        if (i == 0) queue.show();
    }
    const Rows<T, kDim> rows(args, heads, unit_at(args, unit), kv_head);
#pragma unroll
    for (int m = 0; m < 2; ++m) store_rows(rows, row + 16 * m, lane, run[m]);
}

// The block computes long units until the queue has no more.
template <typename T, int kDim>
TTC_DEVICE void attend_long_units(const AttentionArgs& args, const Heads& heads) {
    const int thread = thread_index(), lane = thread % 32, warp = thread / 32;
    LongQueue queue = {args, shared<kDim>().next};
    if (block_index() >= queue.num_pairs()) return;
    BlockRing<T, kDim> ring = {args, shared_memory(), thread};
    ring.next = Keys::of(args, 0, block_index());
    for (int unit = -1, kv_head = 0, first_stage = 0;;) {
        const Keys keys = ring.advance(first_stage);
        if (unit >= 0) {  // the unit before is merged while the tiles of this one come
            const int num = count_rows<kDim>(args, heads, unit_at(args, unit), kv_head, warp, kWarps, 0, warp, lane);
            merge_rows<T, kDim>(args, heads, num, warp, lane);
        }
        if (!keys.is_there()) return;
        unit = keys.unit, kv_head = keys.kv_head;
        queue.draw();
        const int num_packed = unit_at(args, unit).num_packed;
        if (num_packed <= kNarrowRows)
            attend_unit<T, kDim, false>(args, heads, keys, ring, queue);
        else if (num_packed <= kWideRows)
            attend_unit<T, kDim, true>(args, heads, keys, ring, queue);
        else
            attend_tall_unit(args, heads, unit, kv_head, ring, queue);
        block_barrier();  // the results are stored, and the ring is free but for the next unit's tiles
        if (!queue.is_known) ring.next = queue.take();
        const int num_tiles = Keys::of_unit(args, unit, kv_head).num_tiles(kWorkTokens);
        first_stage = unit_at(args, unit).num_packed > kWideRows ? num_tiles % 2 : num_tiles;
    }
}

// A unit that a warp computes alone.
template <typename T, int kDim>
TTC_DEVICE void attend_short_unit(const AttentionArgs& args, const Heads& heads, const Keys& keys,
                                  WarpRing<T, kDim>& ring) {
    const int lane = ring.thread;
    const Rows<T, kDim> rows(args, heads, unit_at(args, keys.unit), keys.kv_head);
    const QueryInRegisters<kDim> query(rows, 0, lane);
    const LimitsInRegisters limits(rows, 0, lane);
    Running<kDim> run[1];
    const int num_tiles = keys.num_tiles(kWarpTile);
    for (int i = 0; i < num_tiles; ++i) {
        copy_wait<1>();
        warp_barrier();
        ring.start_ahead(keys, i, num_tiles, true);
        add_tile<T, kDim, kWarpTile, kWarpTile>(args, ring.stage(i), keys.kv_lo + i * kWarpTile, 0, lane, query, limits,
                                                run);
    }
    store_rows(rows, 0, lane, run[0]);
}

// The queue of short units, some of them to a ticket. The warps of blocks that no long unit is left for have their own
// numbers for a first ticket; all others are drawn.
struct ShortQueue {
    const AttentionArgs& args;
    const int first_unit, num_pairs, at_once, num_tickets, num_idle_warps;

    TTC_DEVICE explicit ShortQueue(const AttentionArgs& a, const WorkHeader& header)
        : args(a), first_unit(header.num_long_units),
          num_pairs((header.num_units - header.num_long_units) * a.num_kv_heads), at_once(header.short_at_once),
          num_tickets((num_pairs + at_once - 1) / at_once),
          num_idle_warps(kWarps * (num_blocks() - min_int(num_blocks(), header.num_long_units * a.num_kv_heads))) {}

    // Lane 0 draws. Each warp that draws does so until it has drawn in vain once; the counter is 0 again then.
    TTC_DEVICE int draw(int lane) const {
        const int num_draws = num_tickets + kWarps * num_blocks() - num_idle_warps;
        const int at = header_of(args).queue_at + 1;
        return lane ? 0 : (int)count_up((uint32_t*)args.work + at, (uint32_t)num_draws - 1);
    }
    // What lane 0 has drawn, for all lanes.
    TTC_DEVICE int ticket(int drawn) const { return num_idle_warps + shuffle_from(drawn, 0); }
    TTC_DEVICE int first_ticket(int warp, int lane) const {
        const int place = (block_index() - num_blocks()) * kWarps + num_idle_warps + warp;
        return place >= 0 ? place : ticket(draw(lane));
    }
    TTC_DEVICE Keys keys(int pair) const {
        return pair < num_pairs ? Keys::of(args, first_unit, pair) : Keys::none();
    }
};

// Each warp computes short units until their queue has no more, and merges the rows of a ticket's units together.
template <typename T, int kDim>
TTC_DEVICE void attend_short_units(const AttentionArgs& args, const Heads& heads) {
    const int lane = thread_index() % 32, warp = thread_index() / 32;
    const ShortQueue queue(args, header_of(args));
    if (queue.num_pairs == 0) return;
    int ticket = queue.first_ticket(warp, lane);
    if (ticket >= queue.num_tickets) return;
    WarpRing<T, kDim> ring = {args, shared_memory() + warp * (kStages * kStageBytes<kDim> / kWarps), lane};
    ring.next = queue.keys(ticket * queue.at_once);
    int next = queue.ticket(queue.draw(lane)), first_stage = 0;
    for (; ticket < queue.num_tickets;) {
        const int drawn = next < queue.num_tickets ? queue.draw(lane) : 0;  // for the ticket after the next
        const int begin = ticket * queue.at_once, end = min_int(begin + queue.at_once, queue.num_pairs);
#pragma unroll 1
        for (int pair = begin; pair < end; ++pair) {
            const Keys keys = ring.advance(first_stage);
            ring.next = queue.keys(pair + 1 < end ? pair + 1 : next * queue.at_once);
            attend_short_unit(args, heads, keys, ring);
            warp_barrier();  // the result is stored, and everyone is done with the unit's tiles
            first_stage = keys.num_tiles(kWarpTile);
        }
        int num = 0;
#pragma unroll 1
        for (int pair = begin; pair < end; ++pair) {
            const Keys done = queue.keys(pair);
            num = count_rows<kDim>(args, heads, unit_at(args, done.unit), done.kv_head, 0, 1, num, warp, lane);
        }
        merge_rows<T, kDim>(args, heads, num, warp, lane);
        ticket = next;
        next = queue.ticket(drawn);
    }
}

// The result of rows that are in no unit is zeros. The grid's warps share them out.
TTC_DEVICE void clear_unseeing_rows(const AttentionArgs& args, int dim) {
    const WorkHeader& header = header_of(args);
    const int32_t *start = args.work + header.merge_start_at, *writers = args.work + header.writers_at;
    const int lane = thread_index() % 32, row_words = args.num_heads * dim / 2;
    for (int row = block_index() * kWarps + thread_index() / 32; row < header.num_rows; row += num_blocks() * kWarps) {
        if (writers[row] || start[row] < start[row + 1]) continue;
        uint32_t* const to = (uint32_t*)args.out + (int64_t)row * row_words;
        for (int i = lane; i < row_words; i += 32) to[i] = 0;
    }
}

template <typename T, int kDim>
TTC_KERNEL(kThreads) tree_attention_units(AttentionArgs args) {
    await_earlier_kernels();
    const Heads heads(args);
    attend_long_units<T, kDim>(args, heads);
    attend_short_units<T, kDim>(args, heads);
    clear_unseeing_rows(args, kDim);
}

// The work list may be replaced before a captured graph is replayed.
template <typename T, int kDim>
const char* tree_attention(const AttentionArgs& args, int64_t stream) {
    constexpr int64_t kManyBlocks = 1 << 30;  // more than any device holds at a time
    return launch(tree_attention_units<T, kDim>, {kManyBlocks, kThreads, kSharedBytes<kDim>}, true, stream, args);
}

}  // namespace gpu
}  // namespace ttc
