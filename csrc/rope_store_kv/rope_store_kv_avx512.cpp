// Compiled with this instruction set's flags on x86-64; empty elsewhere.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "rope_store_kv_kernel.h"

void ttc::run_rope_avx512(const RopeCall& call, int row_lo, int row_hi) { run_rope(call, row_lo, row_hi); }
#endif
