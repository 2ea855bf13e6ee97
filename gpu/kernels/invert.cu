// position_of[order[p]] = p: where a producer left each row, from the row at each position of its
// output. Entries that name no row, -1 first among them, are passed over.
#include "chunks.h"

constexpr int threads = 256;

KERNEL void BOUNDS(threads, 1)
invert(const void* __restrict__ order, int wide_order, int positions, void* position_of,
       int wide_positions, int rows) {
    for (int p = block_x() * threads + thread_index(); p < positions; p += grid_x() * threads) {
        int row = entry(order, wide_order, p);
        if (row < 0 || row >= rows) continue;
        if (wide_positions)
            store(static_cast<int*>(position_of) + row, p);
        else
            store(static_cast<u16*>(position_of) + row, static_cast<u16>(p));
    }
}
