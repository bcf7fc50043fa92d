// Working memory of one thread, kept between calls so that a kernel called thousands of times a second never
// touches the allocator.  Holds no state that outlives a call: whoever takes it must write before reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace ttc {

class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(base_); }

    // At least `bytes` bytes, 64-byte aligned, valid until the next take() on this thread.
    void* take(size_t bytes) {
        if (bytes > size_) {
            std::free(base_);
            size_ = 0;
            base_ = std::malloc(bytes + bytes / 4 + 64);
            if (!base_) throw std::bad_alloc();
            size_ = bytes + bytes / 4;
        }
        return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(base_) + 63) & ~uintptr_t(63));
    }

  private:
    void* base_ = nullptr;
    size_t size_ = 0;
};

}  // namespace ttc
