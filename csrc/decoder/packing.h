// Weights in the order that the micro-kernel reads them.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "../common/bf16.h"
#include "decoder.h"

namespace ttc {

// Zero-filled memory that starts on a cache line.
class Aligned {
  public:
    Aligned() = default;
    explicit Aligned(size_t bytes);
    void* get() const { return data_.get(); }

  private:
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    std::unique_ptr<void, Free> data_;
};

// `matrix` points into `memory`.
struct OwnedMatrix {
    Aligned memory;
    PackedMatrix matrix;
    int64_t interleaved = 0;  // of gate_up: outputs of gate
};

// A (num_out, num_in) matrix of zeros, to be filled.
OwnedMatrix empty_matrix(int64_t num_out, int64_t num_in, const DecoderKernels& kernels);

// The same of gate_up, (2 * intermediate, hidden), gate first.  Each panel holds the same outputs of both, gate first.
OwnedMatrix empty_gate_up(int64_t intermediate, int64_t hidden, const DecoderKernels& kernels);

// Fills outputs first .. first + num - 1 from rows (num, num_in), contiguous, of float or bf16.
void pack_rows(OwnedMatrix& packed, const void* rows, bool is_bf16, int64_t first, int64_t num,
               const DecoderKernels& kernels);

// A norm's weight into floats.
void fill_norm(Aligned& packed, const void* weight, bool is_bf16, int64_t size);

// The same in memory of its own, padded_width(size) long.
Aligned pack_norm(const void* weight, bool is_bf16, int64_t size);

}  // namespace ttc
