// Y[R, N] = W[R, C] X[C, N] for W packed by tiles of V rows, each with columns of its own, at the
// sizes of a decoding step: N <= 16, where the time is that of reading the weights once.
//
// A block computes BLOCK_ROWS rows of one tile over a range of its steps of 64 kept columns. A warp
// has 16 of the rows and every K_SLICES-th step; it streams its fragments of W straight into
// registers, `depth` steps ahead. The first of them are under way before the block waits for
// anything of X, whose kept values it gathers once into shared memory, in the order in which lanes
// read fragments of B. Slices are summed through shared memory, ranges by the block that comes
// last, both always in the same order.
//
// X is feature-major, [C, N], or as it lies in a model, [tokens, C]; so is Y, by its strides.
//
// Compile-time: BLOCK_ROWS, K_SLICES, COLUMN_FRAGMENTS (of 8 columns), SPARSE (two of four kept,
// else dense inside), X_LAYOUT, GYROPERM_BF16.
#include "epilogue.h"
#include "parts.h"

#define FEATURE_MAJOR 0
#define TOKEN_MAJOR 1
#define FEATURE_MAJOR_VECTORS 2  // rows of X begin on 16 bytes, and N is 8 COLUMN_FRAGMENTS

constexpr int step_columns = 64;
constexpr int step_pairs = step_columns / 2;  // of columns: a word of B holds two
constexpr int row_fragments = BLOCK_ROWS / 16;
constexpr int threads = 32 * row_fragments * K_SLICES;
constexpr int inner_steps = SPARSE ? 2 : 4;  // matrix products along a step
constexpr int depth = 8 / inner_steps;       // steps under way: eight loads of 16 bytes a lane
constexpr int most_columns = 8 * COLUMN_FRAGMENTS;

// What of X a product of depth 32 reads: a chunk of four words for each lane, and one of padding.
constexpr int fragment_bytes = 33 * 16;
constexpr int step_bytes = 2 * COLUMN_FRAGMENTS * fragment_bytes;
// Columns of partial sums: so far apart that a fragment's lanes lie in different banks.
constexpr int partial_stride = BLOCK_ROWS + 4;

constexpr int outputs_each = (most_columns * BLOCK_ROWS + threads - 1) / threads;
// Of a multiprocessor: registers for more would not hold what is under way.
constexpr int resident_threads = 512;
constexpr int resident_blocks = threads < resident_threads ? resident_threads / threads : 1;

static_assert(BLOCK_ROWS % 16 == 0, "");

// One range of one block of rows.
struct Work {
    int tile, first_row;    // first_row: within the tile
    int first_step, steps;  // counted over all tiles
    int part, parts;        // of these rows
};

// Tiles of one size need no schedule, and no block waits for one: grid (tiles, blocks of rows,
// parts), where the tiles from full_tiles on have no steps.
DEVICE Work even_work(int full_tiles, int tile_steps, int part_steps, int parts) {
    Work work;
    work.tile = block_x(), work.first_row = block_y() * BLOCK_ROWS;
    work.part = block_z(), work.parts = parts;
    work.first_step = work.tile * tile_steps + work.part * part_steps;
    work.steps = least(part_steps, tile_steps - work.part * part_steps);
    if (work.tile >= full_tiles) work.steps = 0, work.parts = 1;
    return work;
}

// Else one item a block, the parts of a block of rows one after the other.
DEVICE Work scheduled_work(const int* items) {
    const int* fields = items + block_x() * 6;
    Work work;
    work.tile = load(fields), work.first_row = load(fields + 1);
    work.first_step = load(fields + 2), work.steps = load(fields + 3);
    work.part = load(fields + 4), work.parts = load(fields + 5);
    return work;
}

// Which counter the parts of a block of rows share.
DEVICE int counter_of(const Work& work, int tile_rows) {
    return work.tile * (tile_rows / BLOCK_ROWS) + work.first_row / BLOCK_ROWS;
}

// ---- W ------------------------------------------------------------------------------------------

struct Weights {
    uint4 values[inner_steps];
    u32 metadata;
};

// What one lane reads of W.
struct Stream {
    const uint4* values;
    const u32* metadata;
    int tile_lanes;  // of the fragments side by side in a tile

    Stream(const uint4* all_values, const u32* all_metadata, int first_step, int fragment,
           int tile_fragments)
        : tile_lanes(tile_fragments * 32) {
        const long long place = static_cast<long long>(first_step) * tile_fragments;
        values = all_values + (place * inner_steps + fragment) * 32 + lane_index();
        // None is given for dense inside.
        metadata = SPARSE ? all_metadata + (place + fragment) * 32 + lane_index() : nullptr;
    }

    Weights at(int step) const {
        Weights weights;
        const uint4* from = values + step * inner_steps * tile_lanes;
#pragma unroll
        for (int h = 0; h < inner_steps; h++)
            weights.values[h] = load_once(from + h * tile_lanes);
        if (SPARSE) weights.metadata = load_once(metadata + step * tile_lanes);
        return weights;
    }
};

// ---- X ------------------------------------------------------------------------------------------

// Where shared memory holds columns 2 pair and 2 pair + 1 of a block's range for one column n of X.
// Lane 4 n + q reads the four words q, q + 4, q + 8 and q + 12 of sixteen at once. Chunks are
// turned so that both this and the writing of any eight n, or of any sixteen words, meets every
// bank once.
DEVICE u32 chunk_offset(int q, int n) { return (q * 8 + ((n + 2 * q) & 7)) * 16; }
DEVICE u32 pair_offset(int pair, int n) {
    return (pair / 16 * COLUMN_FRAGMENTS + n / 8) * fragment_bytes + chunk_offset(pair & 3, n & 7) +
           (pair / 4 & 3) * 4;
}

// Two ids of kept columns, taken apart only when X is read: they are still under way before.
// Wide ones have 32 bits, others 16.
typedef u64 Columns;
DEVICE int low_column(Columns both, bool wide) {
    return static_cast<int>(wide ? both : both & 0xffff);
}
DEVICE int high_column(Columns both, bool wide) {
    return static_cast<int>(wide ? both >> 32 : both >> 16);
}

// What one thread moves at a time: a pair of kept columns, of one n or of eight. Neighbours in a
// warp read neighbours in memory: consecutive n of a feature-major X, else consecutive kept
// columns. Feature-major pairs come in an order in which a warp's stores meet every bank.
struct Item {
    int pair, n;
};

#if X_LAYOUT == FEATURE_MAJOR_VECTORS
typedef uint4 Piece;
constexpr int batch = 2;
DEVICE int items_of(int steps, int) { return steps * step_pairs * COLUMN_FRAGMENTS; }
DEVICE Item item_of(int index, int) {
    return {index / COLUMN_FRAGMENTS, index % COLUMN_FRAGMENTS * 8};
}
#else
typedef u16 Piece;
constexpr int batch = 4;
DEVICE int power_of_two(int n) { return n > 8 ? 4 : n > 4 ? 3 : n > 2 ? 2 : n > 1 ? 1 : 0; }
DEVICE int items_of(int steps, int n) { return steps * step_pairs << power_of_two(n); }
DEVICE Item item_of(int index, int n) {
    const int power = power_of_two(n), mask = (1 << power) - 1;
    if (X_LAYOUT == TOKEN_MAJOR)
        return {(index >> (5 + power)) * step_pairs + (index & 31), index >> 5 & mask};
    int pair = index >> power;
    return {(pair & ~15) | (pair & 3) << 2 | (pair >> 2 & 3), index & mask};
}
#endif

struct Batch {
    Columns columns[batch];
};

// What a block gathers of X. Loads that have nothing to bring read what the last one reads: a
// branch around each would cost more.
struct Gather {
    const void* columns;
    bool wide;
    const u16* x;
    long long x_stride;
    int n, items;

    Item item(int index) const { return item_of(least(index, items - 1), n); }

    Batch columns_of_batch(int first) const {
        Batch taken;
        if (wide)
            load_columns(static_cast<const u64*>(columns), first, taken);
        else
            load_columns(static_cast<const u32*>(columns), first, taken);
        return taken;
    }

    template <class Pair>
    void load_columns(const Pair* pairs, int first, Batch& taken) const {
#pragma unroll
        for (int i = 0; i < batch; i++)
            taken.columns[i] = load_in_order(pairs + item(first + i * threads + thread_index()).pair);
    }

    Piece load_piece(int column, int of_n) const {
        if (X_LAYOUT == TOKEN_MAJOR)
            return load(reinterpret_cast<const Piece*>(x + of_n * x_stride + column));
        return load(reinterpret_cast<const Piece*>(x + column * x_stride + of_n));
    }

    // All loads of a batch are under way before the first of them is waited for.
    void copy_batch(u32 to, int first, const Batch& taken) const {
        Piece low[batch], high[batch];
#pragma unroll
        for (int i = 0; i < batch; i++) {
            int of_n = least(item(first + i * threads + thread_index()).n, n - 1);
            low[i] = load_piece(low_column(taken.columns[i], wide), of_n);
            high[i] = load_piece(high_column(taken.columns[i], wide), of_n);
        }
#pragma unroll
        for (int i = 0; i < batch; i++) {
            int index = first + i * threads + thread_index();
            Item moved = item(index);
            if (index < items && moved.n < n) leave_pair(to, moved, low[i], high[i]);
        }
    }

    static void leave_pair(u32 to, Item moved, u16 low, u16 high) {
        shared_store(to + pair_offset(moved.pair, moved.n), pair(low, high));
    }
    static void leave_pair(u32 to, Item moved, uint4 low, uint4 high) {
        const u32 a[4] = {low.x, low.y, low.z, low.w}, b[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            shared_store(to + pair_offset(moved.pair, moved.n + 2 * e), low_halves(a[e], b[e]));
            shared_store(to + pair_offset(moved.pair, moved.n + 2 * e + 1),
                         high_halves(a[e], b[e]));
        }
    }
};

// ---- products and sums --------------------------------------------------------------------------

typedef float Sums[COLUMN_FRAGMENTS][4];

// Lanes of columns that X does not have multiply zeros.
DEVICE void multiply_step(u32 x_step, const Weights& weights, int n, Sums& sums) {
    const int column = lane_index() / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int j = 0; j < COLUMN_FRAGMENTS; j++) {
            uint4 words = {0, 0, 0, 0};
            if (j * 8 + column < n)
                words = shared_load<uint4>(x_step + (half * COLUMN_FRAGMENTS + j) * fragment_bytes +
                                           chunk_offset(lane_index() & 3, column));
#if SPARSE
            const u32 b[4] = {words.x, words.y, words.z, words.w};
            if (half == 0)
                multiply_sparse<0>(sums[j], weights.values[0], b, weights.metadata);
            else
                multiply_sparse<1>(sums[j], weights.values[1], b, weights.metadata);
#else
            multiply_dense(sums[j], weights.values[2 * half], words.x, words.y);
            multiply_dense(sums[j], weights.values[2 * half + 1], words.z, words.w);
#endif
        }
    }
}

DEVICE u32 partial_offset(int slice, int column, int row) {
    return ((slice * most_columns + column) * partial_stride + row) * 4;
}

DEVICE void leave_partial(u32 partials, int slice, int fragment, const Sums& sums) {
    const int row = fragment * 16 + lane_index() / 4, column = lane_index() % 4 * 2;
#pragma unroll
    for (int j = 0; j < COLUMN_FRAGMENTS; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            shared_store(partials + partial_offset(slice, j * 8 + column + (e & 1), row + e / 2 * 8),
                         sums[j][e]);
}

// From here on a thread has one row, and every column_stride-th column from its first.
constexpr int column_stride = threads / BLOCK_ROWS;

DEVICE float sum_of_slices(u32 partials, int column, int row) {
    float sum = 0.f;
#pragma unroll
    for (int slice = 0; slice < K_SLICES; slice++)
        sum += shared_load<float>(partials + partial_offset(slice, column, row));
    return sum;
}

// Leaves this part's sums in its slot. True for the block that comes last, which then holds the
// sums over all parts.
DEVICE bool sums_of_parts(const Work& work, bool scheduled, int counter, float* workspace,
                          u32* counters, u32 scratch, int n, float (&sums)[outputs_each]) {
    constexpr int slot_floats = most_columns * BLOCK_ROWS;
    const int first_slot = scheduled ? block_x() - work.part : counter * work.parts;
    float* mine = workspace + static_cast<long long>(first_slot) * slot_floats + thread_index();
    const int first = thread_index() / BLOCK_ROWS;
#pragma unroll
    for (int i = 0; i < outputs_each; i++)
        if (first + i * column_stride < n)
            store(mine + work.part * slot_floats + i * threads, sums[i]);
    if (!comes_last(counters + counter, work.parts, scratch)) return false;
#pragma unroll
    for (int i = 0; i < outputs_each; i++) {
        sums[i] = 0.f;
        if (first + i * column_stride >= n) continue;
#pragma unroll 8
        for (int part = 0; part < work.parts; part++)
            sums[i] += load_shared_by_blocks(mine + part * slot_floats + i * threads);
    }
    return true;
}

KERNEL void BOUNDS(threads, resident_blocks)
decode(int tile_rows, const uint4* __restrict__ values, const u32* __restrict__ metadata,
       const void* __restrict__ columns, int wide_columns, const int* __restrict__ row_map,
       int keep_order, const int* __restrict__ work_items, int full_tiles, int tile_steps,
       int part_steps, int tile_parts, float* workspace, u32* counters, const u16* __restrict__ x,
       long long x_stride, const u16* __restrict__ bias, int activation, const u16* factor,
       const u16* addend, u16* y, long long y_row, long long y_column, int n) {
    const Work work =
        work_items ? scheduled_work(work_items)
                   : even_work(full_tiles, tile_steps, part_steps, tile_parts);
    if (work.part >= work.parts) return;
    const int warp = thread_index() / 32, fragment = warp % row_fragments;
    const int slice = warp / row_fragments;
    const u32 gathered = shared_base(), partials = gathered + work.steps * step_bytes;

    // Column ids come first, those of all warps: X waits for them, and they would queue behind the
    // weights. Without the barrier the compiler issues the weights before them.
    const long long first_slot = static_cast<long long>(work.first_step) * step_columns;
    const Gather gather = {static_cast<const u8*>(columns) + first_slot * (wide_columns ? 4 : 2),
                           wide_columns != 0, x, x_stride, n, items_of(work.steps, n)};
    Batch taken;
    if (gather.items) taken = gather.columns_of_batch(0);
    barrier();

    const int steps = divided_up(most(0, work.steps - slice), K_SLICES);  // of this warp
    const Stream stream(values, metadata, work.first_step + slice, work.first_row / 16 + fragment,
                        tile_rows / 16);
    Weights ahead[depth];
#pragma unroll
    for (int d = 0; d < depth; d++)
        if (d < steps) ahead[d] = stream.at(d * K_SLICES);

    const int row = thread_index() % BLOCK_ROWS;
    const int packed_row = work.tile * tile_rows + work.first_row + row;
    const int channel = load(row_map + packed_row);

    for (int first = 0; first < gather.items; first += batch * threads) {
        Batch next = gather.columns_of_batch(first + batch * threads);
        gather.copy_batch(gathered, first, taken);
        taken = next;
    }
    const OutputRow out = output_row_of_channel(channel, bias, packed_row, keep_order);
    barrier();

    Sums sums;
#pragma unroll
    for (int j = 0; j < COLUMN_FRAGMENTS; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[j][e] = 0.f;
    for (int first = 0; first < steps; first += depth) {
#pragma unroll
        for (int d = 0; d < depth; d++) {
            int step = first + d;
            if (step >= steps) break;
            multiply_step(gathered + (slice + step * K_SLICES) * step_bytes, ahead[d], n, sums);
            if (step + depth < steps) ahead[d] = stream.at((step + depth) * K_SLICES);
        }
    }

    leave_partial(partials, slice, fragment, sums);
    barrier();
    float totals[outputs_each] = {};
    const int first_column = thread_index() / BLOCK_ROWS;
#pragma unroll
    for (int i = 0; i < outputs_each; i++)
        if (first_column + i * column_stride < n)
            totals[i] = sum_of_slices(partials, first_column + i * column_stride, row);
    if (work.parts > 1 && !sums_of_parts(work, work_items != nullptr, counter_of(work, tile_rows),
                                         workspace, counters, gathered, n, totals))
        return;
    if (out.row < 0) return;
#pragma unroll
    for (int i = 0; i < outputs_each; i++) totals[i] += out.bias;
    activate<1>(totals, activation);
#pragma unroll
    for (int i = 0; i < outputs_each; i++) {
        int column = first_column + i * column_stride;
        if (column >= n) continue;
        long long at = out.row * y_row + column * y_column;
        store(y + at, combined(from_float(totals[i]), factor, addend, at));
    }
}
