// Stands in for the device side of primitives.h: runs a kernel's blocks one after the other on
// the host, the threads of a block as fibers that take turns in a random order.
//
// It aborts a launch, with a message, on what a device would not always show: an access outside
// a registered buffer or out of alignment, shared memory read before it was written or before
// its asynchronous copy was waited for, two threads that meet in shared memory without a barrier
// between them, an output written twice, a barrier that not all threads reach, metadata that is
// not ordered. It counts bank conflicts.
#pragma once

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct uint4 {
    u32 x, y, z, w;
};

#define KERNEL static
#define BOUNDS(threads, blocks)
#define DEVICE static inline
#define __restrict__

namespace emulation {

constexpr int max_threads = 1024, max_shared = 232448, stack_bytes = 1 << 16;
constexpr int cell_bytes = 2;  // the smallest shared access
constexpr int max_buffers = 32, max_pending = 128, max_groups = 16;

// ---- what the caller reads ----------------------------------------------------------------------

struct Counts {
    long long matrix_loads, matrix_conflicts;  // of each 8 x 8 matrix: wavefronts beyond the first
    long long copies, copy_conflicts;          // asynchronous copies, by groups of 8 lanes
    long long accesses, access_conflicts;      // plain shared loads and stores, by warps
    long long products;                        // warp-wide matrix products
    long long bytes_loaded, bytes_copied, bytes_stored;  // global memory
};
struct Buffer {
    u8* start;
    long long bytes;
    int writable;
    u8* written;  // of an output each byte's flag, else null
};

static Counts counts;
static Buffer buffers[max_buffers];
static int buffer_count;
static char message[512];

// ---- fibers -------------------------------------------------------------------------------------

// Callee-saved registers go onto the stack, and the stacks change places.
extern "C" void gyroperm_switch(void** from, void* to);
#if defined(__x86_64__)
__asm__(
    ".text\n.globl gyroperm_switch\n.hidden gyroperm_switch\ngyroperm_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
constexpr int saved_words = 6;
#elif defined(__aarch64__)
__asm__(
    ".text\n.globl gyroperm_switch\n.hidden gyroperm_switch\ngyroperm_switch:\n"
    "sub sp, sp, #160\nstp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
    "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\n"
    "stp d14, d15, [sp, #144]\nmov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
    "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\n"
    "ldp d14, d15, [sp, #144]\nadd sp, sp, #160\nret\n");
#else
#error "the emulation switches stacks on x86-64 and 64-bit Arm only"
#endif

struct Pending {
    u32 to;
    u8 bytes[16];
};
struct Thread {
    void* stack;
    u8* memory;
    bool done;
    // asynchronous copies: of the open group, and of those committed, oldest first
    Pending copies[max_pending];
    int copy_count, group_ends[max_groups], group_count;
    u32 accesses, copy_calls;  // how many so far: lanes of a warp meet by this number
};

// A warp instruction: what each lane brought, and what each takes away.
struct Exchange {
    u32 in[32][16], out[32][4];
    int arrived;
    u32 waiting[32];
};

static Thread threads[max_threads];
static Exchange exchanges[max_threads / 32];
static int runnable[max_threads], runnable_count, current, thread_count, at_barrier;
static int waiting_at_barrier[max_threads];
static void* scheduler;
static u64 random_state;
static bool in_order;
static int block[3], grid[3];
static int shared_bytes;
alignas(128) static u8 shared[max_shared];

static void leave() { gyroperm_switch(&threads[current].stack, scheduler); }

// Ends the launch: the scheduler does not come back to any fiber.
static void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int used = snprintf(message, sizeof message, "thread %d of block (%d, %d, %d): ", current,
                        block[0], block[1], block[2]);
    vsnprintf(message + used, sizeof message - used, format, arguments);
    va_end(arguments);
    for (;;) leave();
}

static u32 random_below(u32 limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (u32)((random_state >> 32) * limit >> 32);
}

static void wake(int thread) { runnable[runnable_count++] = thread; }

// ---- shared memory ------------------------------------------------------------------------------

// When a cell was last written and read: by whom, and how many barriers had passed by then. A
// barrier of the block orders all of its threads, one of a warp those of the warp.
struct Cell {
    int writer, reader;
    u32 write_block, write_warp, read_block, read_warp;
    bool written, pending;
};
constexpr int several = -2, nobody = -1;
static Cell cells[max_shared / cell_bytes];
static u32 block_barriers, warp_barriers[max_threads / 32];

static bool ordered(int before, u32 before_block, u32 before_warp) {
    if (before == nobody || before == current) return true;
    if (before_block != block_barriers) return true;
    return before >= 0 && before / 32 == current / 32 && before_warp != warp_barriers[current / 32];
}

static void check_shared(u32 address, int bytes) {
    if (address % bytes) fail("shared address %u is no multiple of %d", address, bytes);
    if ((long long)address + bytes > shared_bytes)
        fail("shared address %u with %d bytes lies outside of %d", address, bytes, shared_bytes);
}

static void note_read(u32 address, int bytes) {
    for (u32 i = address / cell_bytes; i < (address + bytes) / cell_bytes; i++) {
        Cell& cell = cells[i];
        if (cell.pending) fail("shared address %u is read before its copy was waited for", address);
        if (!cell.written) fail("shared address %u is read before it was written", address);
        if (!ordered(cell.writer, cell.write_block, cell.write_warp))
            fail("shared address %u is read without a barrier after thread %d wrote it", address,
                 cell.writer);
        bool first = cell.reader == nobody || cell.read_block != block_barriers;
        cell.reader = first || cell.reader == current ? current : several;
        cell.read_block = block_barriers;
        cell.read_warp = warp_barriers[current / 32];
    }
}

static void note_write(u32 address, int bytes, bool pending) {
    for (u32 i = address / cell_bytes; i < (address + bytes) / cell_bytes; i++) {
        Cell& cell = cells[i];
        if (cell.pending) fail("shared address %u is written while a copy to it is under way", address);
        if (!ordered(cell.reader, cell.read_block, cell.read_warp))
            fail("shared address %u is written without a barrier after it was read", address);
        if (cell.written && !ordered(cell.writer, cell.write_block, cell.write_warp))
            fail("shared address %u is written without a barrier after thread %d wrote it", address,
                 cell.writer);
        cell = {current, nobody, block_barriers, warp_barriers[current / 32], 0, 0, true, pending};
    }
}

// Lanes of a warp meet by the number of the access, as they would where none of them diverges.
// Wavefronts beyond the fewest that the bytes need are conflicts.
struct Meeting {
    u32 number, addresses[32];
    int lanes, bytes;
};
constexpr int meetings_kept = 64;
static Meeting meetings[2][max_threads / 32][meetings_kept];

static int wavefronts(const u32* addresses, int lanes, int bytes) {
    // A phase is as many lanes as 128 bytes hold; the same word twice is one access.
    int per_phase = bytes <= 4 ? 32 : 128 / bytes, total = 0;
    for (int first = 0; first < lanes; first += per_phase) {
        int deepest = 0, depth[32] = {};
        u32 seen[32][32];
        for (int lane = first; lane < first + per_phase && lane < lanes; lane++)
            for (int word = 0; word < (bytes + 3) / 4; word++) {
                u32 at = addresses[lane] / 4 + word, bank = at % 32;
                bool known = false;
                for (int i = 0; i < depth[bank]; i++) known |= seen[bank][i] == at;
                if (!known) seen[bank][depth[bank]++] = at;
                if (depth[bank] > deepest) deepest = depth[bank];
            }
        total += deepest;
    }
    int phases = (lanes + per_phase - 1) / per_phase;
    return total - phases;
}

static void meet(int kind, u32 number, u32 address, int bytes) {
    Meeting& meeting = meetings[kind][current / 32][number % meetings_kept];
    if (meeting.number != number || meeting.bytes != bytes) meeting = {number, {}, 0, bytes};
    meeting.addresses[current % 32] = address;
    if (++meeting.lanes < 32) return;
    (kind ? counts.copy_conflicts : counts.access_conflicts) +=
        wavefronts(meeting.addresses, 32, bytes);
    meeting.lanes = 0;
    meeting.number = ~0u;
}

// ---- global memory ------------------------------------------------------------------------------

static Buffer* check_global(const void* address, int bytes, int alignment, bool write) {
    const u8* at = (const u8*)address;
    if ((uintptr_t)at % alignment) fail("global address is no multiple of %d", alignment);
    for (int i = 0; i < buffer_count; i++) {
        Buffer& buffer = buffers[i];
        if (at < buffer.start || at + bytes > buffer.start + buffer.bytes) continue;
        if (write && !buffer.writable) fail("buffer %d is read-only", i);
        return &buffer;
    }
    for (int i = 0; i < buffer_count; i++) {
        long long offset = at - buffers[i].start;
        if (offset > -4096 && offset < buffers[i].bytes + 4096)
            fail("global access of %d bytes at %lld of buffer %d of %lld bytes", bytes, offset, i,
                 buffers[i].bytes);
    }
    fail("global access of %d bytes outside of every buffer", bytes);
    return nullptr;
}

// ---- a launch -----------------------------------------------------------------------------------

typedef void (*Body)(void** arguments);
static Body body;
static void** body_arguments;

static void trampoline() {
    body(body_arguments);
    threads[current].done = true;
    for (;;) leave();
}

static void prepare(Thread& thread) {
    if (!thread.memory) thread.memory = (u8*)malloc(stack_bytes);
    thread.done = false;
    thread.copy_count = thread.group_count = 0;
    thread.accesses = thread.copy_calls = 0;
    u8* top = thread.memory + stack_bytes;
    top -= (uintptr_t)top % 16;
    void** words = (void**)top;
#if defined(__x86_64__)
    *--words = nullptr;  // where trampoline would return to; it does not
    *--words = (void*)trampoline;
    for (int i = 0; i < saved_words; i++) *--words = nullptr;
#else
    words -= 20;
    memset(words, 0, 160);
    words[11] = (void*)trampoline;
#endif
    thread.stack = words;
}

static void run_block() {
    for (int i = 0; i < shared_bytes / cell_bytes; i++) cells[i] = {nobody, nobody};
    memset(shared, 0xff, shared_bytes);
    memset(meetings, 0xff, sizeof meetings);
    memset(warp_barriers, 0, sizeof warp_barriers);
    for (auto& exchange : exchanges) exchange.arrived = 0;
    block_barriers = 1;
    at_barrier = runnable_count = 0;
    for (int i = 0; i < thread_count; i++) {
        prepare(threads[i]);
        wake(i);
    }
    int left = thread_count;
    while (left && !message[0]) {
        if (!runnable_count) {
            current = 0;
            snprintf(message, sizeof message, "block (%d, %d, %d): %d of %d threads wait for others",
                     block[0], block[1], block[2], left, thread_count);
            return;
        }
        int pick = in_order ? runnable_count - 1 : random_below(runnable_count);
        current = runnable[pick];
        runnable[pick] = runnable[--runnable_count];
        gyroperm_switch(&scheduler, threads[current].stack);
        left -= threads[current].done;
    }
}

static int launch(Body kernel, void** arguments, const int* grid_size, int count, int bytes,
                  u64 seed) {
    message[0] = 0;
    memset(&counts, 0, sizeof counts);
    body = kernel, body_arguments = arguments;
    memcpy(grid, grid_size, sizeof grid);
    thread_count = count, shared_bytes = bytes;
    in_order = !seed;
    random_state = seed * 0x9e3779b97f4a7c15ull + 1;
    if (count % 32 || count > max_threads || bytes > max_shared) {
        snprintf(message, sizeof message, "a launch of %d threads and %d shared bytes", count, bytes);
        return 1;
    }
    long long blocks = (long long)grid[0] * grid[1] * grid[2];
    long long first = in_order ? 0 : random_below((u32)blocks);
    for (long long i = 0; i < blocks && !message[0]; i++) {
        long long index = (first + i) % blocks;
        block[0] = index % grid[0];
        block[1] = index / grid[0] % grid[1];
        block[2] = index / grid[0] / grid[1];
        run_block();
    }
    return message[0] != 0;
}

// Lanes that went through different numbers of accesses take the next ones together again.
static void realign(int warp) {
    u32 accesses = 0, copy_calls = 0;
    for (int i = warp * 32; i < warp * 32 + 32; i++) {
        if (threads[i].accesses > accesses) accesses = threads[i].accesses;
        if (threads[i].copy_calls > copy_calls) copy_calls = threads[i].copy_calls;
    }
    for (int i = warp * 32; i < warp * 32 + 32; i++)
        threads[i].accesses = accesses, threads[i].copy_calls = copy_calls;
}

// Deposits a lane's part; the last of the warp to come does the work for all of them.
template <class Work>
static void warp_wide(Work work) {
    Exchange& exchange = exchanges[current / 32];
    exchange.waiting[exchange.arrived++] = current;
    if (exchange.arrived < 32) {
        leave();
        return;
    }
    exchange.arrived = 0;
    realign(current / 32);
    work(exchange);
    for (int i = 0; i < 31; i++) wake(exchange.waiting[i]);
}

static void land(Thread& thread, int pending) {
    while (thread.group_count > pending) {
        int end = thread.group_ends[0];
        for (int i = 0; i < end; i++) {
            Pending& copy = thread.copies[i];
            memcpy(shared + copy.to, copy.bytes, 16);
            for (u32 c = copy.to / cell_bytes; c < (copy.to + 16) / cell_bytes; c++) {
                cells[c].pending = false;
                cells[c].write_block = block_barriers;
                cells[c].write_warp = warp_barriers[current / 32];
            }
        }
        thread.copy_count -= end;
        memmove(thread.copies, thread.copies + end, thread.copy_count * sizeof(Pending));
        thread.group_count--;
        for (int i = 0; i < thread.group_count; i++) thread.group_ends[i] = thread.group_ends[i + 1] - end;
    }
}

}  // namespace emulation

// ---- what primitives.h offers -------------------------------------------------------------------

DEVICE int thread_index() { return emulation::current; }
DEVICE int lane_index() { return emulation::current & 31; }
DEVICE int block_x() { return emulation::block[0]; }
DEVICE int block_y() { return emulation::block[1]; }
DEVICE int block_z() { return emulation::block[2]; }
DEVICE int grid_x() { return emulation::grid[0]; }

DEVICE void barrier() {
    using namespace emulation;
    waiting_at_barrier[at_barrier++] = current;
    if (at_barrier < thread_count) {
        leave();
        return;
    }
    at_barrier = 0;
    for (int warp = 0; warp < thread_count / 32; warp++) realign(warp);
    block_barriers++;
    for (int i = 0; i < thread_count - 1; i++) wake(waiting_at_barrier[i]);
}
DEVICE void warp_barrier() {
    emulation::warp_wide([](emulation::Exchange&) {
        emulation::warp_barriers[emulation::current / 32]++;
    });
}

template <class T>
DEVICE T load(const T* address) {
    emulation::check_global(address, sizeof(T), sizeof(T), false);
    emulation::counts.bytes_loaded += sizeof(T);
    T value;
    memcpy(&value, address, sizeof value);
    return value;
}
template <class T>
DEVICE T load_once(const T* address) {
    return load(address);
}
template <class T>
DEVICE T load_in_order(const T* address) {
    return load(address);
}
template <class T>
DEVICE T load_shared_by_blocks(const T* address) {
    return load(address);
}
template <class T>
DEVICE void store(T* address, T value) {
    using namespace emulation;
    Buffer* buffer = check_global(address, sizeof(T), sizeof(T), true);
    if (buffer->written)
        for (unsigned i = 0; i < sizeof(T); i++) {
            u8& flag = buffer->written[(u8*)address - buffer->start + i];
            if (flag) fail("output byte %lld is written twice", (u8*)address - buffer->start + i);
            flag = 1;
        }
    counts.bytes_stored += sizeof(T);
    memcpy(address, &value, sizeof value);
}
DEVICE void fence() {}
DEVICE u32 atomic_add(u32* address, u32 value) {
    emulation::check_global(address, sizeof(u32), sizeof(u32), true);
    u32 before = *address;
    *address += value;
    return before;
}

DEVICE u32 shared_base() { return 0; }
template <class T>
DEVICE T shared_load(u32 address) {
    using namespace emulation;
    check_shared(address, sizeof(T));
    note_read(address, sizeof(T));
    counts.accesses++;
    meet(0, threads[current].accesses++, address, sizeof(T));
    T value;
    memcpy(&value, shared + address, sizeof value);
    return value;
}
template <class T>
DEVICE void shared_store(u32 address, T value) {
    using namespace emulation;
    check_shared(address, sizeof(T));
    note_write(address, sizeof(T), false);
    counts.accesses++;
    meet(0, threads[current].accesses++, address, sizeof(T));
    memcpy(shared + address, &value, sizeof value);
}

DEVICE void copy_async(u32 to, const void* from, int bytes = 16) {
    using namespace emulation;
    check_shared(to, 16);
    if (bytes < 0 || bytes > 16) fail("an asynchronous copy of %d bytes", bytes);
    if (bytes)
        check_global(from, bytes, 16, false);
    else if ((uintptr_t)from % 16)
        fail("global address is no multiple of 16");
    Thread& thread = threads[current];
    if (thread.copy_count == max_pending) fail("more than %d copies are under way", max_pending);
    Pending& copy = thread.copies[thread.copy_count++];
    copy.to = to;
    memset(copy.bytes, 0, 16);
    memcpy(copy.bytes, from, bytes);
    note_write(to, 16, true);
    counts.copies++;
    counts.bytes_copied += bytes;
    meet(1, thread.copy_calls++, to, 16);
}
DEVICE void copy_commit() {
    using namespace emulation;
    Thread& thread = threads[current];
    if (thread.group_count == max_groups) fail("more than %d groups of copies", max_groups);
    thread.group_ends[thread.group_count++] = thread.copy_count;
}
template <int pending>
DEVICE void copy_wait() {
    emulation::land(emulation::threads[emulation::current], pending);
}

DEVICE float shuffle_xor(float value, int mask) {
    using namespace emulation;
    Exchange& exchange = exchanges[current / 32];
    int lane = current % 32;
    memcpy(&exchange.in[lane][0], &value, 4);
    warp_wide([mask](Exchange& all) {
        for (int i = 0; i < 32; i++) memcpy(all.out[i], all.in[i ^ mask], 4);
    });
    memcpy(&value, exchange.out[lane], 4);
    return value;
}

DEVICE void load_matrices_transposed(u32 (&to)[4], u32 row_address) {
    using namespace emulation;
    Exchange& exchange = exchanges[current / 32];
    int lane = current % 32;
    check_shared(row_address, 16);
    note_read(row_address, 16);
    exchange.in[lane][0] = row_address;
    warp_wide([](Exchange& all) {
        for (int matrix = 0; matrix < 4; matrix++) {
            u32 rows[8];
            for (int i = 0; i < 8; i++) rows[i] = all.in[matrix * 8 + i][0];
            counts.matrix_loads++;
            counts.matrix_conflicts += wavefronts(rows, 8, 16);
            for (int lane = 0; lane < 32; lane++) {
                u16 values[2];
                for (int i = 0; i < 2; i++)
                    memcpy(&values[i], shared + rows[lane % 4 * 2 + i] + lane / 4 * 2, 2);
                all.out[lane][matrix] = values[0] | (u32)values[1] << 16;
            }
        }
    });
    memcpy(to, exchange.out[lane], 16);
}

// ---- numbers ------------------------------------------------------------------------------------

DEVICE float float_of_bits(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
#if GYROPERM_BF16
DEVICE float to_float(u16 bits) { return float_of_bits((u32)bits << 16); }
DEVICE u16 from_float(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
DEVICE float to_float(u16 bits) {
    u32 sign = (u32)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (!exponent) {
        float value = ldexpf((float)fraction, -24);
        return sign ? -value : value;
    }
    return float_of_bits(sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) |
                         fraction << 13);
}
DEVICE u16 from_float(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    u16 sign = bits >> 16 & 0x8000;
    if (value != value) return 0x7fff;
    double size = fabs((double)value);
    if (size >= 65520.) return sign | 0x7c00;
    int exponent;
    frexp(size, &exponent);
    if (exponent < -13) exponent = -13;  // subnormal: as the least normal
    double step = ldexp(1., exponent - 11), whole = nearbyint(size / step);
    double rounded = whole * step;
    if (rounded < ldexp(1., -14)) return sign | (u16)(rounded * 16777216.);
    frexp(rounded, &exponent);
    return sign | (u16)((exponent + 14) << 10) |
           (u16)(ldexp(rounded, 11 - exponent) - 1024.);
}
#endif
DEVICE float exponential(float value) { return expf(value); }
DEVICE float error_function(float value) { return erff(value); }
DEVICE float reciprocal_root(float value) { return 1.f / sqrtf(value); }

// ---- matrix products: fragments as the PTX manual lays them out ---------------------------------

namespace emulation {

// Row r, compressed column k of a 16 x 16 fragment of A.
DEVICE float operand_a(const Exchange& all, int r, int k) {
    int lane = r % 8 * 4 + k % 8 / 2, index = r / 8 + k / 8 * 2;
    return to_float((u16)(all.in[lane][index] >> 16 * (k & 1)));
}
DEVICE float operand_b(const Exchange& all, int k, int column) {
    int lane = column * 4 + k % 8 / 2;
    return to_float((u16)(all.in[lane][4 + k / 8] >> 16 * (k & 1)));
}
// The places, within its group of four, of the two values that row r keeps of group g.
DEVICE void kept(const Exchange& all, int selector, int r, int g, int (&places)[2]) {
    u32 word = all.in[r % 8 * 4 + 2 * selector + g / 4][8];
    for (int i = 0; i < 2; i++) places[i] = word >> (r / 8 * 16 + g % 4 * 4 + i * 2) & 3;
}

template <class Term>
DEVICE void multiply(float (&d)[4], Term term) {
    Exchange& exchange = exchanges[current / 32];
    int lane = current % 32;
    warp_wide([&](Exchange& all) {
        counts.products++;
        for (int to = 0; to < 32; to++)
            for (int i = 0; i < 4; i++) {
                float sum = (float)term(all, to / 4 + i / 2 * 8, to % 4 * 2 + (i & 1));
                memcpy(&all.out[to][i], &sum, 4);
            }
    });
    for (int i = 0; i < 4; i++) d[i] += float_of_bits(exchange.out[lane][i]);
}

}  // namespace emulation

template <int selector>
DEVICE void multiply_sparse(float (&d)[4], uint4 a, const u32 (&b)[4], u32 metadata) {
    using namespace emulation;
    u32* in = exchanges[current / 32].in[current % 32];
    memcpy(in, &a, 16);
    memcpy(in + 4, b, 16);
    in[8] = metadata;
    multiply(d, [](Exchange& all, int row, int column) {
        double sum = 0;
        for (int group = 0; group < 8; group++) {
            int places[2];
            kept(all, selector, row, group, places);
            if (places[1] <= places[0]) fail("metadata is not ordered: %d, %d", places[0], places[1]);
            for (int i = 0; i < 2; i++)
                sum += (double)operand_a(all, row, group * 2 + i) *
                       operand_b(all, group * 4 + places[i], column);
        }
        return sum;
    });
}

DEVICE void multiply_dense(float (&d)[4], uint4 a, u32 b0, u32 b1) {
    using namespace emulation;
    u32* in = exchanges[current / 32].in[current % 32];
    memcpy(in, &a, 16);
    in[4] = b0, in[5] = b1;
    multiply(d, [](Exchange& all, int row, int column) {
        double sum = 0;
        for (int k = 0; k < 16; k++)
            sum += (double)operand_a(all, row, k) * operand_b(all, k, column);
        return sum;
    });
}
