#include "common/cpu.h"

#if TTC_X86
#define TTC_ISA avx512
#include "decoder/decoder_kernel.h"
#endif
