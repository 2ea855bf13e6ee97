// One kernel as a function of the host. The caller defines GYROPERM_SOURCE, the kernel's file, and
// GYROPERM_CALL, its call with arguments taken from an array of pointers to them.
#define GYROPERM_EMULATION
#include GYROPERM_SOURCE

static void call(void** arguments) { GYROPERM_CALL; }

extern "C" int gyroperm_launch(void** arguments, const int* grid, int threads, int shared_bytes,
                               unsigned long long seed, const emulation::Buffer* buffers,
                               int buffer_count, emulation::Counts* counts, char* message,
                               int message_bytes) {
    if (buffer_count > emulation::max_buffers) return 2;
    memcpy(emulation::buffers, buffers, buffer_count * sizeof *buffers);
    emulation::buffer_count = buffer_count;
    int failed = emulation::launch(call, arguments, grid, threads, shared_bytes, seed);
    *counts = emulation::counts;
    snprintf(message, message_bytes, "%s", emulation::message);
    return failed;
}
