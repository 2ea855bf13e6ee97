// fused[k] = position_of[columns[k]]: a consumer's table of columns for an X that its producer left
// in its own row order.
#include "chunks.h"

constexpr int threads = 256;

KERNEL void BOUNDS(threads, 1)
fuse(const void* __restrict__ columns, int wide_columns, const void* __restrict__ position_of,
     int wide_positions, void* __restrict__ fused, int wide_fused, int slots) {
    for (int k = block_x() * threads + thread_index(); k < slots; k += grid_x() * threads) {
        int position = entry(position_of, wide_positions, entry(columns, wide_columns, k));
        if (wide_fused)
            store(static_cast<int*>(fused) + k, position);
        else
            store(static_cast<u16*>(fused) + k, static_cast<u16>(position));
    }
}
