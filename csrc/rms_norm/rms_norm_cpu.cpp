// rms_norm on a CPU: the portable build, the choice of an instruction set, threads over rows, the binding.
#include <pybind11/pybind11.h>

#include "common/cpu.h"

#define TTC_ISA portable
#include "rms_norm/rms_norm_kernel.h"

namespace ttc {
#if TTC_X86
namespace avx2 {
extern const RmsNormKernels rms_norm_kernels;
}
namespace avx512 {
extern const RmsNormKernels rms_norm_kernels;
}
#endif

namespace {

constexpr int64_t kMinParallelElements = 1 << 16;  // below, waking a second thread costs more than it saves

const RmsNormKernels& kernels_for(Isa isa) {
#if TTC_X86
    if (isa == Isa::Avx512) return avx512::rms_norm_kernels;
    if (isa == Isa::Avx2) return avx2::rms_norm_kernels;
#endif
    (void)isa;
    return portable::rms_norm_kernels;
}

void rms_norm(uintptr_t x, int64_t x_stride, uintptr_t weight, float eps, uintptr_t residual, int64_t residual_stride,
              uintptr_t out, int64_t out_stride, int64_t num_rows, int64_t hidden, bool is_bf16,
              const std::string& isa) {
    const RmsNormKernels& kernels = kernels_for(parse_isa(isa));
    const RmsNormRows rows = is_bf16 ? kernels.bf16 : kernels.f32;
    const RmsNormArgs args = {(const void*)x, (const void*)weight, (void*)residual, (void*)out, x_stride,
                              residual_stride, out_stride, hidden, eps};
    if (num_rows * hidden < kMinParallelElements) return rows(args, 0, num_rows);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) rows(args, row, row + 1);
}

}  // namespace
}  // namespace ttc

void bind_rms_norm(pybind11::module_& m) {
    namespace py = pybind11;
    m.def("rms_norm", &ttc::rms_norm, py::arg("x"), py::arg("x_stride"), py::arg("weight"), py::arg("eps"),
          py::arg("residual"), py::arg("residual_stride"), py::arg("out"), py::arg("out_stride"), py::arg("num_rows"),
          py::arg("hidden"), py::arg("is_bf16"), py::arg("isa") = "auto",
          py::call_guard<py::gil_scoped_release>(),
          "RMSNorm over raw pointers; ttc_kernels.rms_norm.api checks what it passes.");
}
