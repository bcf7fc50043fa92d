// Sampling without Python between two tokens: the branches of a decode table, forward after forward.
#pragma once

#include <cstdint>
#include <vector>

#include "../kv_tree/kv_tree.h"
#include "../sample/sample.h"
#include "packed.h"

namespace ttc {

// Branches whose last tokens are in the tree and have no KV yet, one each.
struct DecodeArgs {
    Int32View handles;
    const uint64_t* keys;      // how each branch's next token is drawn: of as many entries as handles
    const int32_t* positions;
    const float* temperature;
    const int32_t* top_k;
    const float *top_p, *min_p;
    const int32_t* rules;      // row of `table` for each branch
    const bool* table;         // (num_rules, vocabulary + 1): tokens that end the run, the error token -1 being last
    int64_t num_rules;
    int64_t max_forwards;
};

struct DecodeResult {
    int32_t* tokens;   // (max_forwards, branches)
    float* logprobs;   // the same
    void* hidden;      // (branches, hidden): rows of the last forward, of the model's type
    int64_t* row_of;   // (branches): each branch's row in `hidden`
};

// Runs until a token ends the run, max_forwards are done, or the pool is out of blocks for another one; how many
// forwards were run, at least 1. The tokens of the last one are not in the tree.
int64_t decode(KVTree& tree, const PackedDecoder& trunk, const PackedLinear& head, const Caches& caches,
               const DecodeArgs& args, const DecodeResult& result);

}  // namespace ttc
