// The rotation of one head, shared by the kernels that apply it. Products and sums are rounded one by one, in float:
// every instruction set gives the same bits.
#pragma once

#include "../common/simd.h"

namespace {

// dst = x * cos + rotate_half(x) * sin, for 2 * half elements.  dst may be x.
template <class T, class U>
inline void rotate(const T* x, U* dst, const float* cos, const float* sin, int half) {
    using V = Simd::V;
    constexpr int W = Simd::W;
    int i = 0;
    for (; i + W <= half; i += W) {
        const V a = Simd::load(x + i), b = Simd::load(x + half + i), c = Simd::load(cos + i), s = Simd::load(sin + i);
        Simd::store(dst + i, Simd::sub(Simd::mul(a, c), Simd::mul(b, s)));
        Simd::store(dst + half + i, Simd::add(Simd::mul(b, c), Simd::mul(a, s)));
    }
    if (i < half) {
        const int n = half - i;
        const V a = Simd::load_tail(x + i, n), b = Simd::load_tail(x + half + i, n);
        const V c = Simd::load_tail(cos + i, n), s = Simd::load_tail(sin + i, n);
        Simd::store_tail(dst + i, Simd::sub(Simd::mul(a, c), Simd::mul(b, s)), n);
        Simd::store_tail(dst + half + i, Simd::add(Simd::mul(b, c), Simd::mul(a, s)), n);
    }
}

// The rotation of one row, for all its heads.
struct Rotation {
    const float *cos, *sin;
    int half;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    // A head of 16 is one vector: its halves swapped, times a sine whose sign differs between them. The same bits.
    __m512 cos_twice, sin_twice;

    Rotation(const float* cos, const float* sin, int half) : cos(cos), sin(sin), half(half) {
        if (half != 8) return;
        cos_twice = _mm512_broadcast_f32x8(_mm256_loadu_ps(cos));
        sin_twice = _mm512_broadcast_f32x8(_mm256_loadu_ps(sin));
        sin_twice = _mm512_mask_sub_ps(sin_twice, 0x00ff, _mm512_set1_ps(-0.0f), sin_twice);
    }

    template <class T, class U>
    inline void operator()(const T* x, U* dst) const {
        if (half != 8) return rotate(x, dst, cos, sin, half);
        const __m512 v = Simd::load(x), swapped = _mm512_shuffle_f32x4(v, v, 0x4e);
        Simd::store(dst, Simd::add(Simd::mul(v, cos_twice), Simd::mul(swapped, sin_twice)));
    }
#else
    Rotation(const float* cos, const float* sin, int half) : cos(cos), sin(sin), half(half) {}

    template <class T, class U>
    inline void operator()(const T* x, U* dst) const {
        rotate(x, dst, cos, sin, half);
    }
#endif
};

}  // namespace
