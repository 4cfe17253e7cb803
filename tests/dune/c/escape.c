/* Tries to escape from ring 3, in every way that the protection of the vault speaks of.
 *
 *   escape GROUP     prints a line for each attempt of it: one of direct, pointers, nested,
 *                    mappings, files, descriptors, calls, signals, threads, races, sweeps,
 *                    module
 *
 *   escape fatal X   one attempt (see escape/fatal.h) that ends this process
 *
 * It is an ordinary program, run by dune-sandbox; with --module or --module-no-pkey it seals itself
 * in, with a module in ring 0 and data windows. The harness (tests/dune/test_escape.py) looks at
 * it from outside: it fills pages of the vault with a secret, tells on standard input where they
 * are, and compares the vault before and after. Protocol: "ready\n" is printed; a line VAULT TARGET
 * SCRATCH TIDS TID_BASE NOT_SECRET FIRST_FD (hexadecimal) is read; the attempts are printed; "done
 * N M\n" (tried, broken) is printed; a byte is read; the program ends.
 *
 * Outside of the sandbox, with memory of its own for a vault (`escape --bare GROUP`), most attempts
 * must succeed: so the harness knows that they are real.
 */
#include "escape/calls.h"
#include "escape/descriptors.h"
#include "escape/direct.h"
#include "escape/fatal.h"
#include "escape/files.h"
#include "escape/kit.h"
#include "escape/mappings.h"
#include "escape/module.h"
#include "escape/nested.h"
#include "escape/pointers.h"
#include "escape/races.h"
#include "escape/signals.h"
#include "escape/sweeps.h"
#include "escape/threads.h"

static const struct {
    const char *name;
    void (*run)(void);
} groups[] = {
    {"direct", direct_all},     {"pointers", pointers_all}, {"nested", nested_all},
    {"mappings", mappings_all}, {"files", files_all},       {"descriptors", descriptors_all},
    {"calls", calls_all},       {"signals", signals_all},   {"threads", threads_all},
    {"races", races_all},       {"sweeps", sweeps_all},     {"module", module_all},
};

static void ask(void)
{
    char line[512];
    unsigned long tid_base, first_fd;
    ssize_t got;

    if (write(1, "ready\n", 6) != 6)
        _exit(5);
    got = read(0, line, sizeof line - 1);
    line[got > 0 ? got : 0] = '\0';
    if (sscanf(line, "%lx %lx %lx %lx %lx %lx %lx", &given.vault, &given.target, &given.scratch,
               &given.tids, &tid_base, &given.not_secret, &first_fd) != 7)
        _exit(6);
    given.tid_base = (uint32_t)tid_base;
    given.first_fd = (int)first_fd;
}

/* A range of this process's own in the vault's place. */
static void pretend(void)
{
    char *at = mmap(NULL, 4 * GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint64_t base = ((uint64_t)at + 2 * GIB - 1) & ~(GIB - 1);

    mmap((void *)base, GIB, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    given.vault = base;
    given.target = base + (64 << 20);
    given.scratch = base + GIB / 2;
    given.tids = given.target + SECRET_BYTES;
    given.tid_base = (uint32_t)getpid();
    given.not_secret = 0x1122334455667788;
    for (uint64_t n = 0; n < SECRET_BYTES; n += 8)
        *(uint64_t *)(given.target + n) = ~given.not_secret;
    for (uint32_t n = 0; n < 1024; n++)
        *(uint32_t *)(given.tids + 4 * n) = given.tid_base + n;
    given.first_fd = 600;
    for (int n = 0; n < 12; n++)
        dup2(a_file, given.first_fd + n);
}

static int run_fatal(const char *name)
{
    for (size_t n = 0; n < sizeof fatal / sizeof *fatal; n++)
        if (strcmp(fatal[n].name, name) == 0)
            fatal[n].run();
    return 68; /* it came back, or there is none of this name */
}

int main(int argc, char **argv)
{
    bool bare = argc > 1 && strcmp(argv[1], "--bare") == 0;
    bool keyed = argc > 1 && strcmp(argv[1], "--module") == 0;
    bool module = argc > 1 && strncmp(argv[1], "--module", 8) == 0;
    char line[64];
    int used;

    argv += bare || module;
    argc -= bare || module;
    if (argc < 2)
        return 2;
    open_things();
    if (module)
        module_enter(keyed);
    if (bare)
        pretend();
    else
        ask();
    if (argc > 2 && strcmp(argv[1], "fatal") == 0)
        return run_fatal(argv[2]);
    watch_signals();
    for (size_t n = 0; n < sizeof groups / sizeof *groups; n++)
        if (strcmp(groups[n].name, argv[1]) == 0)
            groups[n].run();
    used = snprintf(line, sizeof line, "done %u %u\n", tried, broken);
    CALL(SYS_write, 1, line, used);
    if (!bare)
        CALL(SYS_read, 0, line, 1);
    CALL(SYS_exit_group, 0);
}
