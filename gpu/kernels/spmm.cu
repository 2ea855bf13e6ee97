// Y[R, N] = W[R, C] X[C, N] for W packed by tiles of V rows, each with columns of its own, at the
// sizes of a prefill: tensor cores, kept rows of X gathered into a ring of stages.
//
// A tile's kept columns come in steps of 64. The block that computes V x BN outputs keeps STAGES
// steps of X's rows and W's fragments under way by asynchronous copies. Which part of which tile a
// block computes, it reads from a schedule; a tile that several blocks share is summed by whichever
// of them comes last, always in the order of its parts.
//
// Compile-time: TILE_ROWS V, BLOCK_N BN, WARPS_M x WARPS_N warps, STAGES, SPARSE (two of four kept,
// else dense inside), ALIGNED (rows of X, Y and what is read beside them begin on 16 bytes),
// GYROPERM_BF16.
#include "output.h"
#include "parts.h"

constexpr int step_columns = 64;
constexpr int threads = 32 * WARPS_M * WARPS_N;
constexpr int row_blocks = TILE_ROWS / WARPS_M / 16;  // 16-row fragments of a warp
constexpr int column_blocks = BLOCK_N / WARPS_N / 8;  // 8-column fragments of a warp
constexpr int row_chunks = BLOCK_N / 8;               // of 16 bytes, in a row of X
constexpr int inner_steps = SPARSE ? 2 : 4;           // matrix products along a step
constexpr int fragment_chunks = TILE_ROWS / 16 * 32;  // of 16 bytes, for one of them
constexpr int metadata_chunks = SPARSE ? TILE_ROWS / 16 * 8 : 0;

constexpr int x_bytes = step_columns * BLOCK_N * 2;
constexpr int values_bytes = inner_steps * fragment_chunks * 16;
constexpr int stage_bytes = x_bytes + values_bytes + metadata_chunks * 16;
constexpr int output_stride = BLOCK_N * 2 + 16;  // so that eight rows lie in different banks

static_assert(TILE_ROWS % (16 * WARPS_M) == 0 && BLOCK_N % (16 * WARPS_N) == 0, "");

// One part of one tile's product with BLOCK_N columns of X.
struct Work {
    int tile, column;       // column: of X, the first
    int first_step, steps;  // counted over all tiles
    int part, parts;        // of this tile and these columns
    int slot, counter;      // of the workspace: part 0's slot; which counter
};

// Eight rows that are read together lie in eight different groups of banks.
DEVICE u32 x_offset(int k, int chunk) {
    int turn = row_chunks >= 8 ? k & 7 : k / (8 / row_chunks) & (row_chunks - 1);
    return (k * row_chunks + (chunk ^ turn)) * 16;
}

// Which row of X each of a thread's chunks of a step comes from: read a step ahead of the copy.
constexpr int chunks_each = (step_columns * row_chunks + threads - 1) / threads;
struct Rows {
    int row[chunks_each];
};

DEVICE Rows rows_of_step(const void* columns, bool wide, int step) {
    Rows rows;
#pragma unroll
    for (int i = 0; i < chunks_each; i++) {
        int chunk = thread_index() + i * threads;
        int k = step * step_columns + chunk / row_chunks;
        if (chunk < step_columns * row_chunks)
            rows.row[i] = wide ? load(static_cast<const int*>(columns) + k)
                               : load(static_cast<const u16*>(columns) + k);
    }
    return rows;
}

DEVICE void copy_x(u32 stage, const Rows& rows, const u16* x, long long x_stride, int column,
                   int columns) {
#pragma unroll
    for (int i = 0; i < chunks_each; i++) {
        int chunk = thread_index() + i * threads;
        if (chunk >= step_columns * row_chunks) break;
        int k = chunk / row_chunks, q = chunk % row_chunks, first = column + q * 8;
        const u16* from = x + rows.row[i] * x_stride + first;
        int there = most(0, least(8, columns - first));
        u32 to = stage + x_offset(k, q);
        if (ALIGNED) {
            copy_async(to, there ? from : x, there * 2);
        } else {
            u32 words[4] = {};
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (e < there) words[e / 2] |= static_cast<u32>(load(from + e)) << 16 * (e & 1);
            shared_store(to, uint4{words[0], words[1], words[2], words[3]});
        }
    }
}

DEVICE void copy_weights(u32 stage, const uint4* values, const uint4* metadata, int step) {
    const uint4* from = values + static_cast<long long>(step) * (values_bytes / 16);
    for (int c = thread_index(); c < values_bytes / 16; c += threads)
        copy_async(stage + x_bytes + c * 16, from + c);
    if (!SPARSE) return;
    from = metadata + static_cast<long long>(step) * metadata_chunks;
    for (int c = thread_index(); c < metadata_chunks; c += threads)
        copy_async(stage + x_bytes + values_bytes + c * 16, from + c);
}

typedef float Sums[row_blocks][column_blocks][4];

DEVICE void multiply_stage(u32 stage, Sums& sums) {
    const int lane = lane_index(), warp = thread_index() / 32;
    const int first_row_block = warp / WARPS_N * row_blocks;
    const int first_chunk = warp % WARPS_N * column_blocks;
    const u32 values = stage + x_bytes, metadata = values + values_bytes;
    u32 words[row_blocks];
    if (SPARSE) {
#pragma unroll
        for (int i = 0; i < row_blocks; i++)
            words[i] = shared_load<u32>(metadata + ((first_row_block + i) * 32 + lane) * 4);
    }
#pragma unroll
    for (int h = 0; h < inner_steps; h++) {
        uint4 a[row_blocks];
#pragma unroll
        for (int i = 0; i < row_blocks; i++)
            a[i] = shared_load<uint4>(
                values + (h * fragment_chunks + (first_row_block + i) * 32 + lane) * 16);
#if SPARSE
#pragma unroll
        for (int j = 0; j < column_blocks; j++) {
            u32 b[4];
            load_matrices_transposed(b, stage + x_offset(h * 32 + lane, first_chunk + j));
#pragma unroll
            for (int i = 0; i < row_blocks; i++) {
                if (h == 0)
                    multiply_sparse<0>(sums[i][j], a[i], b, words[i]);
                else
                    multiply_sparse<1>(sums[i][j], a[i], b, words[i]);
            }
        }
#else
#pragma unroll
        for (int j = 0; j < column_blocks; j += 2) {
            u32 b[4];
            load_matrices_transposed(
                b, stage + x_offset(h * 16 + lane % 16, first_chunk + j + lane / 16));
#pragma unroll
            for (int i = 0; i < row_blocks; i++) {
                multiply_dense(sums[i][j], a[i], b[0], b[1]);
                multiply_dense(sums[i][j + 1], a[i], b[2], b[3]);
            }
        }
#endif
    }
}

// Leaves this part's sums in its slot. True for the block that comes last, which then holds the
// sum over all parts.
DEVICE bool sums_of_parts(const Work& work, float* workspace, u32* counters, Sums& sums) {
    constexpr int each = row_blocks * column_blocks * 4;
    float* slots = workspace + static_cast<long long>(work.slot) * threads * each;
#pragma unroll
    for (int e = 0; e < each; e++)
        store(slots + (static_cast<long long>(work.part) * each + e) * threads + thread_index(),
              sums[e / 4 / column_blocks][e / 4 % column_blocks][e % 4]);
    if (!comes_last(counters + work.counter, work.parts, shared_base())) return false;
#pragma unroll
    for (int e = 0; e < each; e++) sums[e / 4 / column_blocks][e / 4 % column_blocks][e % 4] = 0.f;
    for (int part = 0; part < work.parts; part++) {
#pragma unroll
        for (int e = 0; e < each; e++)
            sums[e / 4 / column_blocks][e / 4 % column_blocks][e % 4] += load_shared_by_blocks(
                slots + (static_cast<long long>(part) * each + e) * threads + thread_index());
    }
    return true;
}

DEVICE void write_out(const Work& work, const Sums& sums, const int* row_map, bool keep_order,
                      const u16* bias, int activation, const u16* factor, const u16* addend, u16* y,
                      long long y_stride, int columns) {
    const int warp = thread_index() / 32;
    const u32 out = shared_base();
    auto packed_row = [&](int row) { return work.tile * TILE_ROWS + row; };
    leave_output(sums, out, output_stride, warp / WARPS_N * row_blocks * 16,
                 warp % WARPS_N * column_blocks * 8, packed_row, row_map, bias, activation);
    barrier();
    write_output<TILE_ROWS, BLOCK_N, threads, ALIGNED>(out, output_stride, work.column, packed_row,
                                                       row_map, keep_order, factor, addend, y,
                                                       y_stride, columns);
    barrier();
}

KERNEL void BOUNDS(threads, 1)
spmm(const uint4* __restrict__ values, const uint4* __restrict__ metadata,
     const void* __restrict__ columns, int wide_columns, const int* __restrict__ row_map,
     int keep_order, const int* __restrict__ work_ptr, const int* __restrict__ work_items,
     float* workspace, u32* counters, const u16* __restrict__ x, long long x_stride,
     const u16* __restrict__ bias, int activation, const u16* factor, const u16* addend, u16* y,
     long long y_stride, int n) {
    const u32 stages = shared_base();
    const int last_item = load(work_ptr + block_x() + 1);
    for (int item = load(work_ptr + block_x()); item < last_item; item++) {
        Work work;
        const int* fields = work_items + item * 8;
        work.tile = load(fields), work.column = load(fields + 1);
        work.first_step = load(fields + 2), work.steps = load(fields + 3);
        work.part = load(fields + 4), work.parts = load(fields + 5);
        work.slot = load(fields + 6), work.counter = load(fields + 7);

        Sums sums;
#pragma unroll
        for (int i = 0; i < row_blocks; i++)
#pragma unroll
            for (int j = 0; j < column_blocks; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[i][j][e] = 0.f;

        Rows rows;
        if (work.steps > 0) rows = rows_of_step(columns, wide_columns, work.first_step);
        auto copy_step = [&](int step) {
            if (step < work.steps) {
                u32 stage = stages + step % STAGES * stage_bytes;
                copy_x(stage, rows, x, x_stride, work.column, n);
                copy_weights(stage, values, metadata, work.first_step + step);
                if (step + 1 < work.steps)
                    rows = rows_of_step(columns, wide_columns, work.first_step + step + 1);
            }
            copy_commit();  // an empty group, at the end, keeps the count right
        };
        for (int step = 0; step < STAGES - 1; step++) copy_step(step);
        for (int step = 0; step < work.steps; step++) {
            copy_wait<STAGES - 2>();
            barrier();
            copy_step(step + STAGES - 1);
            multiply_stage(stages + step % STAGES * stage_bytes, sums);
        }
        copy_wait<0>();
        barrier();
        bool whole = work.parts == 1 || sums_of_parts(work, workspace, counters, sums);
        if (whole)
            write_out(work, sums, row_map, keep_order, bias, activation, factor, addend, y,
                      y_stride, n);
    }
}
