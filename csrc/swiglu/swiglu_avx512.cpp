#include "common/cpu.h"

#if TTC_X86
#define TTC_ISA avx512
#include "swiglu/swiglu_kernel.h"
#endif
