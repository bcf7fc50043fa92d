// Weights in the order that the micro-kernel reads them; done once per model.
#include "packing.h"

#include <cstring>
#include <new>

namespace ttc {
namespace {

float weight_at(const void* weight, bool is_bf16, int64_t i) {
    return is_bf16 ? to_float(static_cast<const bf16*>(weight)[i]) : static_cast<const float*>(weight)[i];
}

// columns: for each packed column the output it holds, -1 for none.
OwnedMatrix pack_columns(const void* weight, bool is_bf16, int64_t num_out, int64_t num_in,
                         const std::vector<int64_t>& columns, const DecoderKernels& kernels) {
    const int64_t width = kernels.width, inputs = kernels.inputs_per_step;
    OwnedMatrix packed;
    PackedMatrix& m = packed.matrix;
    m.num_in = num_in;
    m.num_out = num_out;
    m.num_steps = (num_in + inputs - 1) / inputs;
    m.num_panels = int64_t(columns.size()) / width;
    packed.memory = Aligned(size_t(m.num_panels * m.num_steps * width * inputs * kernels.element_bytes));
    m.panels = packed.memory.get();
    for (int64_t c = 0; c < int64_t(columns.size()); ++c) {
        if (columns[size_t(c)] < 0) continue;
        const int64_t panel = c / width * m.num_steps * width * inputs;
        for (int64_t i = 0; i < num_in; ++i) {
            const int64_t at = panel + (i / inputs * width + c % width) * inputs + i % inputs;
            const float value = weight_at(weight, is_bf16, columns[size_t(c)] * num_in + i);
            if (kernels.element_bytes == 2)
                static_cast<bf16*>(packed.memory.get())[at] = to_bf16(value);
            else
                static_cast<float*>(packed.memory.get())[at] = value;
        }
    }
    return packed;
}

}  // namespace

Aligned::Aligned(size_t bytes) {
    const size_t whole = (bytes + 63) / 64 * 64 + 64;
    data_.reset(std::aligned_alloc(64, whole));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, whole);
}

OwnedMatrix pack_matrix(const void* weight, bool is_bf16, int64_t num_out, int64_t num_in,
                        const DecoderKernels& kernels) {
    std::vector<int64_t> columns(size_t((num_out + kernels.width - 1) / kernels.width * kernels.width), -1);
    for (int64_t i = 0; i < num_out; ++i) columns[size_t(i)] = i;
    return pack_columns(weight, is_bf16, num_out, num_in, columns, kernels);
}

OwnedMatrix pack_gate_up(const void* gate_up, bool is_bf16, int64_t intermediate, int64_t hidden,
                         const DecoderKernels& kernels) {
    const int64_t half = kernels.width / 2, num_panels = (intermediate + half - 1) / half;
    std::vector<int64_t> columns(size_t(num_panels * kernels.width), -1);
    for (int64_t i = 0; i < intermediate; ++i) {
        const int64_t at = i / half * kernels.width + i % half;
        columns[size_t(at)] = i;
        columns[size_t(at + half)] = intermediate + i;
    }
    return pack_columns(gate_up, is_bf16, 2 * intermediate, hidden, columns, kernels);
}

Aligned pack_norm(const void* weight, bool is_bf16, int64_t size) {
    Aligned packed(size_t(padded_width(size)) * sizeof(float));
    for (int64_t i = 0; i < size; ++i) static_cast<float*>(packed.get())[i] = weight_at(weight, is_bf16, i);
    return packed;
}

}  // namespace ttc
