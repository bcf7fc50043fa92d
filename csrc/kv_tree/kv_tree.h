// The KV tree: which slot of a block pool holds the KV of which token of which branch.
//
// A node is a run of tokens; it owns whole blocks and starts in a fresh one, so a fork copies no KV. A handle is
// an open branch, which always ends where its node ends. Node 0 is the root: no tokens, no blocks. A node is
// live while an open branch passes through it; other nodes stay as cached prefixes until they are evicted.
// A slot is block * block_size + offset. Not thread-safe: one owner.
//
// Cuts. Attention reduces in tiles of block_size keys counted from each node's start, so where nodes start decides
// the bits of a result. A branch's nodes start at its own cuts (fork, cut) or a whole number of blocks after one;
// what other branches do never moves a tile.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ttc {

constexpr int32_t kNone = -1;
constexpr int32_t kRoot = 0;

// A borrowed int32 array.
struct Int32View {
    const int32_t* data;
    int64_t size;
    int32_t operator[](int64_t i) const { return data[i]; }
};

struct OutOfBlocks : std::runtime_error {
    OutOfBlocks(int64_t needed, int64_t available, int64_t total);
    int64_t num_needed;     // blocks that the call would take
    int64_t num_available;  // free and evictable blocks
};

// One batch of query rows over the tree; see KVTree::plan. All arrays are int32.
struct Plan {
    std::vector<int32_t> order;      // (num_branches) depth-first: order[i] indexes the handles given
    std::vector<int32_t> row_start;  // (num_branches + 1) first row of each branch, in that order
    std::vector<int32_t> positions;  // (num_rows) absolute position of each query row
    std::vector<int32_t> slots;      // (num_rows) KV slot of each query row
    std::vector<int32_t> tokens;     // (num_rows) token of each query row
    std::vector<int32_t> items;      // (num_items, 5) row_lo, row_hi, block_offset, num_tokens, causal
    std::vector<int32_t> blocks;     // block ids of the nodes that items name
};

class KVTree {
public:
    // Throws std::invalid_argument (ValueError in Python) here and below for values a caller got wrong.
    KVTree(int64_t num_blocks, int64_t block_size);

    // Returns a new branch that holds the longest cached prefix of `tokens`, in whole blocks, and the prefix's length.
    std::pair<int32_t, int32_t> open(Int32View tokens, bool reuse);
    // Appends counts[i] of `tokens` to branch handles[i]; evicts cached nodes as needed. Throws OutOfBlocks with
    // nothing changed.
    void extend(Int32View handles, Int32View counts, Int32View tokens);
    // Removes the last num_dropped[i] tokens of branch handles[i], and replaces the counts[i] before them by `tokens`.
    // All must have been appended since the branch's last cut, and one such token must stay. Those that open() has
    // found for another branch must stay too.
    void rewrite(Int32View handles, Int32View num_dropped, Int32View counts, Int32View tokens);
    void fork(int32_t handle, int64_t num_children, int32_t* children);
    void cut(int32_t handle);
    void close(int32_t handle, bool keep);

    int32_t num_tokens(int32_t handle) const;
    std::vector<int32_t> tokens(int32_t handle) const;
    std::vector<int32_t> cuts(int32_t handle) const;
    int64_t blocks_needed(Int32View handles, Int32View counts);
    int64_t unique_tokens(Int32View handles);
    int64_t path_tokens(Int32View handles) const;

    int64_t num_blocks() const { return static_cast<int64_t>(next_block_.size()); }
    int64_t block_size() const { return block_size_; }
    int64_t num_free_blocks() const { return num_free_blocks_; }
    int64_t num_cached_blocks() const { return num_cached_blocks_; }
    int64_t num_open() const { return num_open_; }

    void clear_cache();
    // Throws std::runtime_error with one sentence on the first broken invariant.
    void check_integrity() const;

    // Query rows are the last num_queries[i] tokens of each branch. The plan's memory is used again once the
    // caller lets go of it.
    std::shared_ptr<const Plan> plan(Int32View handles, Int32View num_queries);

private:
    struct Node {
        int32_t parent = kNone;
        int32_t first_child = kNone;
        int32_t prev_sibling = kNone;
        int32_t next_sibling = kNone;
        int32_t start = 0;       // position of the first token
        int32_t num_tokens = 0;  // at least 1, but for the root
        int32_t first_block = kNone;
        int32_t last_block = kNone;
        int32_t num_handles = 0;
        int32_t num_live_children = 0;
        int32_t cache_prev = kNone;  // neighbours in the list of cached nodes
        int32_t cache_next = kNone;
        bool starts_at_cut = false;
        bool is_used = false;

        int32_t end() const { return start + num_tokens; }
        bool is_live() const { return num_handles + num_live_children > 0; }
    };
    struct Branch {
        int32_t node = kNone;     // of a closed entry: the next one to be used again
        int32_t num_reused = 0;   // tokens found in the cache at open: cuts before them belong to other branches
        uint64_t mark = 0;        // last call that named the handle
        uint16_t generation = 0;  // of the handle; told apart from older handles with the same index
        bool is_open = false;
        bool is_at_cut = false;  // the next token starts a node
    };
    // A node on the path of a branch, as plan() links it.
    struct PlanNode {
        uint64_t mark = 0;  // last call that came by
        int32_t first_child, last_child, next_sibling;
        int32_t first_branch, last_branch;  // branches that end here
        int32_t visit;
        bool has_partial_rows;  // a query row below sees only part of the node
    };
    struct PlanBranch {
        int32_t node, next, num_queries;  // next: the next one on the same node
    };
    struct Visit {
        int32_t node, branch_lo, branch_hi;  // branches of the subtree, in plan order
    };

    // handles
    int32_t new_handle(int32_t node, int32_t num_reused, bool is_at_cut);
    int32_t index_of(int32_t handle) const;  // throws for a handle that is not open
    Branch& branch(int32_t handle) { return branches_[index_of(handle)]; }
    const Branch& branch(int32_t handle) const { return branches_[index_of(handle)]; }
    Branch& mark_once(int32_t handle, uint64_t mark);  // throws for a handle named twice in a call

    // nodes
    int32_t new_node(int32_t parent, int32_t start);
    void link_child(int32_t parent, int32_t child);
    void unlink_child(int32_t child);
    void split(int32_t node, int32_t num_tokens);
    std::pair<int32_t, int32_t> find_prefix(Int32View tokens) const;
    int32_t num_matching(const Node& node, Int32View tokens) const;
    void acquire(int32_t node);
    void release(int32_t node, bool keep);
    void cache_append(int32_t node);
    void cache_remove(int32_t node);
    void free_node(int32_t node);  // gives back a linked, childless node and its blocks
    void evict_until(int64_t num_free);

    // growth
    int32_t blocks_for(int64_t num_tokens) const {
        return static_cast<int32_t>((num_tokens + block_size_ - 1) / block_size_);
    }
    int32_t blocks_of(const Node& node) const { return blocks_for(node.num_tokens); }
    bool is_growing_in_place(const Branch& branch) const;
    int64_t count_needed(Int32View handles, Int32View counts);
    void append(Branch& branch, const int32_t* tokens, int32_t count);
    void check_rewrite(Int32View handles, Int32View num_dropped, Int32View counts, Int32View tokens);
    void leave_node(Branch& branch);
    int32_t block_at(const Node& node, int32_t index) const;  // the index-th of the node's own
    void shorten(Node& node, int32_t num_tokens);
    int32_t take_block();

    // check_integrity
    void check_nodes(std::vector<char>& is_block_seen) const;
    void check_node(int32_t id, std::vector<char>& is_block_seen) const;
    void check_handles() const;
    void check_cache() const;

    // plan
    std::shared_ptr<Plan> unused_plan();
    void link_paths();
    void lay_out(Plan& plan);
    void place_branch(const PlanBranch& branch, int32_t place, Plan& plan);
    void write_rows(int32_t node, int32_t num_queries, int32_t row_hi, Plan& plan) const;
    void add_items(Plan& plan) const;
    int32_t* add_partial_items(const Visit& visit, int32_t block_offset, const Plan& plan, int32_t* next) const;

    const int32_t block_size_;
    std::vector<int32_t> next_block_;  // (num_blocks) the next block of the same node, or of the free list
    std::vector<int32_t> token_at_;    // (num_blocks * block_size) token at each slot
    int32_t first_free_block_ = 0;
    int64_t num_free_blocks_;
    int64_t num_cached_blocks_ = 0;

    std::vector<Node> nodes_;
    std::vector<int32_t> unused_nodes_;
    // Cached nodes from least to most recently released. A node is released no later than its parent, so the
    // first one never has children.
    int32_t cache_first_ = kNone;
    int32_t cache_last_ = kNone;

    std::vector<Branch> branches_;
    int32_t first_closed_ = kNone;  // closed entries of branches_, the longest closed first
    int32_t last_closed_ = kNone;
    int64_t num_closed_ = 0;
    int64_t num_open_ = 0;
    uint64_t mark_ = 0;  // number of the current call

    std::vector<std::shared_ptr<Plan>> plans_;
    std::vector<PlanNode> plan_nodes_;       // by node
    std::vector<PlanBranch> plan_branches_;  // by handle given
    std::vector<Visit> visits_;              // nodes of the plan in depth-first preorder
};

}  // namespace ttc
