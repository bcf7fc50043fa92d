// What tests of the emulator itself run: kernels with the faults that it must show, and its rounding. Compiled with
// the real kernels, and by the tests alone.
#include "cuda/launch.h"

namespace ttc {
namespace gpu {
namespace {

constexpr int kThreads = 64;

struct Fault {
    int64_t kind;  // 0 none, 1 a barrier is missing, 2 a wait is missing, 3 a barrier that one thread never reaches
    const uint32_t* from;  // (4 * kThreads) words
    uint32_t* to;
};

// Copies words through shared memory; each thread hands on what another one fetched.
TTC_KERNEL(kThreads) hand_on(Fault a) {
    await_earlier_kernels();
    const int thread = thread_index(), other = (thread + 37) % kThreads;
    uint32_t* const shared = (uint32_t*)shared_memory();
    copy_async(shared + 4 * thread, a.from + 4 * thread, true);
    copy_commit();
    if (a.kind != 2) copy_wait<0>();
    if (a.kind == 3 && thread == 5) return;
    if (a.kind != 1) block_barrier();
    for (int i = 0; i < 4; ++i) a.to[4 * thread + i] = shared[4 * other + i];
}

}  // namespace
}  // namespace gpu
}  // namespace ttc

TTC_EXPORT const char* ttc_test_fault(int64_t kind, int64_t from, int64_t to) {
    using namespace ttc::gpu;
    return launch(hand_on, {1, kThreads, 16 * kThreads}, false, 0,
                  Fault{kind, (const uint32_t*)from, (uint32_t*)to});
}

// The emulator's own rounding of n floats to 16 bits.
TTC_EXPORT void ttc_test_round(int64_t from, int64_t to, int64_t n, int64_t is_bf16) {
    using namespace ttc::gpu;
    for (int64_t i = 0; i < n; ++i) {
        const float x = ((const float*)from)[i];
        ((uint16_t*)to)[i] = is_bf16 ? from_float<Bf16>(x).bits : from_float<Half>(x).bits;
    }
}

// Draws the order in which blocks and threads go on anew.
TTC_EXPORT void ttc_test_seed(int64_t seed) { ttc::gpu::emulator::seed = (unsigned)seed; }

// How many blocks run side by side.
TTC_EXPORT void ttc_test_resident(int64_t num) { ttc::gpu::emulator::num_resident = (int)num; }

// Kernels launched so far by this thread.
TTC_EXPORT int64_t ttc_test_num_launches() { return ttc::gpu::emulator::num_launches; }
