// Sampling without Python between two tokens: the branches of a decode table, forward after forward.
#pragma once

#include <cstdint>
#include <vector>

#include "../kv_tree/kv_tree.h"
#include "../sample/sample.h"
#include "packed.h"

namespace ttc {

// The fields of a DecodeBatch (ttc_kernels/decoder/loop.py). The first `max_live` branches have their last tokens, one
// each, in the tree without KV. The others wait for a place: their last tokens are not in the tree.
struct DecodeArgs {
    Int32View handles;
    const int32_t* pending;    // (branches), as many as handles: each branch's last token
    const uint64_t* keys;      // how each branch's next token is drawn
    const int32_t* positions;
    const float* temperature;
    const int32_t* top_k;
    const float *top_p, *min_p;
    const int32_t* limits;     // the most tokens that each branch may draw
    const int32_t* groups;     // the group of each branch, 0 .. branches - 1
    const int32_t* rules;      // row of `table` for each branch
    const bool* table;         // (num_rules, vocabulary + 1): tokens that end a branch, the error token -1 being last
    const bool* marks;         // (vocabulary + 1): tokens whose hidden state is kept; or null
    int64_t num_rules;
    int64_t max_forwards, min_ready, max_live;
};

struct DecodeResult {
    int32_t* tokens;   // (max_forwards, branches): the first counts[i] of branch i, the others are left as they are
    float* logprobs;   // the same
    int32_t* counts;   // (branches): tokens drawn
    std::vector<int64_t> marked;  // branches, in the order in which they drew the tokens named by `marks`
    std::vector<uint8_t> states;  // (marked, hidden) of the model's type: the states that those were drawn from
};

// Runs forwards, at least one, until min_ready branches belong to groups of which every branch has ended, by the table
// or its limit, or max_forwards are done, or the pool has no blocks for another forward. Returns their number. A branch
// that has ended is left out of the later ones, and the next waiting branch takes its place. Afterwards no branch's
// last token is in the tree.
int64_t decode(KVTree& tree, const PackedDecoder& trunk, const PackedLinear& head, const Caches& caches,
               const DecodeArgs& args, DecodeResult& result);

}  // namespace ttc
