// Copies whole blocks of a cache, in all layers.
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include <pybind11/pybind11.h>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace {

// Below this many bytes a call is cheaper on one thread.
constexpr int64_t kParallelBytes = 1 << 20;

// cache: (num_layers, num_blocks, block_bytes), contiguous; pairs: (n, 2), no destination named twice and none a
// source too, so that the order of the copies does not matter.
void copy_blocks(uintptr_t cache, int64_t layer_bytes, int64_t block_bytes, int64_t num_layers, int64_t num_blocks,
                 uintptr_t pairs_address, int64_t n) {
    const int32_t* pairs = reinterpret_cast<const int32_t*>(pairs_address);
    for (int64_t i = 0; i < 2 * n; ++i)
        if (pairs[i] < 0 || pairs[i] >= num_blocks)
            throw std::invalid_argument("copy_blocks: pair " + std::to_string(i / 2) + " (" +
                                        std::to_string(pairs[i / 2 * 2]) + ", " + std::to_string(pairs[i / 2 * 2 + 1]) +
                                        ") is outside the cache of " + std::to_string(num_blocks) + " blocks");
    py::gil_scoped_release release;
    char* base = reinterpret_cast<char*>(cache);
    const int64_t copies = num_layers * n;
    int num_threads = 1;
#ifdef _OPENMP
    if (copies * block_bytes >= kParallelBytes && !omp_in_parallel()) num_threads = omp_get_max_threads();
#endif
    (void)num_threads;
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_threads > 1)
    for (int64_t i = 0; i < copies; ++i) {
        char* layer = base + i / n * layer_bytes;
        const int32_t* pair = pairs + i % n * 2;
        if (pair[0] != pair[1])
            std::memcpy(layer + pair[1] * block_bytes, layer + pair[0] * block_bytes, size_t(block_bytes));
    }
}

}  // namespace

void bind_copy_blocks(py::module_& m) {
    m.def("copy_blocks", &copy_blocks, py::arg("cache"), py::arg("layer_bytes"), py::arg("block_bytes"),
          py::arg("num_layers"), py::arg("num_blocks"), py::arg("pairs"), py::arg("n"),
          "The cache's and the pairs' addresses; see ttc_kernels/copy_blocks/api.py.");
}
