// copy_blocks on a GPU: whole KV blocks, in all layers of all caches, in one launch; the op is defined in
// ttc_kernels/copy_blocks/reference.py. A block of threads copies one block of one layer, 16 bytes a thread.
#include "cuda/launch.h"

namespace ttc {
namespace gpu {
namespace {

constexpr int kCopyThreads = 256;

// One cache as ttc_kernels/copy_blocks/cuda.py describes it: an address, and sizes in chunks of 16 bytes.
struct Cache {
    int64_t data, layer_chunks, block_chunks;
};

constexpr int kMaxCaches = 8;

struct CopyArgs {
    Cache caches[kMaxCaches];
    const int32_t* pairs;  // (num_pairs, 2): from, to
    int64_t num_pairs, num_layers;
    int64_t num_copies;  // caches * layers * pairs
};

TTC_KERNEL(kCopyThreads) copy_blocks(CopyArgs args) {
    for (int64_t i = block_index(); i < args.num_copies; i += num_blocks()) {
        const int64_t pair = i % args.num_pairs, layer = i / args.num_pairs % args.num_layers;
        const Cache& cache = args.caches[i / args.num_pairs / args.num_layers];
        Chunk* base = (Chunk*)cache.data + layer * cache.layer_chunks;
        const Chunk* from = base + args.pairs[2 * pair] * cache.block_chunks;
        Chunk* to = base + args.pairs[2 * pair + 1] * cache.block_chunks;
        for (int64_t c = thread_index(); c < cache.block_chunks; c += kCopyThreads) to[c] = from[c];
    }
}

}  // namespace
}  // namespace gpu
}  // namespace ttc

// caches: (num_caches, 3) int64 in host memory, at most 8.
TTC_EXPORT const char* ttc_copy_blocks(int64_t device, int64_t stream, int64_t caches, int64_t num_caches,
                                       int64_t num_layers, int64_t pairs, int64_t num_pairs) {
    using namespace ttc::gpu;
    const DeviceGuard guard(device);
    if (guard.error()) return guard.error();
    if (num_caches > kMaxCaches) return "cudaErrorInvalidValue";
    CopyArgs args = {};
    for (int64_t i = 0; i < num_caches; ++i) args.caches[i] = ((const Cache*)caches)[i];
    args.pairs = (const int32_t*)pairs, args.num_pairs = num_pairs, args.num_layers = num_layers;
    args.num_copies = num_caches * num_layers * num_pairs;
    return launch(copy_blocks, {args.num_copies, kCopyThreads, 0}, true, stream, args);
}
