// bfloat16 as 16 stored bits; all arithmetic is done in float.
#pragma once

#include <cstdint>
#include <cstring>

namespace ttc {

struct bf16 {
    uint16_t bits;
};

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) {
    uint32_t u = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &u, sizeof f);
    return f;
}

// Round to nearest even; a NaN stays a (quiet) NaN.
static inline bf16 to_bf16(float x) {
    uint32_t u;
    std::memcpy(&u, &x, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{uint16_t(0x7fc0)};
    return bf16{uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

static inline void store_as(float* p, float x) { *p = x; }
static inline void store_as(bf16* p, float x) { *p = to_bf16(x); }

}  // namespace ttc
