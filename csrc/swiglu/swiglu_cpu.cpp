// swiglu on a CPU: the portable build, the choice of an instruction set, threads over rows, the binding.
#include "common/cpu.h"
#include "common/views.h"

#define TTC_ISA portable
#include "swiglu/swiglu_kernel.h"

namespace ttc {
#if TTC_X86
namespace avx2 {
extern const SwigluKernels swiglu_kernels;
}
namespace avx512 {
extern const SwigluKernels swiglu_kernels;
}
#endif

namespace {

constexpr int64_t kMinParallelElements = 1 << 15;  // below, waking a second thread costs more than it saves

const SwigluKernels& kernels_for(Isa isa) {
#if TTC_X86
    if (isa == Isa::Avx512) return avx512::swiglu_kernels;
    if (isa == Isa::Avx2) return avx2::swiglu_kernels;
#endif
    (void)isa;
    return portable::swiglu_kernels;
}

void swiglu(const TensorView& gate_up, const TensorView& out, const std::string& isa) {
    const SwigluKernels& kernels = kernels_for(parse_isa(isa));
    const SwigluRows rows = gate_up.is_bf16() ? kernels.bf16 : kernels.f32;
    const int64_t num_rows = out.shape[0], size = out.shape[1];
    const SwigluArgs args = {gate_up.data, out.data, gate_up.strides[0], out.strides[0], size};
    if (num_rows * size < kMinParallelElements) return rows(args, 0, num_rows);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) rows(args, row, row + 1);
}

}  // namespace
}  // namespace ttc

void bind_swiglu(pybind11::module_& m) {
    namespace py = pybind11;
    m.def("swiglu", &ttc::swiglu, py::arg("gate_up"), py::arg("out"), py::arg("isa") = "auto",
          py::call_guard<py::gil_scoped_release>(), "See ttc_kernels/swiglu/api.py, which checks what it passes.");
}
