#include "common/cpu.h"

#if TTC_X86
#define TTC_VEC avx2
#define TTC_VEC_WIDTH 8
#include "sample/sample_kernel.h"
#endif
