// What a card can do at best, by loops of the instructions that the kernels are made of.
#include "primitives.h"

constexpr int LOADS = 8;  // of a thread, under way at a time
constexpr int SUMS = 8;   // products of a warp that do not wait for one another

// Read shares of LOADS * 512 times 16 bytes, past L1: each block `visits` of them, so that all are
// read alike, and by different blocks where there are fewer shares than visits.
KERNEL void BOUNDS(512, 2)
    read_all(const uint4* __restrict__ from, u32* __restrict__ out, int shares, int visits) {
    u32 seen = 0;
    for (int visit = 0; visit < visits; ++visit) {
        const int share = (block_x() + visit * grid_x()) % shares;
        const uint4* mine = from + static_cast<long long>(share) * LOADS * 512 + thread_index();
        uint4 words[LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; ++j) words[j] = load_shared_by_blocks(mine + j * 512);
#pragma unroll
        for (int j = 0; j < LOADS; ++j) seen ^= words[j].x ^ words[j].y ^ words[j].z ^ words[j].w;
    }
    store(out + block_x() * 512 + thread_index(), seen);
}

// `passes` times SUMS products of a warp, operands in registers; SPARSE counts zeros as the
// instruction does, m16n8k32 for m16n8k16.
KERNEL void BOUNDS(256, 2)
    multiply_all(const uint4* __restrict__ operands, const u32* __restrict__ metadata,
                 float* __restrict__ out, int passes) {
    const uint4 a = load(operands + thread_index());
    const uint4 words = load(operands + 256 + thread_index());
    const u32 b[4] = {words.x, words.y, words.z, words.w};
    const u32 places = load(metadata + thread_index());
    float sums[SUMS][4] = {};
    for (int pass = 0; pass < passes; ++pass) {
#pragma unroll
        for (int i = 0; i < SUMS; ++i) {
#if SPARSE
            multiply_sparse<0>(sums[i], a, b, places);
#else
            multiply_dense(sums[i], a, b[i % 2], b[2 + i % 2]);
#endif
        }
    }
    float total = 0;
#pragma unroll
    for (int i = 0; i < SUMS; ++i) total += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    store(out + block_x() * 256 + thread_index(), total + static_cast<float>(places & 1));
}
