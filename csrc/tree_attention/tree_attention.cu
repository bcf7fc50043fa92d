// Tree attention on a GPU: the function that Python calls.
#include "tree_attention/tree_attention_gpu.h"

namespace ttc {
namespace gpu {

const char* tree_attention_64(const AttentionArgs& args, int64_t num_rows, int64_t stream, bool is_bf16);
const char* tree_attention_128(const AttentionArgs& args, int64_t num_rows, int64_t stream, bool is_bf16);

}  // namespace gpu
}  // namespace ttc

// Addresses, and strides in elements; head_dim is 64 or 128. ttc_kernels/tree_attention/cuda.py checks what it passes.
TTC_EXPORT const char* ttc_tree_attention(int64_t device, int64_t stream, int64_t q, int64_t q_row, int64_t q_head,
                                          int64_t k, int64_t k_block, int64_t k_head, int64_t k_token, int64_t v,
                                          int64_t v_block, int64_t v_head, int64_t v_token, int64_t out,
                                          int64_t partial, int64_t partial_lse, int64_t work, int64_t num_rows,
                                          int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                                          int64_t block_shift, int64_t is_bf16, double scale) {
    using namespace ttc::gpu;
    const DeviceGuard guard(device);
    if (guard.error()) return guard.error();
    AttentionArgs args;
    args.q = (const void*)q, args.k = (const void*)k, args.v = (const void*)v, args.out = (void*)out;
    args.partial = (float*)partial, args.partial_lse = (float*)partial_lse, args.work = (const int32_t*)work;
    args.q_row = q_row, args.q_head = q_head;
    args.k_block = k_block, args.k_head = k_head, args.k_token = k_token;
    args.v_block = v_block, args.v_head = v_head, args.v_token = v_token;
    args.num_heads = (int32_t)num_heads, args.num_kv_heads = (int32_t)num_kv_heads;
    args.block_shift = (int32_t)block_shift, args.scale = (float)scale;
    return head_dim == 64 ? tree_attention_64(args, num_rows, stream, is_bf16 != 0)
                          : tree_attention_128(args, num_rows, stream, is_bf16 != 0);
}
