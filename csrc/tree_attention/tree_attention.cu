// Tree attention on a GPU: the function that Python calls.
#include "tree_attention/tree_attention_gpu.h"

namespace ttc {
namespace gpu {

const char* tree_attention_64(const AttentionArgs& args, int64_t stream);
const char* tree_attention_128(const AttentionArgs& args, int64_t stream);

}  // namespace gpu
}  // namespace ttc

// ttc_kernels/tree_attention/cuda.py checks what it passes.
TTC_EXPORT const char* ttc_tree_attention(int64_t device, int64_t stream, const ttc::gpu::AttentionArgs* args) {
    using namespace ttc::gpu;
    const DeviceGuard guard(device);
    if (guard.error()) return guard.error();
    return args->head_dim == 64 ? tree_attention_64(*args, stream) : tree_attention_128(*args, stream);
}
