// What moves activations has in common: chunks of 16 bytes, which are 8 elements of 16 bits, where
// addresses allow them and single elements where they do not, and tables of rows or channels.
#pragma once
#include "primitives.h"

constexpr int chunk_elements = 8, chunk_bytes = 16;

// Whether every row begins on 16 bytes.
DEVICE bool rows_aligned(const void* first, long long stride) {
    return ((reinterpret_cast<u64>(first) | static_cast<u64>(stride * 2)) & 15) == 0;
}

DEVICE u16 element(const uint4& chunk, int e) {
    u32 word = e < 2 ? chunk.x : e < 4 ? chunk.y : e < 6 ? chunk.z : chunk.w;
    return static_cast<u16>(word >> 16 * (e & 1));
}

DEVICE uint4 chunk_of(const u16 (&elements)[chunk_elements]) {
    return {pair(elements[0], elements[1]), pair(elements[2], elements[3]),
            pair(elements[4], elements[5]), pair(elements[6], elements[7])};
}

// The first `there` elements of a chunk, the rest of which lies outside of the array.
DEVICE void store_part(u16* to, const uint4& chunk, int there) {
#pragma unroll
    for (int e = 0; e < chunk_elements; e++)
        if (e < there) store(to + e, element(chunk, e));
}

DEVICE void store_chunk(u16* to, const uint4& chunk, int there, bool aligned) {
    if (aligned && there >= chunk_elements)
        store(reinterpret_cast<uint4*>(to), chunk);
    else
        store_part(to, chunk, there);
}

// A table of 16-bit or, wide, of 32-bit entries; none at all is the original order.
DEVICE int entry(const void* table, bool wide, int i) {
    if (!table) return i;
    return wide ? load(static_cast<const int*>(table) + i)
                : static_cast<int>(load(static_cast<const u16*>(table) + i));
}
