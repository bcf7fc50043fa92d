// Cuts an attention plan into units for the GPU; see work.h. No CUDA is needed here.
#include "cuda/work.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "common/views.h"

namespace ttc {
namespace {

constexpr int64_t kMinSplit = 128;  // below, the partial results cost as much traffic as the keys
// A warp alone takes units of up to so many tokens; of more where there are enough of them for all warps.
constexpr int64_t kShortTokens = 32, kMoreShortTokens = 128;
constexpr int32_t kMostShortAtOnce = 4, kWarpsOfBlock = 4;
constexpr int64_t kMostPairs = 1 << 28;  // of unit and KV head: a few of the kernel's tickets beyond still fit an int32
constexpr size_t kMostNarrowTiles = 64;  // of narrow items that are counted rather than listed

struct Item {
    int32_t row_lo, row_hi, block_offset, num_tokens, causal;

    int64_t num_rows() const { return int64_t(row_hi) - row_lo; }
    // Tokens of the node that a row sees.
    int64_t limit(int64_t row) const { return causal ? num_tokens - (row_hi - 1 - row) : num_tokens; }
    // The first row that sees token `kv_lo`; later rows see it too.
    int64_t first_row(int64_t kv_lo) const {
        return causal ? std::max<int64_t>(row_lo, int64_t(row_hi) - num_tokens + kv_lo) : row_lo;
    }
};

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

void fail_item(int64_t i, const Item& item, const char* why) {
    throw std::invalid_argument("attention_work: item " + std::to_string(i) + " (" + std::to_string(item.row_lo) +
                                ", " + std::to_string(item.row_hi) + ", " + std::to_string(item.block_offset) + ", " +
                                std::to_string(item.num_tokens) + ", " + std::to_string(item.causal) + ") " + why);
}

class WorkMaker {
public:
    WorkMaker(const int32_t* items, int64_t num_items, const WorkShape& shape)
        : items_(reinterpret_cast<const Item*>(items)), num_items_(num_items), shape_(shape),
          group_(shape.num_heads / shape.num_kv_heads) {}

    void check(const int32_t* blocks, int64_t num_block_ids) const {
        for (int64_t i = 0; i < num_items_; ++i) {
            const Item& item = items_[i];
            if (item.row_lo < 0 || item.row_lo >= item.row_hi || item.row_hi > shape_.num_rows)
                fail_item(i, item, "has rows outside q");
            const int64_t num = (int64_t(item.num_tokens) + shape_.block_size - 1) / shape_.block_size;
            if (item.block_offset < 0 || item.num_tokens < 1 || item.block_offset + num > num_block_ids)
                fail_item(i, item, "exceeds the plan's blocks");
        }
        for (int64_t i = 0; i < num_block_ids; ++i)
            if (blocks[i] < 0 || blocks[i] >= shape_.num_blocks)
                throw std::invalid_argument("attention_work: block " + std::to_string(blocks[i]) +
                                            " is outside the cache of " + std::to_string(shape_.num_blocks));
    }

    void make() {
        choose_tiling();
        count_parts();
        for (int64_t i = 0; i < num_items_; ++i) add_item(items_[i]);
        std::stable_sort(units_.begin(), units_.end(), [](const WorkUnit& a, const WorkUnit& b) {
            return unit_cost(a.num_packed, a.kv_hi - a.kv_lo) > unit_cost(b.num_packed, b.kv_hi - b.kv_lo);
        });
        num_long_units_ = int64_t(units_.size());
        units_.insert(units_.end(), short_units_.begin(), short_units_.end());
    }

    void write(const int32_t* blocks, int64_t num_block_ids, std::vector<int32_t>& buffer) const {
        constexpr int64_t kHeaderInts = (sizeof(WorkHeader) + 15) / 16 * 4, kUnitInts = sizeof(WorkUnit) / 4;
        const int64_t num_units = int64_t(units_.size()), num_rows = shape_.num_rows;
        const int64_t units_at = kHeaderInts, blocks_at = units_at + num_units * kUnitInts;
        const int64_t start_at = blocks_at + num_block_ids, slots_at = start_at + num_rows + 1;
        const int64_t writers_at = slots_at + int64_t(merge_slots_.size()), arrived_at = writers_at + num_rows;
        const int64_t queue_at = arrived_at + num_rows * shape_.num_kv_heads, num_ints = queue_at + 2;
        if (num_ints > INT32_MAX || num_slots_ > INT32_MAX || num_units * shape_.num_kv_heads > kMostPairs)
            throw std::invalid_argument("attention_work: a work list of " + std::to_string(num_ints) + " ints and " +
                                        std::to_string(num_slots_) + " partial results is too long");
        const int64_t num_short = (num_units - num_long_units_) * shape_.num_kv_heads;
        const int64_t at_once = num_short / (8 * std::max(1, shape_.num_wanted));
        const WorkHeader header = {int32_t(num_units),
                                   shape_.num_rows,
                                   int32_t(num_long_units_),
                                   int32_t(std::clamp<int64_t>(at_once, 1, kMostShortAtOnce)),
                                   int32_t(units_at),
                                   int32_t(blocks_at),
                                   int32_t(start_at),
                                   int32_t(slots_at),
                                   int32_t(num_slots_),
                                   int32_t(num_ints),
                                   int32_t(writers_at),
                                   int32_t(arrived_at),
                                   int32_t(queue_at)};
        buffer.assign(size_t(num_ints), 0);
        std::memcpy(buffer.data(), &header, sizeof header);
        if (num_units) std::memcpy(buffer.data() + units_at, units_.data(), units_.size() * sizeof(WorkUnit));
        std::copy(blocks, blocks + num_block_ids, buffer.begin() + blocks_at);
        std::copy(merge_start_.begin(), merge_start_.end(), buffer.begin() + start_at);
        std::copy(merge_slots_.begin(), merge_slots_.end(), buffer.begin() + slots_at);
        std::copy(num_writers_.begin(), num_writers_.end(), buffer.begin() + writers_at);
    }

private:
    int64_t num_packed(const Item& item) const { return item.num_rows() * group_; }

    // Items of one kind, of which there are `count`.
    struct Kind {
        int64_t packed, tokens, count;
    };
    // How many tokens and packed rows a unit has at most, and about how long all units then take.
    struct Tiling {
        int64_t split, rows, cost;
    };

    // What a block spends on a unit, in the time of half a token of a wide one: 128 rows take half as long again as 64,
    // and a unit's beginning and end, and the partial results of two rows, as long as 24 tokens and one.
    static int64_t unit_cost(int64_t packed, int64_t tokens) {
        return tokens * (packed > kWideRows ? 3 : 2) + 48 + packed;
    }

    static int64_t even_split(int64_t tokens, int64_t split) {
        const int64_t num_parts = (tokens + split - 1) / split;
        return round_up((tokens + num_parts - 1) / num_parts, kWorkTokens);
    }
    int64_t split_of(const Item& item) const { return even_split(item.num_tokens, tiling_.split); }

    bool is_short(int64_t packed, int64_t tokens) const { return packed <= kNarrowRows && tokens <= short_tokens_; }

    // The items that blocks compute, by kind: those of few rows by their number of tiles, the others one by one. A warp
    // alone computes a short one, in a quarter of a block's time, whatever the tiling.
    std::vector<Kind> kinds() {
        std::vector<Kind> found;
        int64_t narrow[kMostNarrowTiles + 1] = {}, num_short = 0;
        for (int64_t i = 0; i < num_items_; ++i)
            num_short += num_packed(items_[i]) <= kNarrowRows && items_[i].num_tokens <= kMoreShortTokens;
        const bool are_many = num_short * shape_.num_kv_heads >= 4 * int64_t(shape_.num_wanted);
        short_tokens_ = are_many ? kMoreShortTokens : kShortTokens;
        for (int64_t i = 0; i < num_items_; ++i) {
            const int64_t packed = num_packed(items_[i]), tokens = items_[i].num_tokens;
            const int64_t num_tiles = (tokens + kWorkTokens - 1) / kWorkTokens;
            if (is_short(packed, tokens))
                short_cost_ += unit_cost(packed, tokens) / kWarpsOfBlock;
            else if (packed <= kNarrowRows && num_tiles <= int64_t(kMostNarrowTiles))
                ++narrow[num_tiles];
            else
                found.push_back({packed, tokens, 1});
        }
        for (int64_t n = 1; n <= int64_t(kMostNarrowTiles); ++n)
            if (narrow[n]) found.push_back({kNarrowRows, n * kWorkTokens, narrow[n]});
        return found;
    }

    // Until the last block is done: as many rounds as the costliest units take, or the blocks' equal shares.
    Tiling weighed(const std::vector<Kind>& kinds, int64_t split, int64_t rows) const {
        int64_t total = short_cost_, longest = 0, num_longest = 0;
        for (const bool is_counting : {false, true})
            for (const Kind& kind : kinds) {
                const int64_t part = even_split(kind.tokens, split), num_parts = (kind.tokens + part - 1) / part;
                const int64_t tall = kind.packed / rows, rest = kind.packed % rows, tokens = std::min(part, kind.tokens);
                const int64_t costs[2] = {tall ? unit_cost(rows, tokens) : 0, rest ? unit_cost(rest, tokens) : 0};
                const int64_t counts[2] = {tall * num_parts * kind.count, num_parts * kind.count};
                for (int i = 0; i < 2; ++i) {
                    if (is_counting && 2 * costs[i] > longest) num_longest += counts[i];
                    if (!is_counting) longest = std::max(longest, costs[i]), total += costs[i] * counts[i];
                }
            }
        const int64_t num_blocks = std::max(1, shape_.num_wanted), heads = shape_.num_kv_heads;
        const int64_t num_rounds = (num_longest * heads + num_blocks - 1) / num_blocks;
        return {split, rows, std::max(num_rounds * longest, total * heads / num_blocks)};
    }

    // Chooses how many tokens and rows a unit has: the larger, the less is read again and merged, if there are units
    // enough for all blocks.
    void choose_tiling() {
        const std::vector<Kind> all = kinds();
        tiling_ = {round_up(shape_.split_tokens, kWorkTokens), kTallRows, 0};
        if (tiling_.split) return;
        int64_t most_packed = 0, most_tokens = kMinSplit;
        for (const Kind& kind : all)
            most_packed = std::max(most_packed, kind.packed), most_tokens = std::max(most_tokens, kind.tokens);
        for (const int64_t rows : {int64_t(kTallRows), int64_t(kWideRows)}) {
            if (rows > kWideRows && most_packed <= kWideRows) continue;
            int64_t total = 0;
            for (const Kind& kind : all) total += (kind.packed + rows - 1) / rows * kind.tokens * kind.count;
            const int64_t share = total * shape_.num_kv_heads / std::max(1, shape_.num_wanted);
            for (const int64_t wanted : {2 * share, share, share / 2, share / 4}) {
                const int64_t split = round_up(std::clamp(wanted, kMinSplit, most_tokens), kWorkTokens);
                const Tiling tiling = weighed(all, split, rows);
                if (!tiling_.split || tiling.cost < tiling_.cost) tiling_ = tiling;
            }
        }
    }

    // How many parts each row's softmax comes in, and where their slots go in merge_slots.
    void count_parts() {
        num_parts_.assign(size_t(shape_.num_rows), 0);
        num_writers_.assign(size_t(shape_.num_rows), 0);
        for (int64_t i = 0; i < num_items_; ++i)
            for (int64_t kv_lo = 0, split = split_of(items_[i]); kv_lo < items_[i].num_tokens; kv_lo += split)
                for (int64_t row = items_[i].first_row(kv_lo); row < items_[i].row_hi; ++row) ++num_parts_[size_t(row)];
        merge_start_.assign(size_t(shape_.num_rows) + 1, 0);
        for (int64_t row = 0; row < shape_.num_rows; ++row)
            merge_start_[size_t(row) + 1] = merge_start_[size_t(row)] + num_parts_[size_t(row)];
        merge_slots_.resize(size_t(merge_start_.back()));
        next_.assign(merge_start_.begin(), merge_start_.end() - 1);
    }

    // Whether the item is all that each of its rows sees, in one part.
    bool is_direct(const Item& item) const {
        if (item.num_tokens > split_of(item) || item.first_row(0) != item.row_lo || item.limit(item.row_lo) < 1) return false;
        return std::all_of(num_parts_.begin() + item.row_lo, num_parts_.begin() + item.row_hi,
                           [](int32_t parts) { return parts == 1; });
    }

    void add_item(const Item& item) {
        const bool direct = is_direct(item);
        for (int64_t kv_lo = 0, split = split_of(item); kv_lo < item.num_tokens; kv_lo += split) {
            const int64_t kv_hi = std::min<int64_t>(item.num_tokens, kv_lo + split);
            for (int64_t row = item.first_row(kv_lo); row < item.row_hi; ++row)
                merge_slots_[size_t(next_[size_t(row)]++)] =
                    direct ? kDirect : int32_t(num_slots_ + row - item.row_lo);
            add_units(item, kv_lo, kv_hi, direct ? kDirect : int32_t(num_slots_));
            if (!direct) num_slots_ += item.num_rows();
            if (num_slots_ > INT32_MAX) return;  // write() refuses it
        }
    }

    // One unit for every tile of packed rows that sees a token at all.
    void add_units(const Item& item, int64_t kv_lo, int64_t kv_hi, int32_t slot_base) {
        const int64_t total = num_packed(item);
        for (int64_t packed_lo = 0; packed_lo < total;) {
            const int64_t left = total - packed_lo;
            const int64_t count = std::min(left, tiling_.rows);
            const int64_t last_row = item.row_lo + (packed_lo + count - 1) / group_;
            const int64_t end = std::min(kv_hi, item.limit(last_row));
            const int32_t causal_add = item.causal ? item.num_tokens - item.row_hi + 1 : kAllTokens;
            if (end > kv_lo) {
                (is_short(count, end - kv_lo) ? short_units_ : units_)
                    .push_back({item.row_lo, int32_t(packed_lo), int32_t(count), item.block_offset, int32_t(kv_lo),
                                int32_t(end), causal_add, slot_base});
                for (int64_t row = item.row_lo + packed_lo / group_; slot_base != kDirect && row <= last_row; ++row)
                    ++num_writers_[size_t(row)];
            }
            packed_lo += count;
        }
    }

    const Item* items_;
    const int64_t num_items_;
    const WorkShape& shape_;
    const int64_t group_;
    Tiling tiling_ = {};
    int64_t short_tokens_ = kShortTokens, short_cost_ = 0, num_long_units_ = 0, num_slots_ = 0;
    std::vector<int32_t> num_parts_, num_writers_, merge_start_, merge_slots_, next_;
    std::vector<WorkUnit> units_, short_units_;
};

}  // namespace

void make_work(const int32_t* items, int64_t num_items, const int32_t* blocks, int64_t num_block_ids,
               const WorkShape& shape, std::vector<int32_t>& buffer) {
    if (shape.num_rows < 0 || shape.num_rows >= kAllTokens || shape.num_kv_heads < 1 || shape.num_heads < 1 ||
        shape.num_heads % shape.num_kv_heads || shape.block_size < 1 || shape.split_tokens < 0 ||
        int64_t(shape.num_rows) * shape.num_heads / shape.num_kv_heads > INT32_MAX / (shape.num_heads / shape.num_kv_heads))
        throw std::invalid_argument(
            "attention_work: num_rows " + std::to_string(shape.num_rows) + ", num_heads " +
            std::to_string(shape.num_heads) + ", num_kv_heads " + std::to_string(shape.num_kv_heads) +
            ", block_size " + std::to_string(shape.block_size) + ", split_tokens " +
            std::to_string(shape.split_tokens));
    WorkMaker maker(items, num_items, shape);
    maker.check(blocks, num_block_ids);
    maker.make();
    maker.write(blocks, num_block_ids, buffer);
}

}  // namespace ttc

void bind_attention_work(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "attention_work",
        [](const ttc::PlanView& plan, int32_t num_rows, int32_t num_heads, int32_t num_kv_heads, int64_t num_blocks,
           int32_t block_size, int32_t num_wanted, int32_t split_tokens) {
            plan.check("attention_work");
            std::vector<int32_t> buffer;
            ttc::make_work(plan.items.data(), plan.num_items(), plan.blocks.data(), plan.num_block_ids(),
                           {num_rows, num_heads, num_kv_heads, num_blocks, block_size, num_wanted, split_tokens},
                           buffer);
            return ttc::PlanView::Array(static_cast<py::ssize_t>(buffer.size()), buffer.data());
        },
        py::arg("plan"), py::kw_only(), py::arg("num_rows"), py::arg("num_heads"), py::arg("num_kv_heads"),
        py::arg("num_blocks"), py::arg("block_size"), py::arg("num_wanted") = 264, py::arg("split_tokens") = 0,
        R"(The GPU's work list of a plan, int32: a WorkHeader, then what its offsets point to; see csrc/cuda/work.h.

A node's tokens are split into units of at most `split_tokens` (0: as suits about `num_wanted` blocks).)");
}
