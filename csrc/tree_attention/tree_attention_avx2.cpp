// Compiled with this instruction set's flags on x86-64; empty elsewhere.
#if defined(__AVX2__) && defined(__FMA__)
#include "tree_attention_kernel.h"

void ttc::run_attention_avx2(const AttentionCall& call, const AttentionTask& task) { run_attention(call, task); }
#endif
