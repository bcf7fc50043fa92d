// Runs the CUDA kernels on a CPU, thread for thread: every name of csrc/cuda/device.h and csrc/cuda/launch.h that is
// the device's own, as its documentation defines it. A thread is a fiber; which one goes on next, of a few blocks that
// run side by side, is drawn at random, so that a missing barrier shows; asynchronous copies are carried out no earlier
// than they are waited for, so that a missing wait shows; shared memory starts as NaN; a barrier that some threads
// never reach is an error.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "half.h"

#define TTC_DEVICE inline
#define TTC_KERNEL(threads) void

namespace ttc {
namespace gpu {

struct alignas(16) Chunk {
    uint32_t x[4];
};

namespace emulator {

constexpr int kLanes = 32, kStackBytes = 64 * 1024;

struct Copy {
    void* to;
    const void* from;
    bool is_there;
};

struct Thread {
    ucontext_t start;
    jmp_buf state;
    bool is_started = false, is_done = false;
    std::vector<std::vector<Copy>> groups;  // of copies, committed, the oldest first
    std::vector<Copy> open;
    int num_collectives = 0;
};

// What the lanes of a warp show one another: two sets, as a lane may be one exchange ahead of another.
struct Warp {
    uint32_t words[2][kLanes][8];
    const char* rows[2][kLanes];
    std::vector<int> waiting;
};

struct Block {
    int index, num_blocks, num_threads, current = -1;
    std::vector<char> shared;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<int> ready, waiting;  // thread numbers: may run; stand at the barrier
    std::function<void()> body;
    jmp_buf scheduler;
    std::string error;
};

inline thread_local Block* block = nullptr;
inline thread_local unsigned seed = 0;  // of a launch: of the order in which its blocks and threads go on
inline thread_local int num_resident = 3;  // blocks that the device holds at a time
inline thread_local std::minstd_rand random;
inline thread_local int64_t num_launches = 0;

inline Thread& self() { return block->threads[size_t(block->current)]; }
inline Warp& warp() { return block->warps[size_t(block->current / kLanes)]; }
inline int lane() { return block->current % kLanes; }

// Gives way to the scheduler; goes on when this thread is drawn again.
inline void yield() {
    if (_setjmp(self().state) == 0) _longjmp(block->scheduler, 1);
}

inline void wait_for(std::vector<int>& waiting, size_t num) {
    waiting.push_back(block->current);
    if (waiting.size() == num) {
        block->ready.insert(block->ready.end(), waiting.begin(), waiting.end());
        waiting.clear();
    }
    yield();
}

// Begins an exchange within the warp; returns which set it uses.
inline int next_set() { return self().num_collectives++ % 2; }
inline void meet() { wait_for(warp().waiting, kLanes); }

inline void thread_main() {
    try {
        block->body();
    } catch (const std::exception& error) {
        block->error = error.what();
    }
    self().is_done = true;
    _longjmp(block->scheduler, 1);
}

inline void resume(Block& b) {
    const size_t at = random() % b.ready.size();
    b.current = b.ready[at];
    b.ready[at] = b.ready.back();
    b.ready.pop_back();
    block = &b;
    if (_setjmp(b.scheduler)) return;
    Thread& thread = self();
    if (thread.is_started) _longjmp(thread.state, 1);
    thread.is_started = true;
    setcontext(&thread.start);
}

// `place` is that of the block among those that run side by side.
inline void start_threads(Block& b, int place) {
    static thread_local std::vector<std::unique_ptr<char[]>> stacks;
    while (int(stacks.size()) < (place + 1) * b.num_threads) stacks.emplace_back(new char[kStackBytes]);
    for (int i = 0; i < b.num_threads; ++i) {
        Thread& thread = b.threads[size_t(i)];
        getcontext(&thread.start);
        thread.start.uc_stack.ss_sp = stacks[size_t(place * b.num_threads + i)].get();
        thread.start.uc_stack.ss_size = kStackBytes;
        thread.start.uc_link = nullptr;
        makecontext(&thread.start, thread_main, 0);
        b.ready.push_back(i);
    }
}

// Runs `num` blocks from number `first` on side by side.
inline std::string run_blocks(int first, int num, int num_blocks, int num_threads, int shared_bytes,
                              const std::function<void()>& body) {
    random.seed(1009 * seed + unsigned(first) + 1);
    std::vector<Block> blocks(static_cast<size_t>(num));
    std::vector<Block*> running;
    for (int i = 0; i < num; ++i) {
        Block& b = blocks[size_t(i)];
        b.index = first + i, b.num_blocks = num_blocks, b.num_threads = num_threads, b.body = body;
        b.shared.assign(size_t(shared_bytes) + 128, char(0xff));
        b.threads.resize(size_t(num_threads));
        b.warps.resize(size_t(num_threads / kLanes));
        start_threads(b, i);
        running.push_back(&b);
    }
    while (!running.empty()) {
        const size_t at = random() % running.size();
        resume(*running[at]);
        if (running[at]->ready.empty() || !running[at]->error.empty()) running.erase(running.begin() + long(at));
    }
    block = nullptr;
    for (const Block& b : blocks) {
        if (!b.error.empty()) return b.error;
        for (const Thread& thread : b.threads)
            if (!thread.is_done) return "some threads never reach a barrier or an exchange";
    }
    return "";
}

inline void carry_out(const Copy& copy) {
    if (copy.is_there)
        std::memcpy(copy.to, copy.from, 16);
    else
        std::memset(copy.to, 0, 16);
}

inline void check_aligned(const void* p, size_t bytes) {
    if (uintptr_t(p) % bytes) throw std::runtime_error("an address is not a multiple of " + std::to_string(bytes));
}

inline void check_shared(const void* p) {
    const char* begin = block->shared.data();
    if ((const char*)p < begin || (const char*)p + 16 > begin + block->shared.size())
        throw std::runtime_error("an address is outside the shared memory");
}

}  // namespace emulator

inline int thread_index() { return emulator::block->current; }
inline int block_index() { return emulator::block->index; }
inline int num_blocks() { return emulator::block->num_blocks; }

inline char* shared_memory() {
    const uintptr_t at = uintptr_t(emulator::block->shared.data());
    return (char*)((at + 127) / 128 * 128);
}

inline void await_earlier_kernels() {}

inline uint32_t count_up(uint32_t* counter, uint32_t last) {
    const uint32_t before = *counter;
    *counter = before >= last ? 0 : before + 1;
    return before;
}

// No thread gives way within these.
template <typename T>
T atomic_add(T* to, T x) {
    const T before = *to;
    *to += x;
    return before;
}

inline void block_barrier() { emulator::wait_for(emulator::block->waiting, size_t(emulator::block->num_threads)); }

inline void warp_barrier() { emulator::meet(); }

inline float shuffle_xor(float x, int mask) {
    using namespace emulator;
    const int set = next_set();
    std::memcpy(&warp().words[set][lane()][0], &x, 4);
    meet();
    std::memcpy(&x, &warp().words[set][lane() ^ mask][0], 4);
    return x;
}

inline int shuffle_xor(int x, int mask) {
    float f;
    std::memcpy(&f, &x, 4);
    f = shuffle_xor(f, mask);
    std::memcpy(&x, &f, 4);
    return x;
}

inline int shuffle_from(int x, int lane) {
    using namespace emulator;
    const int set = next_set();
    warp().words[set][emulator::lane()][0] = uint32_t(x);
    meet();
    return int(warp().words[set][lane][0]);
}

inline uint32_t warp_ballot(bool x) {
    using namespace emulator;
    const int set = next_set();
    warp().words[set][lane()][0] = x;
    meet();
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= warp().words[set][i][0] << i;
    return bits;
}

inline int count_bits(uint32_t x) { return __builtin_popcount(x); }

inline float exp2_fast(float x) { return std::exp2(x); }

inline void copy_async(void* to, const void* from, bool is_there) {
    emulator::check_shared(to);
    emulator::check_aligned(to, 16);
    emulator::check_aligned(from, 16);
    emulator::self().open.push_back({to, from, is_there});
}

inline void copy_commit() {
    emulator::self().groups.push_back(std::move(emulator::self().open));
    emulator::self().open.clear();
}

template <int kPending>
void copy_wait() {
    auto& groups = emulator::self().groups;
    while (int(groups.size()) > kPending) {
        for (const emulator::Copy& copy : groups.front()) emulator::carry_out(copy);
        groups.erase(groups.begin());
    }
}

inline void load_matrices_as(uint32_t (&r)[4], const void* row, bool is_transposed) {
    using namespace emulator;
    check_shared(row);
    check_aligned(row, 16);
    const int set = next_set();
    warp().rows[set][lane()] = (const char*)row;
    meet();
    for (int m = 0; m < 4; ++m) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
            const int matrix_row = is_transposed ? lane() % 4 * 2 + i : lane() / 4;
            const int column = is_transposed ? lane() / 4 : lane() % 4 * 2 + i;
            std::memcpy(&pair[i], warp().rows[set][8 * m + matrix_row] + 2 * column, 2);
        }
        std::memcpy(&r[m], pair, 4);
    }
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { load_matrices_as(r, row, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) { load_matrices_as(r, row, true); }

template <typename T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    using namespace emulator;
    const int set = next_set();
    uint32_t* own = warp().words[set][lane()];
    for (int i = 0; i < 4; ++i) own[i] = a[i];
    own[4] = b0, own[5] = b1;
    meet();
    auto half_of = [&](int owner, int word, int half) {
        return to_float(T{uint16_t(warp().words[set][owner][word] >> (16 * half))});
    };
    for (int e = 0; e < 4; ++e) {
        const int row = lane() / 4 + e / 2 * 8, column = lane() % 4 * 2 + e % 2;
        double sum = d[e];
        for (int k = 0; k < 16; ++k) {
            const float x = half_of(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2);
            const float y = half_of(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
            sum += double(x) * double(y);
        }
        d[e] = float(sum);
    }
}

struct Grid;

// A device that is always there, and is number 0.
class DeviceGuard {
public:
    explicit DeviceGuard(int64_t device) : device_(device) {}
    const char* error() const { return device_ ? "cudaErrorInvalidDevice" : nullptr; }

private:
    int64_t device_;
};

template <typename Args, typename AnyGrid = Grid>
const char* launch(void (*kernel)(Args), AnyGrid grid, bool is_persistent, int64_t, Args args) {
    static thread_local std::string error;
    const int resident = emulator::num_resident;
    const int blocks = is_persistent ? int(std::min<int64_t>(grid.blocks, resident)) : int(grid.blocks);
    ++emulator::num_launches;
    for (int i = 0; i < blocks; i += resident) {
        error = emulator::run_blocks(i, std::min(resident, blocks - i), blocks, grid.threads, grid.shared_bytes,
                                     [=] { kernel(args); });
        if (!error.empty()) return error.c_str();
    }
    return nullptr;
}

}  // namespace gpu
}  // namespace ttc
