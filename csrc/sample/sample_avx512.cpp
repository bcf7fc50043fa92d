#include "common/cpu.h"

#if TTC_X86
#define TTC_VEC avx512
#define TTC_VEC_WIDTH 16
#include "sample/sample_kernel.h"
#endif
