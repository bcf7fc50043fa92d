// Tiles of 16-bit elements in shared memory, and where the lanes of a warp find the fragments of a matrix product.
//
// A tile is rows of kChunks chunks of 16 bytes. Chunk c of row r lies at place c ^ (r % 8) of the row, so that eight
// rows of one column of chunks, which is what load_matrices reads at once, lie in different banks.
#pragma once

#include "cuda/device.h"

namespace ttc {
namespace gpu {

template <int kChunks>
TTC_DEVICE char* chunk_at(char* tile, int row, int chunk) {
    static_assert(kChunks % 8 == 0, "the swizzle permutes eight chunks");
    return tile + (row * kChunks + (chunk ^ (row & 7))) * 16;
}

// The same for chunk + odd of an even chunk, a constant that is kept apart from what differs from lane to lane: only
// four of the offsets that a loop over chunks needs have to be computed, and they serve every tile.
template <int kChunks>
TTC_DEVICE char* even_chunk_at(char* tile, int row, int chunk, int odd) {
    static_assert(kChunks % 8 == 0, "the swizzle permutes eight chunks");
    return tile + chunk / 8 * 128 + row * (kChunks * 16) + ((((row & 7) ^ odd) * 16) ^ (chunk % 8 * 16));
}

// Matrices (rows 0-7, chunk), (rows 0-7, chunk + 1), (rows 8-15, chunk), (rows 8-15, chunk + 1), counted from `row`,
// for an even chunk: what a lane passes to load_matrices for the b operand of two products with columns row .. row + 7 and
// row + 8 .. row + 15 of a tile that is stored as (column, depth).
template <int kChunks>
TTC_DEVICE char* columns_at(char* tile, int row, int chunk, int lane) {
    return even_chunk_at<kChunks>(tile, row + lane / 16 * 8 + lane % 8, chunk, lane / 8 % 2);
}

// Matrices (rows 0-7, chunk), (rows 8-15, chunk), (rows 0-7, chunk + 1), (rows 8-15, chunk + 1): for load_matrices
// the a operand of a tile stored as (row, depth); for load_matrices_transposed the b operand of two products with
// columns 8 chunk .. and 8 chunk + 8 .. of a tile stored as (depth, column).
template <int kChunks>
TTC_DEVICE char* rows_at(char* tile, int row, int chunk, int lane) {
    return even_chunk_at<kChunks>(tile, row + lane / 8 % 2 * 8 + lane % 8, chunk, lane / 16);
}

}  // namespace gpu
}  // namespace ttc
