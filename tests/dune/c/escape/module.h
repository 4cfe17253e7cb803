/* This process with a module in ring 0, on data that lie in the data windows; and attempts on them.
 * A process beside it, the keeper, has the memory too, as a control process would. */
#ifndef ESCAPE_MODULE_H
#define ESCAPE_MODULE_H

#include "../module/calls.h"
#include "dune.h"
#include "kit.h"
#include "mappings.h"
#include "module/module.h"

#define MODULE_DATA_BYTES (1u << 21)
#define MODULES_AT        0x4000000 /* shim/layout.h, in the vault */

static struct {
    struct dune_place place;
    int fd, keeper_fd;
    pid_t keeper;
    char *alias; /* read-only, outside */
    int socket[2];
} inside;

static void module_read_image(struct dune_module *module)
{
    static char room[1 << 20];
    char path[512];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 16);
    int fd;

    path[length > 0 ? length : 0] = '\0';
    strcpy(strrchr(path, '/') + 1, "small.bin");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    length = read(fd, room, sizeof room);
    close(fd);
    module->image = room;
    module->bytes = length > 0 ? (uint64_t)length : 0;
}

/* No child of this process's, which waits for all of those. It goes with the process group. */
static void module_keep(void)
{
    int pair[2];
    pid_t pid;

    inside.keeper_fd = inside.fd;
    if (pipe2(pair, O_CLOEXEC) != 0)
        _exit(4);
    pid = fork();
    if (pid == 0) {
        pid = fork();
        if (pid != 0 && write(pair[1], &pid, sizeof pid) != sizeof pid)
            _exit(4);
        if (pid != 0)
            _exit(0);
        for (int n = 0; n < 3; n++)
            close(n);
        for (;;)
            pause();
    }
    waitpid(pid, NULL, 0);
    if (read(pair[0], &inside.keeper, sizeof inside.keeper) != sizeof inside.keeper)
        _exit(4);
    close(pair[0]);
    close(pair[1]);
}

static void module_map_data(void)
{
    const int seals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;

    inside.fd = memfd_create("data", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (dune_reserve(MODULE_DATA_BYTES, &inside.place) != 0 ||
        ftruncate(inside.fd, MODULE_DATA_BYTES) != 0 ||
        mmap((void *)inside.place.data, MODULE_DATA_BYTES, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED, inside.fd, 0) == MAP_FAILED ||
        fcntl(inside.fd, F_ADD_SEALS, seals) != 0 ||
        socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, inside.socket) != 0) {
        perror("escape: no data windows");
        _exit(4);
    }
    inside.alias = mmap(NULL, MODULE_DATA_BYTES, PROT_READ, MAP_SHARED, inside.fd, 0);
}

/* This process goes on in ring 3. */
static void module_enter(bool key)
{
    struct dune_module module = {.n_descriptors = 1};
    struct dune_config config = {.flags = DUNE_SEALED | DUNE_SKIP_SELF_TEST,
                                 .place = &inside.place,
                                 .module = &module};

    if (!key)
        config.flags |= DUNE_NO_PKEY;
    module_map_data();
    module_read_image(&module);
    module_keep();
    module.context = inside.place.data + MODULE_DATA_BYTES / 2;
    module.descriptor[0] = inside.socket[0];
    close(inside.fd);
    if (dune_init(&config) != 0 || dune_enter_user() != 0) {
        fprintf(stderr, "%s\n", dune_error());
        _exit(4);
    }
}

/* ---- attempts -------------------------------------------------------------------------------- */

static void module_touch(const char *name, uint64_t at)
{
    char what[80];
    volatile uint64_t *word = (uint64_t *)at;

    snprintf(what, sizeof what, "load %s", name);
    FAULTS(what, (void)*word);
    snprintf(what, sizeof what, "store %s", name);
    FAULTS(what, *word = 0);
    snprintf(what, sizeof what, "call %s", name);
    FAULTS(what, ((void (*)(void))at)());
}

static void module_places(void)
{
    uint64_t at = given.vault + MODULES_AT;

    group = "module";
    module_touch("the image's head", at);
    module_touch("its text", at + PAGE);
    module_touch("its main function", at + 2 * PAGE - 64);
    module_touch("its constants", at + 4 * PAGE);
    module_touch("its guard page", at + 0x400f000);
    module_touch("its stack", at + 0x401ffc0);
    module_touch("ring 3's FPU state", at + 0x4000000);
    module_touch("the data", given.vault + GIB);
    module_touch("the data's end", given.vault + GIB + MODULE_DATA_BYTES - 8);
    module_touch("behind the data", given.vault + GIB + MODULE_DATA_BYTES);
    module_touch("the guard behind all", given.vault + 2 * GIB);
}

static void module_alias(void)
{
    char *at = inside.alias;
    long copy;

    group = "read-only alias";
    TRY((void)*(volatile char *)at);
    say(caught == 0, "load", "%s", caught ? "SEGV: it can't be read" : "as it should");
    FAULTS("store", *(volatile char *)at = 1);
    FAULTS("lock inc", __asm__ volatile("lock incl (%0)" ::"r"(at) : "memory"));
    FAULTS("rep stosb", __asm__ volatile("rep stosb" ::"D"(at), "c"(64), "a"(1) : "memory"));
    fails("mprotect WRITE", CALL(SYS_mprotect, at, PAGE, PROT_READ | PROT_WRITE));
    fails("pkey_mprotect WRITE", CALL(SYS_pkey_mprotect, at, PAGE, PROT_READ | PROT_WRITE, 0));
    copy = CALL(SYS_mremap, at, 0, PAGE, MREMAP_MAYMOVE, 0);
    if (copy > 0)
        fails("mprotect WRITE of a copy", CALL(SYS_mprotect, copy, PAGE, PROT_READ | PROT_WRITE));
    fails("read() into it", CALL(SYS_pread64, a_file, at, 64, 0));
    fails("recv() into it",
          CALL(SYS_write, other_socket, "x", 1) == 1 ? CALL(SYS_read, a_socket, at, 1) : 1);
    fails("getcwd() into it", CALL(SYS_getcwd, at, 64));
    fails("madvise REMOVE", CALL(SYS_madvise, at, PAGE, MADV_REMOVE));
    fails("madvise POPULATE_WRITE", CALL(SYS_madvise, at, PAGE, 23));
    fails("madvise HWPOISON", CALL(SYS_madvise, at, PAGE, 100));
    harmless("madvise DONTNEED", CALL(SYS_madvise, at, PAGE, MADV_DONTNEED));
    harmless("madvise PAGEOUT", CALL(SYS_madvise, at, PAGE, 21));
    harmless("futex wake", CALL(SYS_futex, at, 1, 1, 0, 0, 0));
    fails("futex WAKE_OP", CALL(SYS_futex, good, 5, 0, 0, at, 1 << 12));
    harmless("remap_file_pages", CALL(SYS_remap_file_pages, at, PAGE, 0, 1, 0));
}

/* Files of the data's memory, by whatever path. */
static void module_path(const char *format, uint64_t first, uint64_t end)
{
    static const int how[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_TRUNC};
    char path[128], what[160];

    snprintf(path, sizeof path, format, inside.keeper, first, end);
    for (size_t n = 0; n < sizeof how / sizeof *how; n++) {
        snprintf(what, sizeof what, "open %s (%x)", path, how[n]);
        fails(what, CALL(SYS_openat, AT_FDCWD, path, how[n], 0));
    }
    snprintf(what, sizeof what, "truncate %s", path);
    fails(what, CALL(SYS_truncate, path, 0));
}

static void module_paths(void)
{
    uint64_t data = given.vault + GIB, alias = U(inside.alias);

    group = "path to the data";
    module_path("/proc/%d/fd/%lu", (uint64_t)inside.keeper_fd, 0);
    module_path("/proc/%d/map_files/%lx-%lx", data, data + MODULE_DATA_BYTES);
    module_path("/proc/%d/map_files/%lx-%lx", alias, alias + MODULE_DATA_BYTES);
    inside.keeper = getpid();
    module_path("/proc/%d/map_files/%lx-%lx", data, data + MODULE_DATA_BYTES);
    module_path("/proc/%d/map_files/%lx-%lx", alias, alias + MODULE_DATA_BYTES);
    fails("its descriptor", CALL(SYS_fcntl, inside.fd, F_GETFD));
    fails("the module's descriptor", CALL(SYS_fcntl, inside.socket[0], F_GETFD));
    for (int n = 0; n < 16; n++) {
        fails("a descriptor of the shim's, dup()", CALL(SYS_dup, given.first_fd + n));
        fails("a descriptor of the shim's, send()",
              CALL(SYS_sendto, given.first_fd + n, good, 1, 0, 0, 0));
    }
}

static void *module_thread(void *unused)
{
    fails("from a thread", dune_module_call(SMALL_ADD, 1, 2, 3, 4, 5));
    return unused;
}

static void module_calls(void)
{
    uint64_t rsp = 0;
    pthread_t thread;
    pid_t pid;

    group = "module call";
    say(dune_module_call(SMALL_ADD, 1, 2, 3, 4, 5) == 15, "from the first thread", "as it should");
    if (pthread_create(&thread, NULL, module_thread, NULL) == 0)
        pthread_join(thread, NULL);
    pid = fork();
    if (pid == 0) {
        fails("from a child", dune_module_call(SMALL_ADD, 1, 2, 3, 4, 5));
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    tried++; /* the child's */
    TRY(__asm__ volatile("mov %%rsp, %0\n\tmov %1, %%rsp\n\tsyscall\n\tmov %0, %%rsp"
                         : "=&b"(rsp)
                         : "r"(given.target), "a"(DUNE_CALL_MODULE + SMALL_ADD), "D"(1)
                         : "rcx", "r11", "memory"));
    say(!caught, "with a stack pointer into the vault", "the module has its own stack");
    say(CALL(0xffffffff0000d100ull, 1, 2) == -ENOSYS, "number with more bits", "no such call");
    fails("number above", CALL(DUNE_CALL_MODULE + DUNE_CALL_MODULES));
    fails("number below", CALL(DUNE_CALL_MODULE - 1));
    FAULTS("out of the kick port", __asm__ volatile("out %%al, $0x17" ::"D"(0), "S"(1), "a"(0)));
}

/* By pointers of system calls, and by those that change mappings. */
static void module_image(void)
{
    uint64_t text = given.vault + MODULES_AT + PAGE, stack = given.vault + MODULES_AT + 0x4018000;

    group = "module's image";
    fails("read() into its text", CALL(SYS_pread64, a_file, text, 64, 0));
    fails("write() out of its text", CALL(SYS_pwrite64, a_file, text, 64, 0));
    fails("read() into its stack", CALL(SYS_pread64, a_file, stack, 64, 0));
    fails("write() out of its stack", CALL(SYS_pwrite64, a_file, stack, 64, 0));
    fails("a signal's handler in it", CALL(SYS_sigaltstack, good, text));
    mappings_over("the module's text", text, PAGE);
    mappings_over("the module's stack", stack, PAGE);
    mappings_over("the data windows", given.vault + GIB, GIB);
    mappings_over("the data's end and the guard", given.vault + 2 * GIB - PAGE, 2 * PAGE);
}

static void module_all(void)
{
    module_places();
    module_image();
    module_alias();
    module_calls();
    module_paths();
}

#endif
