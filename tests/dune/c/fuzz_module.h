/* The test module under the fuzzer: made, and called at random. */
#ifndef FUZZ_MODULE_H
#define FUZZ_MODULE_H

#include "dune.h"
#include "fuzz_make.h"
#include "module/calls.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static struct {
    uint8_t image[1 << 20];
    ssize_t bytes;
} fuzz_module;

/* Before the rounds: their files are others. */
static bool fuzz_read_module(void)
{
    char path[512];
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 16);
    int fd;

    path[length > 0 ? length : 0] = 0;
    strcpy(strrchr(path, '/') + 1, "small.bin");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    fuzz_module.bytes = read(fd, fuzz_module.image, sizeof(fuzz_module.image));
    close(fd);
    return fuzz_module.bytes > 0;
}

/* On data whose second half nobody changes. */
static bool fuzz_make_module(struct dune_module *module, struct dune_place *place)
{
    if (dune_reserve(FUZZ_DATA_BYTES, place) != 0 ||
        mmap((void *)place->data, FUZZ_DATA_BYTES, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        return false;
    *module = (struct dune_module){.image = fuzz_module.image,
                                   .bytes = (uint64_t)fuzz_module.bytes,
                                   .context = place->data,
                                   .descriptor = {socket(AF_UNIX, SOCK_DGRAM, 0)},
                                   .n_descriptors = 1,
                                   .shared = (void *)(place->data + sizeof(struct small))};
    return true;
}

/* One of its calls, or a number of none. True: it had the answer that is due to this thread. */
static bool fuzz_call_module(const struct fuzz_space *space, struct fuzz_random *random, bool first)
{
    uint64_t n = fuzz_next(random) % DUNE_CALL_MODULES, arg[5];
    long result;

    if (n >= SMALL_CALLS && fuzz_next(random) % 4)
        n %= SMALL_HARMLESS;
    if (n >= SMALL_HARMLESS && n < SMALL_CALLS)
        return false;
    for (unsigned i = 0; i < 5; i++)
        arg[i] = some_word(space, random);
    result = dune_module_call(n, arg[0], arg[1], arg[2], arg[3], arg[4]);
    if (!first)
        return result == -EPERM;
    if (n == SMALL_ADD)
        return result == (long)(arg[0] + arg[1] + arg[2] + arg[3] + arg[4]);
    return n < SMALL_CALLS || result == SMALL_UNKNOWN;
}

#endif
