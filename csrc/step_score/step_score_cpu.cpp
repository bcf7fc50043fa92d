// step_score on a CPU: scores over threads, then the fold in order; the choice of an instruction set; the binding.
#include <cmath>

#include "common/cpu.h"
#include "common/views.h"

#define TTC_ISA portable
#include "step_score/step_score_kernel.h"

namespace ttc {
#if TTC_X86
namespace avx2 {
extern const DotKernels dot_kernels;
}
namespace avx512 {
extern const DotKernels dot_kernels;
}
#endif

namespace {

constexpr int64_t kMinParallelElements = 1 << 16;  // below, waking a second thread costs more than it saves

const DotKernels& kernels_for(Isa isa) {
#if TTC_X86
    if (isa == Isa::Avx512) return avx512::dot_kernels;
    if (isa == Isa::Avx2) return avx2::dot_kernels;
#endif
    (void)isa;
    return portable::dot_kernels;
}

struct Head {
    const void* weight;
    const void* bias;  // or null
    int64_t hidden, num_labels, good_index;
    bool is_bf16;
};

float logit(const Head& head, const DotKernels& kernels, const void* row, int64_t label) {
    if (head.is_bf16) {
        const float dot = kernels.bf16(row, (const bf16*)head.weight + label * head.hidden, head.hidden);
        return head.bias ? dot + to_float(((const bf16*)head.bias)[label]) : dot;
    }
    const float dot = kernels.f32(row, (const float*)head.weight + label * head.hidden, head.hidden);
    return head.bias ? dot + ((const float*)head.bias)[label] : dot;
}

// Sigmoid of the one logit, or the softmax's share of good_index, as 1 / sum of exp(other - good): no overflow to
// NaN, and an exact 0 or 1 is a score like any other.
float score_row(const Head& head, const DotKernels& kernels, const void* row) {
    const double good = logit(head, kernels, row, head.num_labels == 1 ? 0 : head.good_index);
    if (head.num_labels == 1) return (float)(1.0 / (1.0 + std::exp(-good)));
    double total = 0;
    for (int64_t label = 0; label < head.num_labels; ++label)
        total += label == head.good_index ? std::exp(good - good) : std::exp(logit(head, kernels, row, label) - good);
    return (float)(1.0 / total);
}

// The same float operations as `fold` in reference.py.
void fold(float* state, int32_t* count, float score) {
    if (*count == 0) {
        state[0] = state[1] = state[2] = state[3] = score;
    } else {
        state[0] = score;
        state[1] = score < state[1] || std::isnan(score) ? score : state[1];
        state[2] *= score;
        state[3] += (score - state[3]) / (float)(*count + 1);
    }
    ++*count;
}

void check_range(const char* name, const int32_t* values, int64_t n, int64_t limit) {
    for (int64_t i = 0; i < n; ++i)
        if (values[i] < 0 || values[i] >= limit)
            throw std::invalid_argument(std::string("step_score: ") + name + "[" + std::to_string(i) + "] is " +
                                        std::to_string(values[i]) + ", must be within [0, " + std::to_string(limit) +
                                        ")");
}

void step_score(const TensorView& hidden, const TensorView& rows, const TensorView& weight, Elements<const void> bias,
                int64_t good_index, const TensorView& state, Elements<int32_t> counts, Elements<const int32_t> slot,
                Elements<float> scores, const std::string& isa) {
    const DotKernels& kernels = kernels_for(parse_isa(isa));
    const int64_t n = rows.shape[0], num_labels = weight.shape[0], size = weight.shape[1];
    const Head head = {weight.data, bias, size, num_labels, good_index, hidden.is_bf16()};
    const int32_t* row = (const int32_t*)rows.data;
    check_range("rows", row, n, hidden.shape[0]);
    check_range("slot", slot, n, state.shape[0]);
    const int64_t row_bytes = hidden.strides[0] * hidden.item_bytes;
#pragma omp parallel for schedule(static) if (n * size * num_labels >= kMinParallelElements)
    for (int64_t i = 0; i < n; ++i)
        scores.data[i] = score_row(head, kernels, (const char*)hidden.data + row[i] * row_bytes);
    for (int64_t i = 0; i < n; ++i)
        fold((float*)state.data + 4 * slot.data[i], counts.data + slot.data[i], scores.data[i]);
}

}  // namespace
}  // namespace ttc

void bind_step_score(pybind11::module_& m) {
    namespace py = pybind11;
    m.def("step_score", &ttc::step_score, py::arg("hidden"), py::arg("rows"), py::arg("weight"), py::arg("bias"),
          py::arg("good_index"), py::arg("state"), py::arg("counts"), py::arg("slot"), py::arg("scores"),
          py::arg("isa") = "auto", py::call_guard<py::gil_scoped_release>(),
          "See ttc_kernels/step_score/api.py, which checks what it passes.");
}
