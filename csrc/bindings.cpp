// ttc_kernels._native: every part binds itself, at the bottom of its own folder.
#include <pybind11/pybind11.h>

// Bring-up only: a part whose folder holds no source yet is left out.
#define PART(name) void bind_##name(pybind11::module_& m) __attribute__((weak));
PART(kv_tree)
PART(tree_attention)
PART(rope_store_kv)
PART(copy_blocks)
PART(rms_norm)
PART(swiglu)
PART(sample)
PART(step_score)
#undef PART

PYBIND11_MODULE(_native, m) {
    m.doc() = "KV tree, attention plan and CPU kernels";
#define BIND(name) if (bind_##name) bind_##name(m);
    BIND(kv_tree)
    BIND(tree_attention)
    BIND(rope_store_kv)
    BIND(copy_blocks)
    BIND(rms_norm)
    BIND(swiglu)
    BIND(sample)
    BIND(step_score)
#undef BIND
}
