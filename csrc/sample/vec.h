// Vectors for `sample`: floats and integers side by side, exp and log. (common/simd.h holds floats only.)
//
// A source file says which instruction set it is built for and includes the kernel once:
//   #define TTC_VEC avx512          // the namespace: portable, avx2 or avx512
//   #define TTC_VEC_WIDTH 16        // floats in a vector: 4, 8 or 16
// Everything is in ttc::TTC_VEC and nothing here instantiates the standard library, so that the linker can never use
// code of one instruction set in place of another's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if TTC_VEC_WIDTH > 4
#include <immintrin.h>
#endif

#ifdef __FAST_MATH__
#error "NaN and Inf are looked for: build without -ffast-math"
#endif

namespace ttc {
namespace TTC_VEC {

constexpr int W = TTC_VEC_WIDTH;
typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint64_t vq __attribute__((vector_size(W * 4)));  // W / 2 of them

#define TTC_INLINE static inline __attribute__((always_inline))
#define TTC_MEMBER inline __attribute__((always_inline))

TTC_INLINE vf splat(float x) { return x - vf{}; }
TTC_INLINE vi splat_i(int32_t x) { return x - vi{}; }

TTC_INLINE vf fma(vf a, vf b, vf c) {
#if TTC_VEC_WIDTH == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif TTC_VEC_WIDTH == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

TTC_INLINE vf load(const float* p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

TTC_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// The first n < W elements; the other lanes are `fill`.
TTC_INLINE vf load_n(const float* p, int n, float fill) {
#if TTC_VEC_WIDTH == 16
    return (vf)_mm512_mask_loadu_ps((__m512)splat(fill), (__mmask16)((1u << n) - 1), p);
#elif TTC_VEC_WIDTH == 8
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const vi in = lane < splat_i(n);
    return in ? (vf)_mm256_maskload_ps(p, (__m256i)in) : splat(fill);
#else
    float all[W];
    for (int i = 0; i < W; ++i) all[i] = i < n ? p[i] : fill;
    return load(all);
#endif
}

// Whether any lane of a mask (a comparison's result) is set.
TTC_INLINE bool any(vi mask) {
#if TTC_VEC_WIDTH == 16
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif TTC_VEC_WIDTH == 8
    return _mm256_movemask_ps((__m256)mask) != 0;
#else
    int32_t set = 0;
    for (int i = 0; i < W; ++i) set |= mask[i];
    return set != 0;
#endif
}

TTC_INLINE vf min(vf a, vf b) { return a < b ? a : b; }

// Sum and minimum over the lanes, always in the same order: the upper half onto the lower until one is left.
#if TTC_VEC_WIDTH == 16
TTC_INLINE __m256 upper(__m512 v) { return _mm512_maskz_extractf32x8_ps(0xff, v, 1); }
TTC_INLINE __m256i upper(__m512i v) { return _mm512_maskz_extracti32x8_epi32(0xff, v, 1); }
TTC_INLINE __m256 lower(__m512 v) { return _mm512_castps512_ps256(v); }
TTC_INLINE __m256i lower(__m512i v) { return _mm512_castsi512_si256(v); }
#endif

TTC_INLINE float reduce_add(vf v) {
#if TTC_VEC_WIDTH == 4
    return (v[0] + v[2]) + (v[1] + v[3]);
#else
#if TTC_VEC_WIDTH == 16
    const __m256 half = _mm256_add_ps(lower((__m512)v), upper((__m512)v));
#else
    const __m256 half = (__m256)v;
#endif
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
#endif
}

TTC_INLINE float reduce_min(vf v) {
#if TTC_VEC_WIDTH == 4
    const float a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
    return a < b ? a : b;
#else
#if TTC_VEC_WIDTH == 16
    const __m256 half = _mm256_min_ps(lower((__m512)v), upper((__m512)v));
#else
    const __m256 half = (__m256)v;
#endif
    __m128 x = _mm_min_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_min_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_min_ss(x, _mm_movehdup_ps(x)));
#endif
}

TTC_INLINE int32_t reduce_min(vi v) {
#if TTC_VEC_WIDTH == 4
    const int32_t a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
    return a < b ? a : b;
#else
#if TTC_VEC_WIDTH == 16
    const __m256i half = _mm256_min_epi32(lower((__m512i)v), upper((__m512i)v));
#else
    const __m256i half = (__m256i)v;
#endif
    __m128i x = _mm_min_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    x = _mm_min_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    return _mm_cvtsi128_si32(_mm_min_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
#endif
}

// e^x to about 1 ulp for x <= 88; 0 below -87; NaN stays NaN.
TTC_INLINE vf exp(vf x) {
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    vf t = fma(x, splat(1.44269504f), splat(shift));
    vi n = (vi)t - 0x4b400000;
    vf k = t - shift;
    vf r = fma(k, splat(-0.693359375f), x);
    r = fma(k, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    vf y = fma(p, r * r, r) + 1.0f;
    y = y * (vf)((n + 127) << 23);
    return x < splat(-87.0f) ? vf{} : y;
}

// log(1 + f) + e * log(2) for f within [sqrt(1/2) - 1, sqrt(2) - 1].
TTC_INLINE vf log_parts(vf f, vf e) {
    vf p = splat(7.0376836292e-2f);
    p = fma(p, f, splat(-1.1514610310e-1f));
    p = fma(p, f, splat(1.1676998740e-1f));
    p = fma(p, f, splat(-1.2420140846e-1f));
    p = fma(p, f, splat(1.4249322787e-1f));
    p = fma(p, f, splat(-1.6668057665e-1f));
    p = fma(p, f, splat(2.0000714765e-1f));
    p = fma(p, f, splat(-2.4999993993e-1f));
    p = fma(p, f, splat(3.3333331174e-1f));
    vf square = f * f;
    vf y = p * f * square;
    y = fma(e, splat(-2.12194440e-4f), y);
    y = fma(square, splat(-0.5f), y);
    return fma(e, splat(0.693359375f), f + y);
}

// x = (1 + f) * 2^e with 1 + f within [sqrt(1/2), sqrt(2)); x positive and normal.
TTC_INLINE vi split(vf x, vf* f) {
    vi e = ((vi)x - 0x3f3504f3) >> 23;
    *f = (vf)((vi)x - (e << 23)) - 1.0f;
    return e;
}

TTC_INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

TTC_INLINE vf log(vf x) {
    vf f;
    vi e = split(x, &f);
    return log_parts(f, to_float(e));
}

}  // namespace TTC_VEC
}  // namespace ttc
