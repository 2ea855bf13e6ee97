// Y[R, N] = W[R, C] X[C, N] for W packed by tiles of few rows, each with columns of its own, at the
// sizes of a prefill: tensor cores, the columns that several tiles keep brought in once for all.
//
// A block computes GROUP tiles x BLOCK_N columns of X. Rows of X lie in the slots of a window in
// shared memory, by a plan made with the matrix: each phase brings rows into slots, then each tile
// works off steps of 64 kept columns, all of which lie in the window, wherever. A warp computes
// 16-row fragments of one tile; nobody else needs its weights, which go from global memory to
// registers two fragments ahead.
//
// Compile-time: TILE_ROWS V, GROUP, WARPS_M (of a tile), BLOCK_N, LOADS (rows that a phase brings
// in at most), AHEAD (phases from the beginning of a copy to its use), SPARSE (two of four kept,
// else dense inside), ALIGNED (rows of X, Y and what is read beside them begin on 16 bytes),
// GYROPERM_BF16.
#include "output.h"

constexpr int step_columns = 64;
constexpr int threads = 32 * WARPS_M * GROUP;
constexpr int tile_blocks = TILE_ROWS / 16;           // 16-row fragments of a tile
constexpr int row_blocks = tile_blocks / WARPS_M;     // and of a warp
constexpr int column_blocks = BLOCK_N / 8;            // 8-column fragments
constexpr int row_chunks = BLOCK_N / 8;               // of 16 bytes, in a row of X
constexpr int inner_steps = SPARSE ? 2 : 4;           // matrix products along a step
constexpr int fragments_ahead = 2;                    // weights in registers
constexpr int output_stride = BLOCK_N * 2 + 16;       // so that eight rows lie in different banks
constexpr int slot_bits = 12;                         // of a load's word, above its column

static_assert(TILE_ROWS % (16 * WARPS_M) == 0 && BLOCK_N % 16 == 0, "");

// Where chunk 0 of a slot lies. Chunk q lies at the same address with q * 16 exclusive-or'ed: eight
// slots of eight different residues modulo 8 are read without conflict.
DEVICE u32 slot_offset(int slot) {
    int turn = row_chunks >= 8 ? slot & 7 : slot / (8 / row_chunks) & (row_chunks - 1);
    return (slot * row_chunks + turn) * 16;
}

// What a phase brings in, by thread: read a phase ahead of the copy.
constexpr int chunks_each = (LOADS * row_chunks + threads - 1) / threads;
struct Loads {
    u32 words[chunks_each];
};

constexpr u32 no_load = ~0u;

DEVICE Loads loads_of_phase(const u32* loads, int phase) {
    Loads found;
#pragma unroll
    for (int i = 0; i < chunks_each; i++) {
        int chunk = thread_index() + i * threads;
        found.words[i] = no_load;
        if (chunk < LOADS * row_chunks)
            found.words[i] = load(loads + static_cast<long long>(phase) * LOADS + chunk / row_chunks);
    }
    return found;
}

DEVICE void copy_x(const Loads& loads, const u16* x, long long x_stride, int column, int columns) {
#pragma unroll
    for (int i = 0; i < chunks_each; i++) {
        u32 word = loads.words[i];
        if (word == no_load) continue;
        int q = (thread_index() + i * threads) % row_chunks, first = column + q * 8;
        const u16* from = x + (word & ((1u << (32 - slot_bits)) - 1)) * x_stride + first;
        int there = most(0, least(8, columns - first));
        u32 to = shared_base() + (slot_offset(word >> (32 - slot_bits)) ^ q * 16);
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

typedef float Sums[row_blocks][column_blocks][4];

// A warp's weights on their way from global memory: of its tile from a step on, in order.
struct Weights {
    const uint4* values;    // of this lane, at the fragment that is loaded next
    const u32* metadata;    // of this lane, at the step that is loaded next
    const u16* slots;       // of this lane, likewise
    int fragments, steps;   // that are still to be loaded
    uint4 a[fragments_ahead][row_blocks];
    u32 words[row_blocks];
    u32 rows[inner_steps];  // the slot that this lane names for each matrix product
};

DEVICE void load_fragment(Weights& weights, int into) {
    if (weights.fragments-- <= 0) return;
#pragma unroll
    for (int i = 0; i < row_blocks; i++) weights.a[into][i] = load_once(weights.values + i * 32);
    weights.values += tile_blocks * 32;
}

DEVICE void load_step(Weights& weights) {
    if (weights.steps-- <= 0) return;
    if (SPARSE) {
#pragma unroll
        for (int i = 0; i < row_blocks; i++)
            weights.words[i] = load_once(weights.metadata + i * 32);
        weights.metadata += tile_blocks * 32;
    }
#pragma unroll
    for (int h = 0; h < inner_steps; h++)
        weights.rows[h] = load(weights.slots + h * (step_columns / inner_steps));
    weights.slots += step_columns;
}

DEVICE void begin(Weights& weights, const uint4* values, const u32* metadata, const u16* slots,
                  int first_step, int steps) {
    const int lane = lane_index(), first_row_block = thread_index() / 32 % WARPS_M * row_blocks;
    const long long first = first_step;
    weights.values = values + (first * inner_steps * tile_blocks + first_row_block) * 32 + lane;
    weights.metadata = SPARSE ? metadata + (first * tile_blocks + first_row_block) * 32 + lane : nullptr;
    weights.slots = slots + first * step_columns + lane % (step_columns / inner_steps);
    weights.fragments = steps * inner_steps;
    weights.steps = steps;
    load_step(weights);
#pragma unroll
    for (int f = 0; f < fragments_ahead; f++) load_fragment(weights, f);
}

DEVICE void multiply_step(Weights& weights, Sums& sums) {
    u32 words[row_blocks], rows[inner_steps];
#pragma unroll
    for (int i = 0; i < row_blocks; i++) words[i] = weights.words[i];
#pragma unroll
    for (int h = 0; h < inner_steps; h++) rows[h] = slot_offset(weights.rows[h]);
    load_step(weights);
#pragma unroll
    for (int h = 0; h < inner_steps; h++) {
        uint4(&a)[row_blocks] = weights.a[h % fragments_ahead];
#if SPARSE
#pragma unroll
        for (int j = 0; j < column_blocks; j++) {
            u32 b[4];
            load_matrices_transposed(b, shared_base() + (rows[h] ^ j * 16));
#pragma unroll
            for (int i = 0; i < row_blocks; i++) {
                if (h == 0)
                    multiply_sparse<0>(sums[i][j], a[i], b, words[i]);
                else
                    multiply_sparse<1>(sums[i][j], a[i], b, words[i]);
            }
        }
#else
        const int upper = lane_index() / 16;
#pragma unroll
        for (int j = 0; j < column_blocks; j += 2) {
            u32 b[4];
            load_matrices_transposed(b, shared_base() + (rows[h] ^ (j + upper) * 16));
#pragma unroll
            for (int i = 0; i < row_blocks; i++) {
                multiply_dense(sums[i][j], a[i], b[0], b[1]);
                multiply_dense(sums[i][j + 1], a[i], b[2], b[3]);
            }
        }
#endif
        load_fragment(weights, h % fragments_ahead);
    }
}

KERNEL void BOUNDS(threads, BLOCKS)
window(const uint4* __restrict__ values, const u32* __restrict__ metadata,
       const u16* __restrict__ slots, const int* __restrict__ tiles,
       const int* __restrict__ tile_steps, const int* __restrict__ phase_ptr,
       const int* __restrict__ done, const u32* __restrict__ loads, int groups,
       const int* __restrict__ row_map, int keep_order, const u16* __restrict__ x,
       long long x_stride, const u16* __restrict__ bias, int activation, const u16* factor,
       const u16* addend, u16* y, long long y_stride, int n) {
    const int group = block_x() % groups, column = block_x() / groups * BLOCK_N;
    const int place = thread_index() / 32 / WARPS_M;
    const int first_phase = load(phase_ptr + group), last_phase = load(phase_ptr + group + 1);

    Sums sums;
#pragma unroll
    for (int i = 0; i < row_blocks; i++)
#pragma unroll
        for (int j = 0; j < column_blocks; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[i][j][e] = 0.f;

    Loads coming;
    if (first_phase < last_phase) coming = loads_of_phase(loads, first_phase);
    auto copy_phase = [&](int phase) {
        if (phase < last_phase) {
            copy_x(coming, x, x_stride, column, n);
            if (phase + 1 < last_phase) coming = loads_of_phase(loads, phase + 1);
        }
        copy_commit();  // an empty group, at the end, keeps the count right
    };
    for (int phase = 0; phase < AHEAD; phase++) copy_phase(first_phase + phase);

    const int steps = load(tile_steps + (group * GROUP + place) * 2 + 1);
    Weights weights;
    begin(weights, values, metadata, slots, load(tile_steps + (group * GROUP + place) * 2), steps);
    int step = 0;
    for (int phase = first_phase; phase < last_phase; phase++) {
        copy_wait<AHEAD - 1>();
        barrier();
        copy_phase(phase + AHEAD);
        const int end = load(done + phase * GROUP + place);
        for (; step < end; step++) multiply_step(weights, sums);
    }
    copy_wait<0>();
    barrier();

    auto packed_row = [&](int row) {
        int tile = load(tiles + group * GROUP + row / TILE_ROWS);
        return tile < 0 ? -1 : tile * TILE_ROWS + row % TILE_ROWS;
    };
    if (load(tiles + group * GROUP + place) >= 0)
        leave_output(sums, shared_base(), output_stride, thread_index() / 32 * row_blocks * 16, 0,
                     packed_row, row_map, bias, activation);
    barrier();
    write_output<GROUP * TILE_ROWS, BLOCK_N, threads, ALIGNED>(shared_base(), output_stride, column,
                                                               packed_row, row_map, keep_order,
                                                               factor, addend, y, y_stride, n);
}
