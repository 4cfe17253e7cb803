/* Programs that use the test module: this process reserves the range and maps the data; a child of
 * it seals itself in; and this one sees from outside what becomes of that. */
#ifndef MODULE_HOST_H
#define MODULE_HOST_H

#include "../both.h"
#include "calls.h"

#include "module/module.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define GIB        (1ull << 30)
#define DATA_BYTES (2ull << 20)

/* The same with both values. */
#define EQUAL(one, other) \
    do { \
        long long a_ = (long long)(one), b_ = (long long)(other); \
        if (a_ != b_) { \
            dprintf(1, "%s:%d: %s is %lld (0x%llx), not %lld (0x%llx)\n", __FILE__, __LINE__, \
                    #one, a_, a_, b_, b_); \
            _exit(99); \
        } \
    } while (0)

/* What lies at the beginning of the data windows. */
struct host_data {
    struct small small;
    struct dune_shared shared;
};

static struct dune_place place;
static struct host_data *data; /* in the closed range: not for ring 3 */
static struct host_data *alias; /* the same memory, read-only, ring 3's too */
static int data_fd;
static int sockets[2]; /* the module's, and its other end */
static int streams[2]; /* the same: its other end sees when the last copy of the module's is gone */
static bool without_pkey;
static void *image;
static uint64_t image_bytes;

static inline void host_read_image(void)
{
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
    int fd;

    CHECK(length > 0);
    path[length] = 0;
    strcpy(strrchr(path, '/'), "/small.bin");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    image_bytes = (uint64_t)lseek(fd, 0, SEEK_END);
    image = mmap(NULL, image_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(image != MAP_FAILED);
    close(fd);
}

/* In the control process. */
static inline void host_prepare(void)
{
    host_read_image();
    CHECK(dune_reserve(DATA_BYTES, &place) == 0);
    EQUAL(place.data_bytes, GIB);
    data_fd = memfd_create("data", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(data_fd >= 0 && ftruncate(data_fd, DATA_BYTES) == 0);
    data = mmap((void *)place.data, DATA_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                data_fd, 0);
    CHECK((uint64_t)data == place.data);
    CHECK(fcntl(data_fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    alias = mmap(NULL, DATA_BYTES, PROT_READ, MAP_SHARED, data_fd, 0);
    CHECK(alias != MAP_FAILED);
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sockets) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, streams) == 0);
    without_pkey = getenv("DUNE_TEST_NO_PKEY") != NULL;
}

/* In the worker: it goes on in ring 3. */
static inline void host_enter(void)
{
    struct dune_module module = {.image = image,
                                 .bytes = image_bytes,
                                 .context = (uint64_t)&data->small,
                                 .descriptor = {sockets[0], streams[0]},
                                 .n_descriptors = 2,
                                 .shared = &data->shared};
    struct dune_config config = {.flags = DUNE_SEALED | DUNE_SKIP_SELF_TEST,
                                 .place = &place,
                                 .module = &module};

    close(data_fd);
    if (without_pkey)
        config.flags |= DUNE_NO_PKEY;
    if (dune_init(&config) != 0 || dune_enter_user() != 0) {
        dprintf(1, "%s\n", dune_error());
        _exit(98);
    }
}

/* `run` in ring 3 of a worker. */
static inline pid_t host_start(void (*run)(void))
{
    pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid == 0) {
        host_enter();
        run();
        _exit(0);
    }
    close(streams[0]);
    return pid;
}

/* How that ended, as waitpid() has it. */
static inline int host_wait(pid_t pid)
{
    int status;

    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

static inline int host_run(void (*run)(void))
{
    return host_wait(host_start(run));
}

static inline long call(uint64_t n, uint64_t a0, uint64_t a1)
{
    return dune_module_call(n, a0, a1, 0, 0, 0);
}

static inline int host_main(int argc, char **argv, const struct both_case *cases)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (; argc == 2 && cases->name; cases++) {
        if (strcmp(cases->name, argv[1]) != 0)
            continue;
        host_prepare();
        cases->run();
        return 0;
    }
    fprintf(stderr, "%s CASE\n", argv[0]);
    return 2;
}

#endif
