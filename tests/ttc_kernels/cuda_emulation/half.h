// 16-bit floats on a CPU, by the definition of their formats.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace ttc {
namespace gpu {

struct Half {
    uint16_t bits;
};
struct Bf16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline float to_float(Half x) {
    const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    float f = exponent == 0    ? std::ldexp(float(mantissa), -24)
              : exponent == 31 ? (mantissa ? NAN : INFINITY)
                               : std::ldexp(float(mantissa + 1024), exponent - 25);
    return x.bits & 0x8000 ? -f : f;
}

// Rounds to nearest even, on a grid of 2^-24 for the subnormal halves.
inline uint16_t round_to(Half, float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float a = std::fabs(x);
    if (std::isnan(x)) return 0x7fff;
    if (a >= 65520.0f) return sign | 0x7c00;
    int exponent;
    std::frexp(a, &exponent);
    const int shift = a == 0.0f ? -24 : std::max(exponent - 11, -24);
    const auto steps = uint32_t(std::nearbyint(std::ldexp(a, -shift)));  // up to 2048: carries into the exponent
    return uint16_t(sign | (shift == -24 ? steps : uint32_t((shift + 24) << 10) + steps));
}
inline uint16_t round_to(Bf16, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (std::isnan(x)) return 0x7fff;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

template <typename T>
uint32_t pack(float low, float high) {
    return round_to(T{}, low) | uint32_t(round_to(T{}, high)) << 16;
}

}  // namespace gpu
}  // namespace ttc
