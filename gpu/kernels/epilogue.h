// What becomes of a sum on its way out: bias, activation, row map, a factor and an addend.
#pragma once
#include "primitives.h"

enum Activation { identity_activation, relu_activation, gelu_activation, silu_activation };

DEVICE float activated(float value, int activation) {
    if (activation == relu_activation) return value > 0.f ? value : 0.f;
    // The exact form, x times the normal distribution function, as torch computes it by default.
    if (activation == gelu_activation)
        return .5f * value * (1.f + error_function(value * .70710678118654752f));
    if (activation == silu_activation) return value / (1.f + exponential(-value));
    return value;
}

// The activation of each value. Code for all of them would be most of a kernel: the first few go
// through it, and all move on by as many places until each is back at its own.
template <int few, int count>
DEVICE void activate(float (&values)[count], int activation) {
    static_assert(count % few == 0, "");
    if (activation == identity_activation) return;
#pragma unroll 1
    for (int turn = 0; turn < count / few; turn++) {
        float done[few];
#pragma unroll
        for (int e = 0; e < few; e++) done[e] = activated(values[e], activation);
#pragma unroll
        for (int e = 0; e < count - few; e++) values[e] = values[e + few];
#pragma unroll
        for (int e = 0; e < few; e++) values[count - few + e] = done[e];
    }
}

// A packed row that holds no output channel has -1 in the row map.
struct OutputRow {
    int row;       // where it goes in Y, or -1
    float bias;
};

// bias is indexed by output channel. With keep_order the packed row itself is the row of Y: its
// consumer reads it through an index table that knows the order.
DEVICE OutputRow output_row_of_channel(int channel, const u16* bias, int packed_row,
                                       bool keep_order) {
    OutputRow out;
    out.row = channel < 0 || !keep_order ? channel : packed_row;
    out.bias = channel >= 0 && bias ? to_float(load(bias + channel)) : 0.f;
    return out;
}
DEVICE OutputRow output_row(const int* row_map, const u16* bias, int packed_row, bool keep_order) {
    return output_row_of_channel(load(row_map + packed_row), bias, packed_row, keep_order);
}

// value * factor + addend, where they are given, each read at the same place of Y.
DEVICE u16 combined(u16 value, const u16* factor, const u16* addend, long long at) {
    if (!factor && !addend) return value;
    float result = to_float(value);
    if (factor) result *= to_float(load(factor + at));
    if (addend) result += to_float(load(addend + at));
    return from_float(result);
}
