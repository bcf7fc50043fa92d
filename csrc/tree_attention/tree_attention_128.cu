// Head size 128; a file each, so that they are compiled side by side.
#include "tree_attention/tree_attention_gpu.h"

namespace ttc {
namespace gpu {

const char* tree_attention_128(const AttentionArgs& args, int64_t stream) {
    return args.is_bf16 ? tree_attention<Bf16, 128>(args, stream)
                        : tree_attention<Half, 128>(args, stream);
}

}  // namespace gpu
}  // namespace ttc
