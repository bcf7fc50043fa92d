#include "common/cpu.h"

#if TTC_X86
#define TTC_ISA avx2
#include "step_score/step_score_kernel.h"
#endif
