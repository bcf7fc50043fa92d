// The choice of an instruction set, and the portable build of the kernels.
#include "packed.h"

#define TTC_ISA portable
#include "decoder/decoder_kernel.h"

namespace ttc {
#if TTC_X86
namespace avx2 {
extern const DecoderKernels decoder_f32, decoder_bf16;
}
namespace avx512 {
extern const DecoderKernels decoder_f32, decoder_bf16;
}
namespace avx512bf16 {
extern const DecoderKernels decoder_bf16;
}
#endif

namespace {

bool has_avx512_bf16() {
#if TTC_X86
    static const bool has = has_avx512() && __builtin_cpu_supports("avx512bf16");
    return has;
#else
    return false;
#endif
}

}  // namespace

std::vector<std::string> decoder_isas() {
    std::vector<std::string> names = supported_isas();
    if (has_avx512_bf16()) names.emplace_back("avx512_bf16");
    return names;
}

Path path_for(const std::string& name, bool is_bf16) {
    const bool is_auto = name.empty() || name == "auto", has_pairs = has_avx512_bf16();
    const Isa isa = has_pairs && name == "avx512_bf16" ? Isa::Avx512 : parse_isa(name);
#if TTC_X86
    if (is_bf16 && has_pairs && (is_auto || name == "avx512_bf16")) return {avx512bf16::decoder_bf16, isa};
    if (isa == Isa::Avx512) return {is_bf16 ? avx512::decoder_bf16 : avx512::decoder_f32, isa};
    if (isa == Isa::Avx2) return {is_bf16 ? avx2::decoder_bf16 : avx2::decoder_f32, isa};
#endif
    (void)is_auto;
    return {is_bf16 ? portable::decoder_bf16 : portable::decoder_f32, isa};
}

size_t stage_scratch_bytes(int64_t rows, int64_t hidden, int64_t intermediate, int64_t q_out, int64_t kv_out) {
    return sizeof(float) * size_t(rows) *
           size_t(padded_width(q_out + 2 * kv_out) + operand_stride(hidden) + operand_stride(q_out) +
                  operand_stride(intermediate));
}

size_t linear_scratch_bytes(int64_t rows, int64_t num_in) {
    return sizeof(float) * size_t(rows) * size_t(operand_stride(num_in));
}

}  // namespace ttc
