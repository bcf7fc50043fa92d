#include "kv_tree/kv_tree.h"

#include <algorithm>
#include <cassert>
#include <tuple>

namespace ttc {

namespace {

// A handle is generation << kIndexBits | index. A closed index waits until this many others were closed too before
// it is used again, and 2^13 generations pass before a handle value comes back, so that a stale handle is told from
// a live one for the next 8 million opens at least.
constexpr int kIndexBits = 18;
constexpr int32_t kMaxBranches = 1 << kIndexBits;
constexpr int32_t kMaxGeneration = (1 << (31 - kIndexBits)) - 1;
constexpr int64_t kMinClosed = 1024;

[[noreturn]] void reject(const std::string& what) { throw std::invalid_argument(what); }

void check_same_size(const char* name, Int32View values, Int32View handles) {
    if (values.size != handles.size)
        reject(std::string(name) + " must have one entry per handle, got " + std::to_string(values.size) + " for " +
               std::to_string(handles.size) + " handles");
}

}  // namespace

OutOfBlocks::OutOfBlocks(int64_t needed, int64_t available, int64_t total)
    : std::runtime_error("KV pool out of blocks: " + std::to_string(needed) + " needed, " +
                         std::to_string(available) + " available (free or evictable) of " + std::to_string(total)),
      num_needed(needed),
      num_available(available) {}

KVTree::KVTree(int64_t num_blocks, int64_t block_size) : block_size_(static_cast<int32_t>(block_size)) {
    if (num_blocks < 1) reject("num_blocks must be >= 1, got " + std::to_string(num_blocks));
    if (block_size < 1) reject("block_size must be >= 1, got " + std::to_string(block_size));
    if (num_blocks > INT32_MAX / block_size)
        reject("slots must fit in 31 bits, got " + std::to_string(num_blocks) + " blocks of " +
               std::to_string(block_size));
    next_block_.resize(num_blocks);
    for (int64_t i = 0; i < num_blocks; ++i) next_block_[i] = static_cast<int32_t>(i + 1);
    next_block_.back() = kNone;
    num_free_blocks_ = num_blocks;
    token_at_.resize(num_blocks * block_size);
    nodes_.reserve(num_blocks + 1);  // every node but the root owns a block, so none is ever moved
    nodes_.emplace_back();
    nodes_[kRoot].is_used = true;
}

// ---- handles

int32_t KVTree::index_of(int32_t handle) const {
    const int32_t index = handle & (kMaxBranches - 1);
    if (handle < 0 || index >= static_cast<int32_t>(branches_.size()) || !branches_[index].is_open ||
        branches_[index].generation != handle >> kIndexBits)
        reject("handle " + std::to_string(handle) + " is not an open branch");
    return index;
}

int32_t KVTree::new_handle(int32_t node, int32_t num_reused, bool is_at_cut) {
    int32_t index;
    if (num_closed_ >= kMinClosed || (num_closed_ > 0 && branches_.size() == kMaxBranches)) {
        index = first_closed_;
        first_closed_ = branches_[index].node;
        if (first_closed_ == kNone) last_closed_ = kNone;
        --num_closed_;
    } else {
        if (branches_.size() == kMaxBranches)
            reject("at most " + std::to_string(kMaxBranches) + " branches can be open");
        index = static_cast<int32_t>(branches_.size());
        branches_.emplace_back();
    }
    Branch& branch = branches_[index];
    branch.node = node;
    branch.num_reused = num_reused;
    branch.is_open = true;
    branch.is_at_cut = is_at_cut;
    ++num_open_;
    return branch.generation << kIndexBits | index;
}

KVTree::Branch& KVTree::mark_once(int32_t handle, uint64_t mark) {
    Branch& b = branch(handle);
    if (b.mark == mark) reject("handle " + std::to_string(handle) + " is named twice in one call");
    b.mark = mark;
    return b;
}

// ---- calls

std::pair<int32_t, int32_t> KVTree::open(Int32View tokens, bool reuse) {
    int32_t node = kRoot, num_cached = 0;
    if (reuse) std::tie(node, num_cached) = find_prefix(tokens);
    const int32_t handle = new_handle(node, num_cached, false);
    if (num_cached < nodes_[node].end()) {
        split(node, num_cached - nodes_[node].start);
        node = nodes_[node].parent;
        branch(handle).node = node;
    }
    acquire(node);
    return {handle, num_cached};
}

void KVTree::extend(Int32View handles, Int32View counts, Int32View tokens) {
    const int64_t num_needed = count_needed(handles, counts);
    int64_t num_given = 0;
    for (int64_t i = 0; i < counts.size; ++i) num_given += counts[i];
    if (num_given != tokens.size)
        reject("counts add up to " + std::to_string(num_given) + ", got " + std::to_string(tokens.size) + " tokens");
    if (num_needed > num_free_blocks_ + num_cached_blocks_)
        throw OutOfBlocks(num_needed, num_free_blocks_ + num_cached_blocks_, num_blocks());
    evict_until(num_needed);
    const int32_t* next = tokens.data;
    for (int64_t i = 0; i < handles.size; ++i) {
        if (counts[i] > 0) append(branch(handles[i]), next, counts[i]);
        next += counts[i];
    }
}

void KVTree::rewrite(Int32View handles, Int32View num_dropped, Int32View counts, Int32View tokens) {
    check_rewrite(handles, num_dropped, counts, tokens);
    const int32_t* next = tokens.data;
    for (int64_t i = 0; i < handles.size; ++i) {
        Branch& b = branch(handles[i]);
        Node& node = nodes_[b.node];
        if (num_dropped[i] == node.num_tokens) {
            leave_node(b);
            continue;
        }
        if (num_dropped[i] > 0) shorten(node, node.num_tokens - num_dropped[i]);
        int32_t at = node.num_tokens - counts[i];
        int32_t block = counts[i] > 0 ? block_at(node, at / block_size_) : kNone;
        for (; at < node.num_tokens; ++at) {
            token_at_[static_cast<int64_t>(block) * block_size_ + at % block_size_] = *next++;
            if ((at + 1) % block_size_ == 0) block = next_block_[block];
        }
    }
}

void KVTree::check_rewrite(Int32View handles, Int32View num_dropped, Int32View counts, Int32View tokens) {
    check_same_size("num_dropped", num_dropped, handles);
    check_same_size("counts", counts, handles);
    const uint64_t mark = ++mark_;
    int64_t num_given = 0;
    for (int64_t i = 0; i < handles.size; ++i) {
        const Branch& b = mark_once(handles[i], mark);
        // Of the node's tokens those that open() found in the cache were not appended.
        const Node& node = nodes_[b.node];
        const int64_t own = is_growing_in_place(b) ? node.end() - std::max(node.start, b.num_reused) : 0;
        // The one that stays may stand at the end of the parent, where open() for another branch has split the node.
        const bool has_more = !node.starts_at_cut && node.start > b.num_reused;
        const int64_t most_dropped = has_more ? own : std::max<int64_t>(own - 1, 0);
        if (num_dropped[i] < 0 || counts[i] < 0 || num_dropped[i] > most_dropped ||
            int64_t{num_dropped[i]} + counts[i] > own)
            reject("of the " + std::to_string(own) + " tokens appended to handle " + std::to_string(handles[i]) +
                   " since its last cut one must stay, got " + std::to_string(num_dropped[i]) +
                   " to drop and " + std::to_string(counts[i]) + " to name before them");
        num_given += counts[i];
    }
    if (num_given != tokens.size)
        reject("counts add up to " + std::to_string(num_given) + ", got " + std::to_string(tokens.size) + " tokens");
}

void KVTree::fork(int32_t handle, int64_t num_children, int32_t* children) {
    const int32_t index = index_of(handle);
    if (num_children < 1) reject("the number of children must be >= 1, got " + std::to_string(num_children));
    if (num_open_ + num_children > kMaxBranches)
        reject("at most " + std::to_string(kMaxBranches) + " branches can be open, got " +
               std::to_string(num_children) + " more on top of " + std::to_string(num_open_));
    branches_[index].is_at_cut = true;
    const Branch parent = branches_[index];  // a copy: new_handle moves the table
    for (int64_t i = 0; i < num_children; ++i) children[i] = new_handle(parent.node, parent.num_reused, true);
    nodes_[parent.node].num_handles += static_cast<int32_t>(num_children);
}

void KVTree::cut(int32_t handle) { branch(handle).is_at_cut = true; }

void KVTree::close(int32_t handle, bool keep) {
    const int32_t index = index_of(handle);
    Branch& closed = branches_[index];
    release(closed.node, keep);
    closed.is_open = false;
    closed.generation = closed.generation == kMaxGeneration ? 0 : closed.generation + 1;
    closed.node = kNone;
    if (last_closed_ == kNone)
        first_closed_ = index;
    else
        branches_[last_closed_].node = index;
    last_closed_ = index;
    ++num_closed_;
    --num_open_;
}

int32_t KVTree::num_tokens(int32_t handle) const { return nodes_[branch(handle).node].end(); }

std::vector<int32_t> KVTree::tokens(int32_t handle) const {
    int32_t id = branch(handle).node;
    std::vector<int32_t> out(nodes_[id].end());
    for (; id != kRoot; id = nodes_[id].parent) {
        const Node& node = nodes_[id];
        int32_t* to = out.data() + node.start;
        int32_t left = node.num_tokens;
        for (int32_t block = node.first_block; left > 0; block = next_block_[block]) {
            const int32_t count = std::min(left, block_size_);
            const int32_t* from = token_at_.data() + static_cast<int64_t>(block) * block_size_;
            to = std::copy(from, from + count, to);
            left -= count;
        }
    }
    return out;
}

std::vector<int32_t> KVTree::cuts(int32_t handle) const {
    const Branch& b = branch(handle);
    std::vector<int32_t> out;
    if (b.is_at_cut && nodes_[b.node].end() > 0) out.push_back(nodes_[b.node].end());
    // Nodes that start before the branch's own first token came with a cached prefix.
    for (int32_t id = b.node; id != kRoot && nodes_[id].start >= b.num_reused; id = nodes_[id].parent)
        if (nodes_[id].starts_at_cut) out.push_back(nodes_[id].start);
    std::reverse(out.begin(), out.end());
    return out;
}

int64_t KVTree::blocks_needed(Int32View handles, Int32View counts) { return count_needed(handles, counts); }

int64_t KVTree::unique_tokens(Int32View handles) {
    const uint64_t mark = ++mark_;
    plan_nodes_.resize(nodes_.size());
    int64_t sum = 0;
    for (int64_t i = 0; i < handles.size; ++i) {
        int32_t id = branch(handles[i]).node;
        for (; id != kRoot && plan_nodes_[id].mark != mark; id = nodes_[id].parent) {
            plan_nodes_[id].mark = mark;
            sum += nodes_[id].num_tokens;
        }
    }
    return sum;
}

int64_t KVTree::path_tokens(Int32View handles) const {
    int64_t sum = 0;
    for (int64_t i = 0; i < handles.size; ++i) sum += num_tokens(handles[i]);
    return sum;
}

void KVTree::clear_cache() {
    while (cache_first_ != kNone) free_node(cache_first_);
}

// ---- growth

bool KVTree::is_growing_in_place(const Branch& branch) const {
    const Node& node = nodes_[branch.node];
    return !branch.is_at_cut && branch.node != kRoot && node.num_handles == 1 && node.first_child == kNone;
}

int64_t KVTree::count_needed(Int32View handles, Int32View counts) {
    check_same_size("counts", counts, handles);
    const uint64_t mark = ++mark_;
    int64_t num_needed = 0;
    for (int64_t i = 0; i < handles.size; ++i) {
        const Branch& b = mark_once(handles[i], mark);
        if (counts[i] < 0)
            reject("counts must be >= 0, got " + std::to_string(counts[i]) + " for handle " +
                   std::to_string(handles[i]));
        if (counts[i] == 0) continue;
        const Node& node = nodes_[b.node];
        num_needed += is_growing_in_place(b)
                          ? blocks_for(static_cast<int64_t>(node.num_tokens) + counts[i]) - blocks_of(node)
                          : blocks_for(counts[i]);
    }
    return num_needed;
}

void KVTree::append(Branch& branch, const int32_t* tokens, int32_t count) {
    if (!is_growing_in_place(branch)) {
        const int32_t parent = branch.node, start = nodes_[parent].end();
        const int32_t child = new_node(parent, start);
        nodes_[child].starts_at_cut = branch.is_at_cut && start > 0;
        // The branch moves down before it leaves, so that its old node is live throughout.
        acquire(child);
        --nodes_[parent].num_handles;
        branch.node = child;
        branch.is_at_cut = false;
    }
    Node& node = nodes_[branch.node];
    int32_t used = node.num_tokens % block_size_;  // of the last block; 0 when it is full, or there is none
    node.num_tokens += count;
    while (count > 0) {
        if (used == 0) {
            const int32_t block = take_block();
            (node.first_block == kNone ? node.first_block : next_block_[node.last_block]) = block;
            node.last_block = block;
        }
        const int32_t taken = std::min(count, block_size_ - used);
        std::copy_n(tokens, taken, token_at_.data() + static_cast<int64_t>(node.last_block) * block_size_ + used);
        tokens += taken;
        count -= taken;
        used = 0;
    }
}

// Takes back all tokens of a node that the branch alone holds: it ends with the parent again.
void KVTree::leave_node(Branch& branch) {
    const int32_t node = branch.node;
    branch.node = nodes_[node].parent;
    acquire(branch.node);
    release(node, false);
}

int32_t KVTree::block_at(const Node& node, int32_t index) const {
    int32_t block = node.first_block;
    for (; index > 0; --index) block = next_block_[block];
    return block;
}

// Gives back the blocks behind the node's first num_tokens (at least 1) tokens.
void KVTree::shorten(Node& node, int32_t num_tokens) {
    const int32_t last = block_at(node, blocks_for(num_tokens) - 1), num_before = blocks_of(node);
    node.num_tokens = num_tokens;
    if (last == node.last_block) return;
    next_block_[node.last_block] = first_free_block_;
    first_free_block_ = next_block_[last];
    next_block_[last] = kNone;
    node.last_block = last;
    num_free_blocks_ += num_before - blocks_of(node);
}

int32_t KVTree::take_block() {
    const int32_t block = first_free_block_;
    assert(block != kNone);
    first_free_block_ = next_block_[block];
    next_block_[block] = kNone;
    --num_free_blocks_;
    return block;
}

void KVTree::evict_until(int64_t num_free) {
    while (num_free_blocks_ < num_free) free_node(cache_first_);
}

}  // namespace ttc
