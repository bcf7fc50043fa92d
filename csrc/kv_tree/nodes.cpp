// Nodes of the KV tree: links, prefix search, and what is live, cached or free.
#include <algorithm>
#include <cassert>

#include "kv_tree/kv_tree.h"

namespace ttc {

int32_t KVTree::new_node(int32_t parent, int32_t start) {
    int32_t id;
    if (unused_nodes_.empty()) {
        id = static_cast<int32_t>(nodes_.size());
        nodes_.emplace_back();
    } else {
        id = unused_nodes_.back();
        unused_nodes_.pop_back();
        nodes_[id] = Node();
    }
    nodes_[id].is_used = true;
    nodes_[id].start = start;
    link_child(parent, id);
    return id;
}

void KVTree::link_child(int32_t parent, int32_t child) {
    Node& node = nodes_[child];
    node.parent = parent;
    node.prev_sibling = kNone;
    node.next_sibling = nodes_[parent].first_child;
    if (node.next_sibling != kNone) nodes_[node.next_sibling].prev_sibling = child;
    nodes_[parent].first_child = child;
}

void KVTree::unlink_child(int32_t child) {
    const Node& node = nodes_[child];
    (node.prev_sibling == kNone ? nodes_[node.parent].first_child : nodes_[node.prev_sibling].next_sibling) =
        node.next_sibling;
    if (node.next_sibling != kNone) nodes_[node.next_sibling].prev_sibling = node.prev_sibling;
}

// Gives the first num_tokens tokens (whole blocks) of a node to a new parent between it and its old one. The lower
// part keeps the id, and so its handles and children.
void KVTree::split(int32_t id, int32_t num_tokens) {
    assert(num_tokens > 0 && num_tokens < nodes_[id].num_tokens && num_tokens % block_size_ == 0);
    const int32_t upper_id = new_node(nodes_[id].parent, nodes_[id].start);
    Node& upper = nodes_[upper_id];
    Node& lower = nodes_[id];
    unlink_child(id);
    upper.num_tokens = num_tokens;
    upper.starts_at_cut = lower.starts_at_cut;
    upper.first_block = upper.last_block = lower.first_block;
    for (int32_t i = num_tokens / block_size_; i > 1; --i) upper.last_block = next_block_[upper.last_block];
    lower.first_block = next_block_[upper.last_block];
    next_block_[upper.last_block] = kNone;
    lower.start += num_tokens;
    lower.num_tokens -= num_tokens;
    lower.starts_at_cut = false;
    link_child(upper_id, id);
    if (lower.is_live()) {
        upper.num_live_children = 1;
        return;
    }
    // Just after the lower part, which keeps its age: children are evicted first.
    upper.cache_prev = id;
    upper.cache_next = lower.cache_next;
    (lower.cache_next == kNone ? cache_last_ : nodes_[lower.cache_next].cache_prev) = upper_id;
    lower.cache_next = upper_id;
}

int32_t KVTree::num_matching(const Node& node, Int32View tokens) const {
    const int32_t limit = static_cast<int32_t>(std::min<int64_t>(node.num_tokens, tokens.size - node.start));
    const int32_t* wanted = tokens.data + node.start;
    int32_t block = node.first_block;
    for (int32_t done = 0; done < limit; done += block_size_, block = next_block_[block]) {
        const int32_t* have = token_at_.data() + static_cast<int64_t>(block) * block_size_;
        for (int32_t i = 0; i < std::min(block_size_, limit - done); ++i)
            if (have[i] != wanted[done + i]) return done + i;
    }
    return limit;
}

// The node in which the longest cached prefix ends, and the prefix's length: whole blocks counted from the prompt's
// start. Nodes may repeat their siblings, so every fully matching child is followed.
std::pair<int32_t, int32_t> KVTree::find_prefix(Int32View tokens) const {
    std::pair<int32_t, int32_t> best{kRoot, 0};
    std::vector<int32_t> parents{kRoot};
    while (!parents.empty()) {
        const int32_t parent = parents.back();
        parents.pop_back();
        for (int32_t id = nodes_[parent].first_child; id != kNone; id = nodes_[id].next_sibling) {
            const Node& node = nodes_[id];
            const int32_t matching = num_matching(node, tokens);
            const int32_t whole = matching / block_size_ * block_size_;
            if (whole > 0 && node.start + whole > best.second) best = {id, node.start + whole};
            if (whole == node.num_tokens && node.first_child != kNone) parents.push_back(id);
        }
    }
    return best;
}

void KVTree::acquire(int32_t id) {
    bool was_live = nodes_[id].is_live();
    ++nodes_[id].num_handles;
    while (!was_live && id != kRoot) {
        // A node made a moment ago is not in the cache list and has no blocks yet.
        if (nodes_[id].num_tokens > 0) cache_remove(id);
        id = nodes_[id].parent;
        was_live = nodes_[id].is_live();
        ++nodes_[id].num_live_children;
    }
}

void KVTree::release(int32_t id, bool keep) {
    --nodes_[id].num_handles;
    while (id != kRoot && !nodes_[id].is_live()) {
        const int32_t parent = nodes_[id].parent;
        cache_append(id);
        if (!keep && nodes_[id].first_child == kNone) free_node(id);
        --nodes_[parent].num_live_children;
        id = parent;
    }
}

void KVTree::cache_append(int32_t id) {
    Node& node = nodes_[id];
    node.cache_prev = cache_last_;
    node.cache_next = kNone;
    (cache_last_ == kNone ? cache_first_ : nodes_[cache_last_].cache_next) = id;
    cache_last_ = id;
    num_cached_blocks_ += blocks_of(node);
}

void KVTree::cache_remove(int32_t id) {
    const Node& node = nodes_[id];
    (node.cache_prev == kNone ? cache_first_ : nodes_[node.cache_prev].cache_next) = node.cache_next;
    (node.cache_next == kNone ? cache_last_ : nodes_[node.cache_next].cache_prev) = node.cache_prev;
    num_cached_blocks_ -= blocks_of(node);
}

void KVTree::free_node(int32_t id) {
    assert(id != kRoot && !nodes_[id].is_live() && nodes_[id].first_child == kNone);
    cache_remove(id);
    unlink_child(id);
    Node& node = nodes_[id];
    next_block_[node.last_block] = first_free_block_;
    first_free_block_ = node.first_block;
    num_free_blocks_ += blocks_of(node);
    node.is_used = false;
    unused_nodes_.push_back(id);
}

// ---- check_integrity

namespace {

void require(bool holds, const std::string& sentence) {
    if (!holds) throw std::runtime_error("KV tree is broken: " + sentence);
}

}  // namespace

void KVTree::check_integrity() const {
    std::vector<char> is_block_seen(next_block_.size(), 0);
    check_nodes(is_block_seen);
    check_handles();
    check_cache();
    int64_t num_free = 0;
    for (int32_t block = first_free_block_; block != kNone; block = next_block_[block]) {
        require(!is_block_seen[block], "block " + std::to_string(block) + " is free and owned, or free twice");
        is_block_seen[block] = 1;
        ++num_free;
    }
    require(num_free == num_free_blocks_, "the free list holds " + std::to_string(num_free) +
                                              " blocks, the count says " + std::to_string(num_free_blocks_));
    const int64_t num_seen = std::count(is_block_seen.begin(), is_block_seen.end(), 1);
    require(num_seen == num_blocks(), std::to_string(num_blocks() - num_seen) + " blocks are neither free nor owned");
}

void KVTree::check_nodes(std::vector<char>& is_block_seen) const {
    std::vector<int32_t> pending{kRoot};
    size_t num_reached = 0;
    while (!pending.empty()) {
        const int32_t id = pending.back();
        pending.pop_back();
        require(++num_reached <= nodes_.size(), "node links form a loop");
        check_node(id, is_block_seen);
        int32_t num_live = 0, prev = kNone;
        for (int32_t child = nodes_[id].first_child; child != kNone; child = nodes_[child].next_sibling) {
            const std::string name = "node " + std::to_string(child);
            require(nodes_[child].parent == id && nodes_[child].prev_sibling == prev, name + " is linked wrongly");
            require(nodes_[child].start == nodes_[id].end(), name + " does not start where its parent ends");
            num_live += nodes_[child].is_live();
            pending.push_back(child);
            prev = child;
        }
        require(num_live == nodes_[id].num_live_children,
                "node " + std::to_string(id) + " has " + std::to_string(num_live) + " live children, the count says " +
                    std::to_string(nodes_[id].num_live_children));
    }
    require(num_reached + unused_nodes_.size() == nodes_.size(), "some nodes are neither in the tree nor unused");
    for (const int32_t id : unused_nodes_)
        require(!nodes_[id].is_used, "node " + std::to_string(id) + " is in use and unused");
}

void KVTree::check_node(int32_t id, std::vector<char>& is_block_seen) const {
    const Node& node = nodes_[id];
    const std::string name = "node " + std::to_string(id);
    require(node.is_used, name + " is in the tree and unused");
    if (id == kRoot) {
        require(node.num_tokens == 0 && node.start == 0 && node.first_block == kNone, "the root holds tokens");
        return;
    }
    require(node.num_tokens > 0, name + " is empty");
    int32_t num_owned = 0, last = kNone;
    for (int32_t block = node.first_block; block != kNone; block = next_block_[block]) {
        require(!is_block_seen[block], "block " + std::to_string(block) + " is owned twice");
        is_block_seen[block] = 1;
        last = block;
        ++num_owned;
    }
    require(last == node.last_block, name + " names a wrong last block");
    require(num_owned == blocks_of(node), name + " owns " + std::to_string(num_owned) + " blocks for " +
                                              std::to_string(node.num_tokens) + " tokens");
}

void KVTree::check_handles() const {
    std::vector<int32_t> num_handles(nodes_.size(), 0);
    int64_t num_open = 0;
    for (const Branch& branch : branches_) {
        if (!branch.is_open) continue;
        ++num_open;
        const Node& node = nodes_[branch.node];
        require(node.is_used, "an open branch stands on unused node " + std::to_string(branch.node));
        ++num_handles[branch.node];
        // Otherwise the next token would start a node, and a tile, that the branch never asked for.
        require(branch.is_at_cut || (node.num_handles == 1 && node.first_child == kNone) ||
                    node.end() % block_size_ == 0,
                "a branch without a cut shares the end of node " + std::to_string(branch.node));
    }
    require(num_open == num_open_, std::to_string(num_open) + " branches are open, the count says " +
                                       std::to_string(num_open_));
    for (size_t id = 0; id < nodes_.size(); ++id)
        require(!nodes_[id].is_used || num_handles[id] == nodes_[id].num_handles,
                "node " + std::to_string(id) + " has " + std::to_string(num_handles[id]) +
                    " handles, the count says " + std::to_string(nodes_[id].num_handles));
    int64_t num_closed = 0;
    for (int32_t i = first_closed_; i != kNone; i = branches_[i].node, ++num_closed)
        require(!branches_[i].is_open && num_closed < num_closed_, "the list of closed handles is broken");
    require(num_closed == num_closed_ && num_open + num_closed == static_cast<int64_t>(branches_.size()),
            "some handles are neither open nor closed");
}

void KVTree::check_cache() const {
    std::vector<char> is_cached(nodes_.size(), 0);
    int64_t num_cached_blocks = 0;
    int32_t prev = kNone;
    for (int32_t id = cache_first_; id != kNone; id = nodes_[id].cache_next) {
        const Node& node = nodes_[id];
        const std::string name = "node " + std::to_string(id);
        require(node.is_used && !node.is_live(), name + " is cached, but in use or live");
        require(!is_cached[id] && node.cache_prev == prev, name + " is linked wrongly into the cache list");
        require(!is_cached[node.parent], name + " would be evicted after its parent");
        is_cached[id] = 1;
        num_cached_blocks += blocks_of(node);
        prev = id;
    }
    require(prev == cache_last_, "the cache list does not end at its last node");
    for (size_t id = 1; id < nodes_.size(); ++id)
        require(!nodes_[id].is_used || nodes_[id].is_live() || is_cached[id],
                "node " + std::to_string(id) + " is neither live nor cached");
    require(num_cached_blocks == num_cached_blocks_, "cached nodes hold " + std::to_string(num_cached_blocks) +
                                                         " blocks, the count says " +
                                                         std::to_string(num_cached_blocks_));
}

}  // namespace ttc
