// The path that runs everywhere.
#include "tree_attention_kernel.h"

void ttc::run_attention_portable(const AttentionCall& call, const AttentionTask& task) { run_attention(call, task); }
