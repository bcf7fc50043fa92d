// Philox4x32-10, the generator of ttc_kernels/sample/reference.py.
#pragma once

#include "cuda/device.h"

namespace ttc {
namespace gpu {

// The four words of counter (c0, c1, 0, 0) under a 64-bit key, low word first.
TTC_DEVICE void philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t (&words)[4]) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32), c2 = 0, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = (uint64_t)c0 * 0xd2511f53u, product1 = (uint64_t)c2 * 0xcd9e8d57u;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)product1;
        c3 = (uint32_t)product0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// 1 - u for the uniform number u = ((word >> 8) + 0.5) / 2^24: exact where u is above 1/2, and at most -log(u).
TTC_DEVICE float complement(uint32_t word) {
    return ((float)(word >> 8 ^ 0xffffffu) + 0.5f) * (1.0f / 16777216.0f);
}

// -log(u), which is exponentially distributed; its own negative logarithm is Gumbel noise.
TTC_DEVICE float exponential(uint32_t word) {
    if (word >> 31) return -log1pf(-complement(word));
    return -logf(((float)(word >> 8) + 0.5f) * (1.0f / 16777216.0f));
}

}  // namespace gpu
}  // namespace ttc
