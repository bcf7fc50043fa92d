// The path that runs everywhere.
#include "rope_store_kv_kernel.h"

void ttc::run_rope_portable(const RopeCall& call, int row_lo, int row_hi) { run_rope(call, row_lo, row_hi); }
