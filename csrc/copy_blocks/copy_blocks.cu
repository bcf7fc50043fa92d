// copy_blocks on a GPU: whole KV blocks, in all layers of all caches, in one launch; the op is defined in
// ttc_kernels/copy_blocks/reference.py. A block of threads copies one block of one layer, 16 bytes a thread.
#include "cuda/launch.h"

namespace ttc {
namespace gpu {

// One cache: its address, and chunks of 16 bytes from layer to layer and in a block.
struct Cache {
    int64_t data, layer_chunks, block_chunks;
};

// What Python passes, field for field (ttc_kernels/copy_blocks/cuda.py).
struct CopyBlocksArgs {
    const Cache* caches;  // (num_caches) in host memory, at most kMaxCaches
    int64_t num_caches, num_layers;
    const int32_t* pairs;  // (num_pairs, 2) on the device: from, to
    int64_t num_pairs;
};

namespace {

constexpr int kCopyThreads = 256;
constexpr int kMaxCaches = 8;

// What the kernel gets.
struct Copies {
    Cache caches[kMaxCaches];
    const int32_t* pairs;  // (num_pairs, 2): from, to
    int64_t num_pairs, num_layers;
    int64_t num_copies;  // caches * layers * pairs
};

TTC_KERNEL(kCopyThreads) copy_blocks(Copies args) {
    await_earlier_kernels();
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

TTC_EXPORT const char* ttc_copy_blocks(int64_t device, int64_t stream, const ttc::gpu::CopyBlocksArgs* args) {
    using namespace ttc::gpu;
    const DeviceGuard guard(device);
    if (guard.error()) return guard.error();
    if (args->num_caches > kMaxCaches) return "cudaErrorInvalidValue";
    Copies copies = {};
    for (int64_t i = 0; i < args->num_caches; ++i) copies.caches[i] = args->caches[i];
    copies.pairs = args->pairs, copies.num_pairs = args->num_pairs, copies.num_layers = args->num_layers;
    copies.num_copies = args->num_caches * args->num_layers * args->num_pairs;
    return launch(copy_blocks, {copies.num_copies, kCopyThreads, 0}, true, stream, copies);
}
