// Compiled with this instruction set's flags on x86-64; empty elsewhere.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "tree_attention_kernel.h"

void ttc::run_attention_avx512(const AttentionCall& call, const AttentionTask& task) { run_attention(call, task); }
#endif
