// out[b, a] = in[a, b] for 16-bit elements, with the rows of one of the two through a table.
//
// A block moves a tile of 64 x 64 through shared memory, where ldmatrix transposes it: the rows of
// a matrix are chosen so that the four registers of a lane are eight neighbours of a row of the
// output. Both sides are accessed by 16 bytes where their rows begin on 16 bytes.
#include "chunks.h"

constexpr int tile = 64, threads = 256, row_chunks = tile / chunk_elements;
constexpr int chunks_each = tile * row_chunks / threads;
constexpr int elements_each = tile * tile / threads;

// The rows that ldmatrix reads together, {0, 1, 8, 9, 16, 17, 24, 25} and what is even further on,
// lie in eight different groups of banks.
DEVICE u32 in_offset(int row, int chunk) {
    int turn = (row & 1) | (row >> 2 & 6);
    return (row * row_chunks + (chunk ^ turn)) * chunk_bytes;
}

// Four chunks of one row are written together with the same four of the next.
DEVICE u32 out_offset(int row, int chunk) {
    return (row * row_chunks + (chunk ^ (row & 1) << 2)) * chunk_bytes;
}

DEVICE void read_chunks(const u16* in, long long stride, const void* positions, bool wide,
                        int first_row, int first_column, int rows, int columns) {
#pragma unroll
    for (int i = 0; i < chunks_each; i++) {
        int c = thread_index() + i * threads, r = c / row_chunks;
        int row = first_row + r, column = first_column + c % row_chunks * chunk_elements;
        int there = row < rows ? most(0, least(chunk_elements, columns - column)) : 0;
        const u16* from = in;
        if (there) from += entry(positions, wide, row) * stride + column;
        copy_async(shared_base() + in_offset(r, c % row_chunks), from, there * 2);
    }
    copy_commit();
    copy_wait<0>();
}

DEVICE void read_elements(const u16* in, long long stride, const void* positions, bool wide,
                          int first_row, int first_column, int rows, int columns) {
    u16 values[elements_each];
#pragma unroll
    for (int i = 0; i < elements_each; i++) {
        int e = thread_index() + i * threads;
        int row = first_row + e / tile, column = first_column + e % tile;
        values[i] = 0;
        if (row < rows && column < columns)
            values[i] = load(in + entry(positions, wide, row) * stride + column);
    }
#pragma unroll
    for (int i = 0; i < elements_each; i++) {
        int e = thread_index() + i * threads, q = e % tile;
        shared_store(shared_base() + in_offset(e / tile, q / chunk_elements) +
                         q % chunk_elements * 2,
                     values[i]);
    }
}

KERNEL void BOUNDS(threads, 5)
transpose(const u16* __restrict__ in, long long in_stride, u16* __restrict__ out,
          long long out_stride, const void* __restrict__ positions, int wide_positions,
          int positions_of_out, int rows, int columns) {
    const int column_tiles = divided_up(columns, tile);
    const int first_row = block_x() / column_tiles * tile;
    const int first_column = block_x() % column_tiles * tile;
    const void* in_positions = positions_of_out ? nullptr : positions;
    const void* out_positions = positions_of_out ? positions : nullptr;
    const int lane = lane_index(), warp = thread_index() / 32;

    if (rows_aligned(in, in_stride))
        read_chunks(in, in_stride, in_positions, wide_positions, first_row, first_column, rows,
                    columns);
    else
        read_elements(in, in_stride, in_positions, wide_positions, first_row, first_column, rows,
                      columns);
    barrier();

    // A warp has eight columns of the tile, a lane eight rows of one of them, and the same again
    // for the other half of the rows.
    uint4 chunks[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 words[4];
        int matrix = lane / 8, i = lane % 8;
        int row = half * 32 + i / 2 * 8 + matrix * 2 + i % 2;
        load_matrices_transposed(words, shared_base() + in_offset(row, warp));
        chunks[half] = {words[0], words[1], words[2], words[3]};
    }
    if (rows_aligned(out, out_stride)) {
        int column = first_column + warp * 8 + lane / 4;
        if (column >= columns) return;
        u16* to = out + entry(out_positions, wide_positions, column) * out_stride;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row + half * 32 + lane % 4 * chunk_elements;
            store_chunk(to + row, chunks[half], rows - row, true);
        }
        return;
    }
    // By single elements only whole rows of the tile, side by side, fill what a store can take.
    barrier();
#pragma unroll
    for (int half = 0; half < 2; half++)
        shared_store(shared_base() + out_offset(warp * 8 + lane / 4, half * 4 + lane % 4),
                     chunks[half]);
    barrier();
#pragma unroll
    for (int i = 0; i < elements_each; i++) {
        int e = thread_index() + i * threads, q = e % tile;
        int column = first_column + e / tile, row = first_row + q;
        if (column >= columns || row >= rows) continue;
        u16 value = shared_load<u16>(shared_base() + out_offset(e / tile, q / chunk_elements) +
                                     q % chunk_elements * 2);
        store(out + entry(out_positions, wide_positions, column) * out_stride + row, value);
    }
}
