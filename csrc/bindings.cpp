// ttc_kernels._native: every part binds itself, at the bottom of its own folder.
#include <pybind11/pybind11.h>

void bind_kv_tree(pybind11::module_& m);
void bind_tree_attention(pybind11::module_& m);
void bind_rope_store_kv(pybind11::module_& m);
void bind_copy_blocks(pybind11::module_& m);
void bind_rms_norm(pybind11::module_& m);
void bind_swiglu(pybind11::module_& m);
void bind_sample(pybind11::module_& m);
void bind_step_score(pybind11::module_& m);
void bind_decoder(pybind11::module_& m);
void bind_attention_work(pybind11::module_& m);

PYBIND11_MODULE(_native, m) {
    m.doc() = "KV tree, attention plan and CPU kernels";
    bind_kv_tree(m);
    bind_tree_attention(m);
    bind_rope_store_kv(m);
    bind_copy_blocks(m);
    bind_rms_norm(m);
    bind_swiglu(m);
    bind_sample(m);
    bind_step_score(m);
    bind_decoder(m);
    bind_attention_work(m);
}
