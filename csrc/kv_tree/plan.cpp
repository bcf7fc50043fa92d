// The attention plan: which query rows see which nodes.
//
// Rows are laid out depth-first, so the rows below a node are contiguous. Nodes are listed in depth-first preorder,
// so a row's items come in position order. A node's row range is split only where rows see no more than a part of
// the node: the query rows of a branch that are inside the node, and those before it.
#include <algorithm>
#include <cassert>

#include "kv_tree/kv_tree.h"

namespace ttc {

namespace {

int32_t* add_item(int32_t* to, int32_t row_lo, int32_t row_hi, int32_t block_offset, int32_t num_tokens,
                  int32_t causal) {
    for (const int32_t value : {row_lo, row_hi, block_offset, num_tokens, causal}) *to++ = value;
    return to;
}

}  // namespace

std::shared_ptr<const Plan> KVTree::plan(Int32View handles, Int32View num_queries) {
    if (num_queries.size != handles.size)
        throw std::invalid_argument("num_queries must have one entry per handle, got " +
                                    std::to_string(num_queries.size) + " for " + std::to_string(handles.size) +
                                    " handles");
    const uint64_t mark = ++mark_;
    plan_branches_.resize(handles.size);
    int64_t num_rows = 0;
    for (int64_t i = 0; i < handles.size; ++i) {
        const int32_t node = mark_once(handles[i], mark).node, length = nodes_[node].end();
        if (num_queries[i] < 1 || num_queries[i] > length)
            throw std::invalid_argument("num_queries must be within 1 and the branch's " + std::to_string(length) +
                                        " tokens, got " + std::to_string(num_queries[i]) + " for handle " +
                                        std::to_string(handles[i]));
        plan_branches_[i] = {node, kNone, num_queries[i]};
        num_rows += num_queries[i];
    }
    if (num_rows > INT32_MAX)
        throw std::invalid_argument("a plan holds at most 2^31 - 1 rows, got " + std::to_string(num_rows));
    std::shared_ptr<Plan> plan = unused_plan();
    plan->order.resize(handles.size);
    plan->row_start.resize(handles.size + 1);
    for (auto* part : {&plan->positions, &plan->slots, &plan->tokens}) part->resize(num_rows);
    link_paths();
    lay_out(*plan);
    add_items(*plan);
    return plan;
}

// A plan whose arrays no caller holds any more; its old contents are still there.
std::shared_ptr<Plan> KVTree::unused_plan() {
    constexpr size_t kMaxKept = 8;
    for (const std::shared_ptr<Plan>& plan : plans_)
        if (plan.use_count() == 1) return plan;
    auto plan = std::make_shared<Plan>();
    if (plans_.size() < kMaxKept) plans_.push_back(plan);
    return plan;
}

// Marks the paths of the branches and links each node on them to those below it, in the order given.
void KVTree::link_paths() {
    plan_nodes_.resize(nodes_.size());
    for (int32_t i = 0; i < static_cast<int32_t>(plan_branches_.size()); ++i) {
        int32_t child = kNone;
        for (int32_t id = plan_branches_[i].node; id != kNone; id = nodes_[id].parent) {
            PlanNode& here = plan_nodes_[id];
            const bool is_known = here.mark == mark_;
            if (!is_known) here = {mark_, kNone, kNone, kNone, kNone, kNone, kNone, false};
            if (child != kNone) {
                (here.last_child == kNone ? here.first_child : plan_nodes_[here.last_child].next_sibling) = child;
                here.last_child = child;
            }
            if (is_known) break;
            child = id;
        }
        PlanNode& own = plan_nodes_[plan_branches_[i].node];
        (own.last_branch == kNone ? own.first_branch : plan_branches_[own.last_branch].next) = i;
        own.last_branch = i;
    }
}

// Walks the marked nodes depth-first: numbers branches and rows, and lists the nodes with their branches.
void KVTree::lay_out(Plan& plan) {
    visits_.clear();
    plan.row_start[0] = 0;
    int32_t num_placed = 0;
    int32_t id = plan_branches_.empty() ? kNone : kRoot;
    while (id != kNone) {
        PlanNode& here = plan_nodes_[id];
        here.visit = static_cast<int32_t>(visits_.size());
        visits_.push_back({id, num_placed, kNone});
        for (int32_t i = here.first_branch; i != kNone; i = plan_branches_[i].next) {
            plan.order[num_placed] = i;
            place_branch(plan_branches_[i], num_placed++, plan);
        }
        if (here.first_child != kNone) {
            id = here.first_child;
            continue;
        }
        // Up to the first node with a sibling still to come; each one left is complete.
        int32_t next = kNone;
        for (; id != kNone && next == kNone; id = nodes_[id].parent) {
            visits_[plan_nodes_[id].visit].branch_hi = num_placed;
            next = plan_nodes_[id].next_sibling;
        }
        id = next;
    }
}

void KVTree::place_branch(const PlanBranch& branch, int32_t place, Plan& plan) {
    const int32_t length = nodes_[branch.node].end(), first = length - branch.num_queries;
    const int32_t row_lo = plan.row_start[place];
    plan.row_start[place + 1] = row_lo + branch.num_queries;
    for (int32_t i = 0; i < branch.num_queries; ++i) plan.positions[row_lo + i] = first + i;
    write_rows(branch.node, branch.num_queries, row_lo + branch.num_queries, plan);
    // Nodes that end behind the first query row are not wholly seen by it.
    for (int32_t id = branch.node; nodes_[id].end() - 1 > first; id = nodes_[id].parent)
        plan_nodes_[id].has_partial_rows = true;
}

// Slots and tokens of the last num_queries tokens of the path that ends with a node.
void KVTree::write_rows(int32_t id, int32_t num_queries, int32_t row_hi, Plan& plan) const {
    while (num_queries > 0) {
        const Node& node = nodes_[id];
        const int32_t count = std::min(num_queries, node.num_tokens);
        const int32_t first = node.num_tokens - count;
        int32_t offset = first % block_size_;
        int32_t block = node.last_block;
        if (offset + count > block_size_) {
            block = node.first_block;
            for (int32_t skipped = first / block_size_; skipped > 0; --skipped) block = next_block_[block];
        }
        for (int32_t row = row_hi - count; row < row_hi; ++row) {
            if (offset == block_size_) {
                block = next_block_[block];
                offset = 0;
            }
            plan.slots[row] = block * block_size_ + offset++;
            plan.tokens[row] = token_at_[plan.slots[row]];
        }
        row_hi -= count;
        num_queries -= count;
        id = node.parent;
    }
}

void KVTree::add_items(Plan& plan) const {
    int64_t max_items = 0;
    for (const Visit& visit : visits_)
        max_items += plan_nodes_[visit.node].has_partial_rows ? 2 * (visit.branch_hi - visit.branch_lo) + 1 : 1;
    plan.items.resize(max_items * 5);
    plan.blocks.clear();
    int32_t* next = plan.items.data();
    for (const Visit& visit : visits_) {
        const Node& node = nodes_[visit.node];
        const int32_t block_offset = static_cast<int32_t>(plan.blocks.size());
        for (int32_t block = node.first_block; block != kNone; block = next_block_[block])
            plan.blocks.push_back(block);
        if (plan_nodes_[visit.node].has_partial_rows)
            next = add_partial_items(visit, block_offset, plan, next);
        else if (visit.node != kRoot)
            next = add_item(next, plan.row_start[visit.branch_lo], plan.row_start[visit.branch_hi], block_offset,
                            node.num_tokens, 0);
    }
    plan.items.resize(next - plan.items.data());
}

// Items of a node of which some rows see only a part, or nothing.
int32_t* KVTree::add_partial_items(const Visit& visit, int32_t block_offset, const Plan& plan, int32_t* next) const {
    const Node& node = nodes_[visit.node];
    int32_t full_lo = plan.row_start[visit.branch_lo];  // rows from here on, so far, see the whole node
    for (int32_t k = visit.branch_lo; k < visit.branch_hi; ++k) {
        const int32_t row_lo = plan.row_start[k];
        const int32_t first = plan.positions[row_lo];
        assert(plan.positions[plan.row_start[k + 1] - 1] >= node.end() - 1);
        if (first >= node.end() - 1) continue;
        if (full_lo < row_lo) next = add_item(next, full_lo, row_lo, block_offset, node.num_tokens, 0);
        const int32_t inside_lo = row_lo + std::max(0, node.start - first);  // rows before it see nothing here
        const int32_t inside_hi = row_lo + node.end() - first;
        full_lo = inside_lo;  // in a node of one token the row inside sees all of it
        if (inside_hi - inside_lo > 1) {
            next = add_item(next, inside_lo, inside_hi, block_offset, node.num_tokens, 1);
            full_lo = inside_hi;
        }
    }
    const int32_t row_hi = plan.row_start[visit.branch_hi];
    return full_lo < row_hi ? add_item(next, full_lo, row_hi, block_offset, node.num_tokens, 0) : next;
}

}  // namespace ttc
