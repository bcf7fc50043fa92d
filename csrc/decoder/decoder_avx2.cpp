#include "common/cpu.h"

#if TTC_X86
#define TTC_ISA avx2
#include "decoder/decoder_kernel.h"
#endif
