// What the kernels are written in: every access to memory and every warp instruction goes through
// one of these functions, so that the same source runs on a device and, with the header that
// stands in for this one under GYROPERM_EMULATION, on a host that checks each access.
#pragma once

#ifdef GYROPERM_EMULATION
#include "emulation.h"
#else

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL extern "C" __global__
// Two kernels' names keep the compiler from assuming one block a multiprocessor.
#define BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define DEVICE __device__ __forceinline__

// ---- where a thread stands ----------------------------------------------------------------------

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int lane_index() { return threadIdx.x & 31; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE int grid_x() { return gridDim.x; }

DEVICE void barrier() { __syncthreads(); }
DEVICE void warp_barrier() { __syncwarp(); }

// ---- global memory ------------------------------------------------------------------------------

// Read-only for the whole launch, read again soon: through L1.
template <class T>
DEVICE T load(const T* address) {
    return __ldg(address);
}

// Read-only, read once: packed weights, which would only push out of L1 what is read again. Not
// `.nc`, which the compiler moves ahead of a barrier.
template <class T>
DEVICE T load_once(const T* address);
template <>
DEVICE uint4 load_once<uint4>(const uint4* address) {
    uint4 value;
    asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(address)
                 : "memory");
    return value;
}
template <>
DEVICE u32 load_once<u32>(const u32* address) {
    u32 value;
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

// Read-only, through L1, and under way before the barrier that follows it.
template <class T>
DEVICE T load_in_order(const T* address);
template <>
DEVICE u32 load_in_order<u32>(const u32* address) {
    u32 value;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}
template <>
DEVICE u64 load_in_order<u64>(const u64* address) {
    u64 value;
    asm volatile("ld.global.nc.u64 %0, [%1];" : "=l"(value) : "l"(address));
    return value;
}

// Written by other blocks of this launch: never from L1.
template <class T>
DEVICE T load_shared_by_blocks(const T* address) {
    return __ldcg(address);
}

template <class T>
DEVICE void store(T* address, T value) {
    *address = value;
}

// What this thread stored before is seen by whoever sees what it stores or counts after.
DEVICE void fence() { __threadfence(); }
DEVICE u32 atomic_add(u32* address, u32 value) { return atomicAdd(address, value); }

// ---- shared memory, by byte address -------------------------------------------------------------

DEVICE u32 shared_base() {
    extern __shared__ __align__(128) u8 shared_memory[];
    return static_cast<u32>(__cvta_generic_to_shared(shared_memory));
}

template <class T>
DEVICE T shared_load(u32 address);
template <>
DEVICE u16 shared_load<u16>(u32 address) {
    u16 value;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(address));
    return value;
}
template <>
DEVICE u32 shared_load<u32>(u32 address) {
    u32 value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address));
    return value;
}
template <>
DEVICE float shared_load<float>(u32 address) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
    return value;
}
template <>
DEVICE uint4 shared_load<uint4>(u32 address) {
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address));
    return value;
}

DEVICE void shared_store(u32 address, u16 value) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(value) : "memory");
}
DEVICE void shared_store(u32 address, u32 value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
DEVICE void shared_store(u32 address, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
DEVICE void shared_store(u32 address, uint4 value) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(value.x),
                 "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

// 16 bytes from global to shared memory behind the thread's back; of them `bytes` are read, the
// rest of the destination is filled with zeros. Both addresses are multiples of 16.
DEVICE void copy_async(u32 to, const void* from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(bytes)
                 : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `pending` of this thread's committed groups are still under way.
template <int pending>
DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- warp instructions: all 32 lanes call them together -----------------------------------------

DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

// Four 8 x 8 matrices of 16-bit values, transposed: lane l names row l % 8 of matrix l / 8; then
// it holds rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4 of each.
DEVICE void load_matrices_transposed(u32 (&to)[4], u32 row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row_address)
                 : "memory");
}

#if GYROPERM_BF16
#define OPERAND "bf16"
#else
#define OPERAND "f16"
#endif

// d += A B for A 16 x 32 with two of every four kept, B 32 x 8.
template <int selector>
DEVICE void multiply_sparse(float (&d)[4], uint4 a, const u32 (&b)[4], u32 metadata) {
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." OPERAND "." OPERAND
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "r"(b[2]),
                   "r"(b[3]), "r"(metadata), "n"(selector));
}

// d += A B for A 16 x 16, B 16 x 8.
DEVICE void multiply_dense(float (&d)[4], uint4 a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." OPERAND "." OPERAND
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// ---- numbers ------------------------------------------------------------------------------------

#if GYROPERM_BF16
DEVICE float to_float(u16 bits) { return __uint_as_float(static_cast<u32>(bits) << 16); }
DEVICE u16 from_float(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#else
DEVICE float to_float(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
DEVICE u16 from_float(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif
DEVICE float exponential(float value) { return __expf(value); }
DEVICE float error_function(float value) { return erff(value); }
DEVICE float reciprocal_root(float value) { return rsqrtf(value); }

#endif  // GYROPERM_EMULATION

// ---- for both -----------------------------------------------------------------------------------

DEVICE u32 pair(u16 low, u16 high) { return low | static_cast<u32>(high) << 16; }
// Of two pairs, a pair of their first halves, and one of their second.
DEVICE u32 low_halves(u32 a, u32 b) { return (a & 0xffffu) | b << 16; }
DEVICE u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xffff0000u); }
DEVICE u32 pair_from_floats(float low, float high) {
    return pair(from_float(low), from_float(high));
}
DEVICE int least(int a, int b) { return a < b ? a : b; }
DEVICE int most(int a, int b) { return a > b ? a : b; }
DEVICE int divided_up(int a, int b) { return (a + b - 1) / b; }
