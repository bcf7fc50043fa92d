// The device functions that the CUDA kernels use, by name: thread numbers, barriers, shuffles, asynchronous copies,
// tensor cores. Kernels call nothing else, so that the tests can run the same sources on a CPU, thread for thread
// (tests/ttc_kernels/cuda_emulation/emulator.h gives the same names there).
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#define TTC_DEVICE __device__ __forceinline__
#define TTC_KERNEL(threads) __global__ void __launch_bounds__(threads)

namespace ttc {
namespace gpu {

using Chunk = uint4;  // 16 bytes, copied as one

// Grids and blocks have one dimension.
TTC_DEVICE int thread_index() { return (int)threadIdx.x; }
TTC_DEVICE int block_index() { return (int)blockIdx.x; }
TTC_DEVICE int num_blocks() { return (int)gridDim.x; }

// The block's shared memory, as many bytes as the launch asked for.
TTC_DEVICE char* shared_memory() {
    extern __shared__ __align__(128) char ttc_shared_memory[];
    return ttc_shared_memory;
}

TTC_DEVICE void block_barrier() { __syncthreads(); }
TTC_DEVICE void warp_barrier() { __syncwarp(); }

// The first statement of every kernel. A kernel of sm_90 or newer may be started while the one before it still runs:
// what that one writes is there from here on, and the next one may be started.
TTC_DEVICE void await_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Counts from 0 to `last` and then from 0 again; returns the count before. A block or warp that counts after a barrier
// shows all it has written to whoever finds a later count, and to the threads that meet that one at a barrier.
TTC_DEVICE uint32_t count_up(uint32_t* counter, uint32_t last) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(last) : "memory");
    return before;
}

// Add to a number in shared or global memory that others add to at the same time; return what was there before.
TTC_DEVICE uint32_t atomic_add(uint32_t* to, uint32_t x) { return atomicAdd(to, x); }
TTC_DEVICE uint64_t atomic_add(uint64_t* to, uint64_t x) { return atomicAdd((unsigned long long*)to, x); }

// All lanes of the warp must call these together.
TTC_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
TTC_DEVICE int shuffle_xor(int x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
TTC_DEVICE int shuffle_from(int x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }
// Bit l is lane l's.
TTC_DEVICE uint32_t warp_ballot(bool x) { return __ballot_sync(0xffffffffu, x); }

TTC_DEVICE int count_bits(uint32_t x) { return __popc(x); }

TTC_DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

TTC_DEVICE uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Copies 16 bytes into shared memory in the background, or zeros where `is_there` is false; both addresses are
// multiples of 16 and `from` can be read in either case.
TTC_DEVICE void copy_async(void* to, const void* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(is_there ? 16 : 0)
                 : "memory");
}

// Closes the group of this thread's copies since the last call; groups complete in order.
TTC_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are under way. Others see its copies after a block_barrier.
template <int kPending>
TTC_DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8, 16 bytes, and gets
// elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each.
TTC_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, of the transposed matrices: elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
TTC_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16-bit floats as their bits.
struct Half {
    uint16_t bits;
};
struct Bf16 {
    uint16_t bits;
};

TTC_DEVICE float to_float(float x) { return x; }
TTC_DEVICE float to_float(Half x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
TTC_DEVICE float to_float(Bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }

// Two floats, rounded to nearest even, in one register; `low` goes to the lower address.
template <typename T>
TTC_DEVICE uint32_t pack(float low, float high);
template <>
TTC_DEVICE uint32_t pack<Half>(float low, float high) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <>
TTC_DEVICE uint32_t pack<Bf16>(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// d += a b, 16 x 16 by 16 x 8, with lane l = 4 g + t holding
//   a: rows g, g + 8 (registers 0, 1) at columns 2 t, 2 t + 1, and again at columns + 8 (registers 2, 3)
//   b: rows 2 t, 2 t + 1 (register 0) and + 8 (register 1) of column g
//   d: row g (0, 1) and row g + 8 (2, 3) at columns 2 t, 2 t + 1
template <typename T>
TTC_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
TTC_DEVICE void multiply_add<Half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
TTC_DEVICE void multiply_add<Bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace gpu
}  // namespace ttc

#else
#include "emulator.h"
#endif

namespace ttc {
namespace gpu {

constexpr float kInfinity = __builtin_inff();
constexpr float kLog2e = 1.44269504088896340736f, kLn2 = 0.69314718055994530942f;

template <typename T>
TTC_DEVICE T from_float(float x) {
    return T{(uint16_t)(pack<T>(x, 0.0f) & 0xffffu)};
}
template <>
TTC_DEVICE float from_float<float>(float x) {
    return x;
}

TTC_DEVICE float quad_sum(float x) {
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}

TTC_DEVICE float quad_max(float x) {
    x = fmaxf(x, shuffle_xor(x, 1));
    return fmaxf(x, shuffle_xor(x, 2));
}

TTC_DEVICE float warp_sum(float x) {
    for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

TTC_DEVICE float warp_max(float x) {
    for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
    return x;
}

TTC_DEVICE uint64_t shuffle_xor(uint64_t x, int mask) {
    const uint32_t low = (uint32_t)shuffle_xor((int)x, mask), high = (uint32_t)shuffle_xor((int)(x >> 32), mask);
    return (uint64_t)high << 32 | low;
}

TTC_DEVICE uint64_t warp_max(uint64_t x) {
    for (int mask = 16; mask > 0; mask /= 2) {
        const uint64_t other = shuffle_xor(x, mask);
        x = other > x ? other : x;
    }
    return x;
}

TTC_DEVICE int warp_min(int x) {
    for (int mask = 16; mask > 0; mask /= 2) {
        const int other = shuffle_xor(x, mask);
        x = other < x ? other : x;
    }
    return x;
}

}  // namespace gpu
}  // namespace ttc
