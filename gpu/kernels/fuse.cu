// fused[k] = position_of[columns[k]]: a consumer's table of columns for an X that its producer left
// in its own row order. Of a row map, which has -1 where there is no row, the -1 stay.
#include "chunks.h"

constexpr int threads = 256;

KERNEL void BOUNDS(threads, 1)
fuse(const void* __restrict__ columns, int wide_columns, const void* __restrict__ position_of,
     int wide_positions, void* __restrict__ fused, int wide_fused, int slots) {
    for (int k = block_x() * threads + thread_index(); k < slots; k += grid_x() * threads) {
        int id = entry(columns, wide_columns, k);
        int position = id < 0 ? id : entry(position_of, wide_positions, id);
        if (wide_fused)
            store(static_cast<int*>(fused) + k, position);
        else
            store(static_cast<u16*>(fused) + k, static_cast<u16>(position));
    }
}
