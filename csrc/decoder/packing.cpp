// Weights in the order that the micro-kernel reads them; done once per model.
#include "packing.h"

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace ttc {
namespace {

float weight_at(const void* weight, bool is_bf16, int64_t i) {
    return is_bf16 ? to_float(static_cast<const bf16*>(weight)[i]) : static_cast<const float*>(weight)[i];
}

OwnedMatrix make_matrix(int64_t num_out, int64_t num_in, int64_t num_panels, const DecoderKernels& kernels) {
    const int64_t width = kernels.width, inputs = kernels.inputs_per_step;
    OwnedMatrix packed;
    PackedMatrix& m = packed.matrix;
    m.num_in = num_in;
    m.num_out = num_out;
    m.num_steps = (num_in + inputs - 1) / inputs;
    m.num_panels = num_panels;
    packed.memory = Aligned(size_t(m.num_panels * m.num_steps * width * inputs * kernels.element_bytes));
    m.panels = packed.memory.get();
    return packed;
}

// The packed column that holds an output.
int64_t column_of(const OwnedMatrix& packed, int64_t output, int64_t width) {
    if (!packed.interleaved) return output;
    const int64_t half = width / 2, i = output % packed.interleaved;
    return i / half * width + i % half + (output < packed.interleaved ? 0 : half);
}

}  // namespace

Aligned::Aligned(size_t bytes) {
    const size_t whole = (bytes + 63) / 64 * 64 + 64;
    data_.reset(std::aligned_alloc(64, whole));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, whole);
}

OwnedMatrix empty_matrix(int64_t num_out, int64_t num_in, const DecoderKernels& kernels) {
    return make_matrix(num_out, num_in, (num_out + kernels.width - 1) / kernels.width, kernels);
}

OwnedMatrix empty_gate_up(int64_t intermediate, int64_t hidden, const DecoderKernels& kernels) {
    const int64_t half = kernels.width / 2;
    OwnedMatrix packed = make_matrix(2 * intermediate, hidden, (intermediate + half - 1) / half, kernels);
    packed.interleaved = intermediate;
    return packed;
}

void pack_rows(OwnedMatrix& packed, const void* rows, bool is_bf16, int64_t first, int64_t num,
               const DecoderKernels& kernels) {
    const PackedMatrix& m = packed.matrix;
    const int64_t width = kernels.width, inputs = kernels.inputs_per_step;
    if (first < 0 || num < 0 || first + num > m.num_out)
        throw std::invalid_argument("decoder: rows " + std::to_string(first) + " to " + std::to_string(first + num) +
                                    " of a matrix that has " + std::to_string(m.num_out));
    for (int64_t r = 0; r < num; ++r) {
        const int64_t c = column_of(packed, first + r, width);
        const int64_t panel = c / width * m.num_steps * width * inputs;
        for (int64_t i = 0; i < m.num_in; ++i) {
            const int64_t at = panel + (i / inputs * width + c % width) * inputs + i % inputs;
            const float value = weight_at(rows, is_bf16, r * m.num_in + i);
            if (kernels.element_bytes == 2)
                static_cast<bf16*>(packed.memory.get())[at] = to_bf16(value);
            else
                static_cast<float*>(packed.memory.get())[at] = value;
        }
    }
}

void fill_norm(Aligned& packed, const void* weight, bool is_bf16, int64_t size) {
    for (int64_t i = 0; i < size; ++i) static_cast<float*>(packed.get())[i] = weight_at(weight, is_bf16, i);
}

Aligned pack_norm(const void* weight, bool is_bf16, int64_t size) {
    Aligned packed(size_t(padded_width(size)) * sizeof(float));
    fill_norm(packed, weight, is_bf16, size);
    return packed;
}

}  // namespace ttc
