// rms_norm on a CPU: the portable build, the choice of an instruction set, threads over rows, the binding.
#include "common/cpu.h"
#include "common/views.h"

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

void rms_norm(const TensorView& x, Elements<const void> weight, float eps, const TensorView& residual,
              const TensorView& out, const std::string& isa) {
    const RmsNormKernels& kernels = kernels_for(parse_isa(isa));
    const RmsNormRows rows = x.is_bf16() ? kernels.bf16 : kernels.f32;
    const int64_t num_rows = x.shape[0], hidden = x.shape[1];
    const RmsNormArgs args = {x.data,       weight,           residual.data, out.data, x.strides[0],
                              residual.strides[0], out.strides[0], hidden,        eps};
    if (num_rows * hidden < kMinParallelElements) return rows(args, 0, num_rows);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) rows(args, row, row + 1);
}

}  // namespace
}  // namespace ttc

void bind_rms_norm(pybind11::module_& m) {
    namespace py = pybind11;
    m.def("rms_norm", &ttc::rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("residual"),
          py::arg("out"), py::arg("isa") = "auto", py::call_guard<py::gil_scoped_release>(),
          "See ttc_kernels/rms_norm/api.py, which checks what it passes.");
}
