// From sums in registers to rows of Y, through shared memory, so that a row is written in whole
// pieces.
#pragma once
#include "epilogue.h"

// Leaves a warp's rows in shared memory as Y's numbers. `first_row` and `first_column` say where
// they belong there; packed_row(row) is the packed row of a row there.
template <int row_blocks, int column_blocks, class PackedRow>
DEVICE void leave_output(const float (&sums)[row_blocks][column_blocks][4], u32 out, int stride,
                         int first_row, int first_column, PackedRow packed_row,
                         const int* row_map, const u16* bias, int activation) {
    constexpr int row_values = column_blocks * 2;  // of a lane
    const int lane = lane_index();
    float values[row_blocks * 2 * row_values];
#pragma unroll
    for (int i = 0; i < row_blocks; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first_row + i * 16 + half * 8 + lane / 4;
            float offset = output_row(row_map, bias, packed_row(row), false).bias;
#pragma unroll
            for (int v = 0; v < row_values; v++)
                values[(i * 2 + half) * row_values + v] = sums[i][v / 2][half * 2 + v % 2] + offset;
        }
    }
    activate<8>(values, activation);
#pragma unroll
    for (int r = 0; r < row_blocks * 2; r++) {
#pragma unroll
        for (int j = 0; j < column_blocks; j++) {
            int row = first_row + r * 8 + lane / 4, column = first_column + j * 8 + lane % 4 * 2;
            shared_store(out + row * stride + column * 2,
                         pair_from_floats(values[r * row_values + j * 2],
                                          values[r * row_values + j * 2 + 1]));
        }
    }
}

// Writes the rows that all warps have left, combined with what is read at the same places. Rows
// whose packed row is -1 are none.
template <int rows, int block_n, int threads, bool aligned, class PackedRow>
DEVICE void write_output(u32 out, int stride, int first_column, PackedRow packed_row,
                         const int* row_map, bool keep_order, const u16* factor,
                         const u16* addend, u16* y, long long y_stride, int columns) {
    constexpr int row_chunks = block_n / 8;
    for (int c = thread_index(); c < rows * row_chunks; c += threads) {
        int row = c / row_chunks, first = first_column + c % row_chunks * 8;
        int packed = packed_row(row);
        int to = packed < 0 ? -1 : output_row(row_map, nullptr, packed, keep_order).row;
        int there = least(8, columns - first);
        if (to < 0 || there <= 0) continue;
        uint4 chunk = shared_load<uint4>(out + row * stride + c % row_chunks * 16);
        u32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
        long long at = to * y_stride + first;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (e >= there || !(factor || addend)) continue;
            u16 value = combined(static_cast<u16>(words[e / 2] >> 16 * (e & 1)), factor, addend, at + e);
            words[e / 2] = (words[e / 2] & (0xffffu << 16 * (~e & 1))) |
                           static_cast<u32>(value) << 16 * (e & 1);
        }
        if (aligned && there == 8) {
            store(reinterpret_cast<uint4*>(y + at), uint4{words[0], words[1], words[2], words[3]});
        } else {
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (e < there)
                    store(y + at + e, static_cast<u16>(words[e / 2] >> 16 * (e & 1)));
        }
    }
}
