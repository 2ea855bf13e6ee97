// out[token, i] = in[token, order[i]], of what in is or of its RMSNorm, the result token-major or
// feature-major, out[i, token].
//
// A block takes a few tokens. Their rows are read once, into shared memory, normalised there in the
// original order, where weights lie beside each other as the row does, and gathered from there.
//
// Compile-time: THREADS, NORM, FEATURE_MAJOR, GYROPERM_BF16 (matters with NORM only).
#include "chunks.h"

constexpr int warps = THREADS / 32;
constexpr int batch = 8;  // loads of single elements that are under way together
constexpr int most_tokens = 8;

DEVICE void read_row(u32 to, const u16* from, int channels, bool aligned) {
    const int row_chunks = divided_up(channels, chunk_elements);
    if (aligned) {
        for (int c = thread_index(); c < row_chunks; c += THREADS) {
            int there = least(chunk_elements, channels - c * chunk_elements);
            copy_async(to + c * chunk_bytes, from + c * chunk_elements, there * 2);
        }
        return;
    }
    // Up to the end of the last chunk, which is normalised as a whole.
    const int ends = row_chunks * chunk_elements;
    for (int first = thread_index(); first < ends; first += batch * THREADS) {
        u16 values[batch];
#pragma unroll
        for (int i = 0; i < batch; i++) {
            int e = first + i * THREADS;
            values[i] = 0;
            if (e < channels) values[i] = load(from + e);
        }
#pragma unroll
        for (int i = 0; i < batch; i++)
            if (first + i * THREADS < ends)
                shared_store(to + (first + i * THREADS) * 2, values[i]);
    }
}

#if NORM
// As LlamaRMSNorm of transformers rounds: the normalised value before it is multiplied, and again.
DEVICE u16 normalised(u16 value, float scale, u16 weight) {
    return from_float(to_float(from_float(to_float(value) * scale)) * to_float(weight));
}

DEVICE void normalise(u32 rows, int row_bytes, int tokens, const u16* weight, float epsilon,
                      int channels, u32 partial_sums) {
    const int row_chunks = divided_up(channels, chunk_elements);
    for (int t = 0; t < tokens; t++) {
        float sum = 0.f;
        for (int c = thread_index(); c < row_chunks; c += THREADS) {
            uint4 chunk = shared_load<uint4>(rows + t * row_bytes + c * chunk_bytes);
#pragma unroll
            for (int e = 0; e < chunk_elements; e++) {
                float value = to_float(element(chunk, e));
                sum += value * value;
            }
        }
#pragma unroll
        for (int mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
        if (lane_index() == 0)
            shared_store(partial_sums + (t * warps + thread_index() / 32) * 4, sum);
    }
    barrier();
    float scales[most_tokens];
#pragma unroll
    for (int t = 0; t < most_tokens; t++) {
        if (t >= tokens) break;
        float sum = 0.f;
        for (int w = 0; w < warps; w++)
            sum += shared_load<float>(partial_sums + (t * warps + w) * 4);
        scales[t] = reciprocal_root(sum / channels + epsilon);
    }
    const bool weight_aligned = rows_aligned(weight, 0);
    for (int c = thread_index(); c < row_chunks; c += THREADS) {
        int there = channels - c * chunk_elements;
        const u16* from = weight + c * chunk_elements;
        u16 weights[chunk_elements] = {};
        if (weight_aligned && there >= chunk_elements) {
            uint4 chunk = load(reinterpret_cast<const uint4*>(from));
#pragma unroll
            for (int e = 0; e < chunk_elements; e++) weights[e] = element(chunk, e);
        } else {
#pragma unroll
            for (int e = 0; e < chunk_elements; e++)
                if (e < there) weights[e] = load(from + e);
        }
#pragma unroll
        for (int t = 0; t < most_tokens; t++) {
            if (t >= tokens) break;
            u32 at = rows + t * row_bytes + c * chunk_bytes;
            uint4 chunk = shared_load<uint4>(at);
            u16 results[chunk_elements];
#pragma unroll
            for (int e = 0; e < chunk_elements; e++)
                results[e] = normalised(element(chunk, e), scales[t], weights[e]);
            shared_store(at, chunk_of(results));
        }
    }
    barrier();
}
#endif

#if FEATURE_MAJOR
// A lane has one row of the output, and of it this block's tokens.
DEVICE void write_out(u32 rows, int row_bytes, int tokens, const void* order, bool wide, u16* out,
                      long long stride, int outputs) {
    const bool aligned = rows_aligned(out, stride) && tokens == chunk_elements;
    const bool in_pairs =
        ((reinterpret_cast<u64>(out) | static_cast<u64>(stride * 2)) & 3) == 0 && tokens % 2 == 0;
    for (int i = thread_index(); i < outputs; i += THREADS) {
        u32 from = rows + entry(order, wide, i) * 2;
        u16 values[most_tokens];
#pragma unroll
        for (int t = 0; t < most_tokens; t++) {
            values[t] = 0;
            if (t < tokens) values[t] = shared_load<u16>(from + t * row_bytes);
        }
        u16* to = out + i * stride;
        if (aligned) {
            store(reinterpret_cast<uint4*>(to), chunk_of(values));
        } else if (in_pairs) {
#pragma unroll
            for (int t = 0; t < most_tokens; t += 2)
                if (t < tokens)
                    store(reinterpret_cast<u32*>(to + t), pair(values[t], values[t + 1]));
        } else {
            store_part(to, chunk_of(values), tokens);
        }
    }
}
#else
DEVICE void write_out(u32 rows, int row_bytes, int tokens, const void* order, bool wide, u16* out,
                      long long stride, int outputs) {
    if (rows_aligned(out, stride)) {
        const bool order_aligned = order && rows_aligned(order, 0);
        for (int c = thread_index(); c * chunk_elements < outputs; c += THREADS) {
            int first = c * chunk_elements, there = outputs - first;
            u32 offsets[chunk_elements];
            if (order_aligned && !wide && there >= chunk_elements) {
                uint4 chunk = load(static_cast<const uint4*>(order) + c);
#pragma unroll
                for (int e = 0; e < chunk_elements; e++) offsets[e] = element(chunk, e) * 2;
            } else if (order_aligned && there >= chunk_elements) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint4 words = load(static_cast<const uint4*>(order) + c * 2 + half);
                    offsets[half * 4] = words.x * 2, offsets[half * 4 + 1] = words.y * 2;
                    offsets[half * 4 + 2] = words.z * 2, offsets[half * 4 + 3] = words.w * 2;
                }
            } else {
                // Beyond the end any channel will do.
#pragma unroll
                for (int e = 0; e < chunk_elements; e++)
                    offsets[e] = e < there ? entry(order, wide, first + e) * 2 : 0;
            }
            for (int t = 0; t < tokens; t++) {
                u16 values[chunk_elements];
#pragma unroll
                for (int e = 0; e < chunk_elements; e++)
                    values[e] = shared_load<u16>(rows + t * row_bytes + offsets[e]);
                store_chunk(out + t * stride + first, chunk_of(values), there, true);
            }
        }
        return;
    }
    for (int i = thread_index(); i < outputs; i += THREADS) {
        u32 from = rows + entry(order, wide, i) * 2;
        for (int t = 0; t < tokens; t++)
            store(out + t * stride + i, shared_load<u16>(from + t * row_bytes));
    }
}
#endif

KERNEL void BOUNDS(THREADS, 1)
permute(const u16* __restrict__ in, long long in_stride, const void* __restrict__ order,
        int wide_order, const u16* __restrict__ weight, float epsilon, u16* __restrict__ out,
        long long out_stride, int all_tokens, int tokens_each, int inputs, int outputs) {
    const u32 rows = shared_base();
    const int row_bytes = divided_up(inputs, chunk_elements) * chunk_bytes;
    const long long first = static_cast<long long>(block_x()) * tokens_each;
    const int tokens = least(tokens_each, static_cast<int>(all_tokens - first));
    const bool aligned = rows_aligned(in, in_stride);
    for (int t = 0; t < tokens; t++)
        read_row(rows + t * row_bytes, in + (first + t) * in_stride, inputs, aligned);
    copy_commit();
    copy_wait<0>();
    barrier();
#if NORM
    normalise(rows, row_bytes, tokens, weight, epsilon, inputs, rows + tokens_each * row_bytes);
#endif
    out += FEATURE_MAJOR ? first : first * out_stride;
    write_out(rows, row_bytes, tokens, order, wide_order, out, out_stride, outputs);
}
