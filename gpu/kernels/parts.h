// Sums that several blocks share: each leaves its part in a workspace, the last to come adds them.
#pragma once
#include "primitives.h"

// True in the block that comes last of `parts`, which then sees what all of them stored before.
// Every thread of a block calls it; `scratch` is a word of shared memory that none of them uses.
DEVICE bool comes_last(u32* counter, int parts, u32 scratch) {
    const u32 last = static_cast<u32>(parts) - 1;
    fence();
    barrier();
    if (thread_index() == 0) {
        u32 before = atomic_add(counter, 1);
        // The next launch finds it as this one did.
        if (before == last) store(counter, 0u);
        shared_store(scratch, before);
    }
    barrier();
    bool is_last = shared_load<u32>(scratch) == last;
    barrier();
    if (is_last) fence();
    return is_last;
}
