#include "common/cpu.h"

#if TTC_X86
#define TTC_ISA avx2
#include "rms_norm/rms_norm_kernel.h"
#endif
