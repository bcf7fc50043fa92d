// One vector type per instruction set, all with the same members, so that a kernel is written once as a template.
//
// Included by the translation unit of ONE instruction set: `Simd` is the widest type that unit's compiler flags
// allow.  Everything is in an unnamed namespace: the linker must never hand AVX-512 code to a baseline caller.
//   W lanes of float; load/store of float and bf16 (converted on the way); *_tail touch only the first n lanes.
//   fma rounds once where the hardware has it, twice on the portable path: the same everywhere within one path.
#pragma once

#include <cstdint>
#include <cstring>

#include "bf16.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr float kNegInf = -__builtin_inff();

// 2^f on [-0.5, 0.5] (the coefficients of Cephes' exp2f), relative error about 1e-7.
constexpr float kExp2C[7] = {1.0f,           6.931472028e-1f, 2.402264791e-1f, 5.550332471e-2f,
                             9.618437357e-3f, 1.339887440e-3f, 1.535336188e-4f};

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

struct Simd {
    using V = __m512;
    static constexpr int W = 16;
    static constexpr int kRegisters = 32;

    static inline V zero() { return _mm512_setzero_ps(); }
    static inline V set1(float x) { return _mm512_set1_ps(x); }
    static inline V load(const float* p) { return _mm512_loadu_ps(p); }
    static inline V load(const ttc::bf16* p) {
        return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static inline V load_tail(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
    static inline V load_tail(const ttc::bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(lanes(n), p)); }
    static inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
    static inline void store(ttc::bf16* p, V v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
    static inline void store_tail(float* p, V v, int n) { _mm512_mask_storeu_ps(p, lanes(n), v); }
    static inline void store_tail(ttc::bf16* p, V v, int n) { _mm256_mask_storeu_epi16(p, lanes(n), narrow(v)); }
    static inline V add(V a, V b) { return _mm512_add_ps(a, b); }
    static inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
    static inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
    static inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
    // The larger; b where a is NaN.
    static inline V max(V a, V b) { return _mm512_max_ps(a, b); }
    // Lanes n.. become `fill`.
    static inline V keep_first(V v, int n, float fill) { return _mm512_mask_mov_ps(set1(fill), lanes(n), v); }
    static inline float hmax(V v) { return _mm512_reduce_max_ps(v); }
    static inline float hsum(V v) { return _mm512_reduce_add_ps(v); }
    // 2^x for x <= 0; exactly 0 below -126 (so for -inf too); NaN stays NaN.
    static inline V exp2_neg(V x) {
        const __mmask16 in_range = _mm512_cmp_ps_mask(x, set1(-126.0f), _CMP_NLT_UQ);
        const V n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const V f = _mm512_sub_ps(x, n);
        V y = set1(kExp2C[6]);
        for (int i = 5; i >= 0; --i) y = _mm512_fmadd_ps(y, f, set1(kExp2C[i]));
        return _mm512_maskz_scalef_ps(in_range, y, n);
    }

  private:
    static inline __mmask16 lanes(int n) { return __mmask16((1u << n) - 1u); }
    static inline V widen(__m256i x) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    }
    static inline __m256i narrow(V v) {
        const __m512i u = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
        __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
        r = _mm512_srli_epi32(r, 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc0)));
    }
};

#elif defined(__AVX2__) && defined(__FMA__)

struct Simd {
    using V = __m256;
    static constexpr int W = 8;
    static constexpr int kRegisters = 16;

    static inline V zero() { return _mm256_setzero_ps(); }
    static inline V set1(float x) { return _mm256_set1_ps(x); }
    static inline V load(const float* p) { return _mm256_loadu_ps(p); }
    static inline V load(const ttc::bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    static inline V load_tail(const float* p, int n) { return _mm256_maskload_ps(p, lanes(n)); }
    static inline V load_tail(const ttc::bf16* p, int n) {
        ttc::bf16 tmp[W] = {};
        std::memcpy(tmp, p, size_t(n) * sizeof(ttc::bf16));
        return load(tmp);
    }
    static inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
    static inline void store(ttc::bf16* p, V v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v)); }
    static inline void store_tail(float* p, V v, int n) { _mm256_maskstore_ps(p, lanes(n), v); }
    static inline void store_tail(ttc::bf16* p, V v, int n) {
        ttc::bf16 tmp[W];
        store(tmp, v);
        std::memcpy(p, tmp, size_t(n) * sizeof(ttc::bf16));
    }
    static inline V add(V a, V b) { return _mm256_add_ps(a, b); }
    static inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
    static inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
    static inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
    static inline V max(V a, V b) { return _mm256_max_ps(a, b); }
    static inline V keep_first(V v, int n, float fill) {
        return _mm256_blendv_ps(set1(fill), v, _mm256_castsi256_ps(lanes(n)));
    }
    static inline float hmax(V v) {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }
    static inline float hsum(V v) {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    static inline V exp2_neg(V x) {
        const V in_range = _mm256_cmp_ps(x, set1(-126.0f), _CMP_NLT_UQ);
        const V n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const V f = _mm256_sub_ps(x, n);
        V y = set1(kExp2C[6]);
        for (int i = 5; i >= 0; --i) y = _mm256_fmadd_ps(y, f, set1(kExp2C[i]));
        const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
        return _mm256_and_ps(in_range, _mm256_mul_ps(y, _mm256_castsi256_ps(e)));
    }

  private:
    static inline __m256i lanes(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static inline V widen(__m128i x) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
    }
    static inline __m128i narrow(V v) {
        const __m256i u = _mm256_castps_si256(v);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
        __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
        return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    }
};

#else

// Four lanes through the compiler's vector extension: SSE2 on x86-64, NEON on arm64.
struct Simd {
    typedef float V __attribute__((vector_size(16)));
    typedef int32_t I __attribute__((vector_size(16)));
    static constexpr int W = 4;
    static constexpr int kRegisters = 16;

    static inline V zero() { return V{0, 0, 0, 0}; }
    static inline V set1(float x) { return V{x, x, x, x}; }
    static inline V load(const float* p) {
        V v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    static inline V load(const ttc::bf16* p) {
        return V{ttc::to_float(p[0]), ttc::to_float(p[1]), ttc::to_float(p[2]), ttc::to_float(p[3])};
    }
    template <class T>
    static inline V load_tail(const T* p, int n) {
        V v = zero();
        for (int i = 0; i < n; ++i) v[i] = ttc::to_float(p[i]);
        return v;
    }
    static inline void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }
    static inline void store(ttc::bf16* p, V v) { store_tail(p, v, W); }
    template <class T>
    static inline void store_tail(T* p, V v, int n) {
        for (int i = 0; i < n; ++i) ttc::store_as(p + i, v[i]);
    }
    static inline V add(V a, V b) { return a + b; }
    static inline V sub(V a, V b) { return a - b; }
    static inline V mul(V a, V b) { return a * b; }
    static inline V fma(V a, V b, V c) { return a * b + c; }
    static inline V max(V a, V b) { return select(a > b, a, b); }
    static inline V keep_first(V v, int n, float fill) { return select(I{0, 1, 2, 3} < I{n, n, n, n}, v, set1(fill)); }
    static inline float hmax(V v) {
        float m = v[0];
        for (int i = 1; i < W; ++i) m = v[i] > m ? v[i] : m;
        return m;
    }
    static inline float hsum(V v) { return (v[0] + v[2]) + (v[1] + v[3]); }
    static inline V exp2_neg(V x) {
        const I below = x < set1(-126.0f);
        const V magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
        const V shifted = x + magic;
        const V f = x - (shifted - magic);
        V y = set1(kExp2C[6]);
        for (int i = 5; i >= 0; --i) y = y * f + set1(kExp2C[i]);
        I bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        const I e = (bits + (127 - 0x4B400000)) << 23;
        V scale;
        std::memcpy(&scale, &e, sizeof scale);
        return select(below, zero(), y * scale);
    }

  private:
    static inline V select(I mask, V a, V b) {
        I x, y;
        std::memcpy(&x, &a, sizeof x);
        std::memcpy(&y, &b, sizeof y);
        const I r = (mask & x) | (~mask & y);
        V v;
        std::memcpy(&v, &r, sizeof v);
        return v;
    }
};

#endif

}  // namespace
