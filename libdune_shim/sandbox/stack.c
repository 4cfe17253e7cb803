/* What the kernel leaves on the stack of a new program: argc, argv, envp, auxv, and the strings.
 *
 * The process's own stack is used: it has the right size limit and grows by itself. The program's
 * part begins below everything that dune-sandbox still needs there. */
#include "sandbox/sandbox.h"

#include <elf.h>
#include <errno.h>
#include <linux/prctl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#define PAGE          4096ull
#define ROOM_BELOW    (64 << 10) /* for the functions that are still called on the way */
#define AUXV_MAX      40
#define STRINGS_MAX   (6 << 20)   /* of arguments and environment: three quarters of 8 MiB, */
#define STRINGS_LEAST (128 << 10) /* and what is allowed on any stack (execve(2)) */
#define PLATFORM      "x86_64"

/* Where things came to lie, for sandbox_stack_announce(). */
static struct {
    uint64_t stack, arg_start, arg_end, env_start, env_end;
    Elf64_auxv_t auxv[AUXV_MAX];
    unsigned n_auxv;
} built;

/* A stack that is being filled from its top down. */
struct filler {
    uint64_t at;
};

static uint64_t push(struct filler *filler, const void *data, size_t bytes)
{
    filler->at -= bytes;
    memcpy((void *)filler->at, data, bytes);
    return filler->at;
}

static uint64_t push_string(struct filler *filler, const char *text)
{
    return push(filler, text, strlen(text) + 1);
}

static size_t count(char **list)
{
    size_t n = 0;

    while (list[n])
        n++;
    return n;
}

/* Bytes of the strings of list and of their pointers. */
static size_t weight(char **list)
{
    size_t bytes = 0;

    for (size_t n = 0; list[n]; n++)
        bytes += strlen(list[n]) + 1 + sizeof *list;
    return bytes;
}

static void add(uint64_t type, uint64_t value)
{
    if (built.n_auxv < AUXV_MAX)
        built.auxv[built.n_auxv++] = (Elf64_auxv_t){.a_type = type, .a_un.a_val = value};
}

/* Those that describe the machine and the user are the process's own. There is no AT_RSEQ_*:
 * rseq isn't available in ring 3. */
static void build_auxv(const struct sandbox_program *program, struct filler *filler)
{
    static const uint64_t kept[] = {AT_SYSINFO_EHDR, AT_HWCAP,      AT_PAGESZ, AT_CLKTCK,
                                    AT_UID,          AT_EUID,       AT_GID,    AT_EGID,
                                    AT_HWCAP2,       AT_MINSIGSTKSZ};
    const struct sandbox_elf *elf = &program->elf;
    uint8_t random[16] = {0};

    for (size_t n = 0; n < sizeof kept / sizeof *kept; n++) {
        errno = 0;
        uint64_t value = getauxval(kept[n]);

        if (value || errno == 0)
            add(kept[n], value);
    }
    if (getrandom(random, sizeof random, 0) != sizeof random)
        sandbox_fail(SANDBOX_FAILED, "there are no random bytes: %s", strerror(errno));
    add(AT_PHDR, elf->phdr ? elf->phdr + program->base : 0);
    add(AT_PHENT, elf->phdr_bytes);
    add(AT_PHNUM, elf->phdr_count);
    add(AT_BASE,
        program->interpreter_fd >= 0 ? program->interpreter_base + program->interpreter.low : 0);
    add(AT_FLAGS, 0);
    add(AT_ENTRY, elf->entry + program->base);
    add(AT_SECURE, 0);
    add(AT_RANDOM, push(filler, random, sizeof random));
    add(AT_PLATFORM, push_string(filler, PLATFORM));
    add(AT_NULL, 0);
}

/* The kernel's own limit, which a script's interpreter and its argument may have gone beyond. */
static void check_room(size_t bytes)
{
    uint64_t most = STRINGS_MAX;
    struct rlimit limit;

    if (getrlimit(RLIMIT_STACK, &limit) == 0 && limit.rlim_cur / 4 < most)
        most = limit.rlim_cur / 4;
    if (most < STRINGS_LEAST)
        most = STRINGS_LEAST;
    if (bytes > most)
        sandbox_fail(SANDBOX_NOT_EXECUTABLE,
                     "arguments and environment take %zu bytes, and %llu are allowed: give less, "
                     "or raise the stack's limit (ulimit -s)",
                     bytes, (unsigned long long)most);
}

uint64_t sandbox_stack_build(const struct sandbox_program *program, char **envp)
{
    size_t n_env = count(envp), words = 1 + (size_t)program->argc + 1 + n_env + 1;
    size_t bytes = weight(program->argv) + weight(envp) + strlen(program->exec_path) + 1024;
    struct filler filler = {.at = (uint64_t)__builtin_frame_address(0) - ROOM_BELOW};
    uint64_t *word, string, exec_path;

    check_room(bytes);
    memset(&built, 0, sizeof built);
    exec_path = push_string(&filler, program->exec_path);
    /* Arguments, then the environment: contiguous and in order, as ps and setproctitle() expect. */
    built.env_end = filler.at;
    filler.at -= weight(envp) - n_env * sizeof *envp;
    built.env_start = built.arg_end = filler.at;
    filler.at -= weight(program->argv) - (size_t)program->argc * sizeof *program->argv;
    built.arg_start = filler.at;
    build_auxv(program, &filler);
    add(AT_NULL, 0);
    built.n_auxv -= 2; /* rewrite the end: AT_EXECFN comes last */
    add(AT_EXECFN, exec_path);
    add(AT_NULL, 0);

    filler.at -= words * sizeof *word + built.n_auxv * sizeof *built.auxv;
    filler.at &= ~15ull;
    built.stack = filler.at;
    word = (uint64_t *)filler.at;
    *word++ = (uint64_t)program->argc;
    string = built.arg_start;
    for (int n = 0; n < program->argc; n++) {
        *word++ = string;
        string = (uint64_t)stpcpy((char *)string, program->argv[n]) + 1;
    }
    *word++ = 0;
    for (size_t n = 0; n < n_env; n++) {
        *word++ = string;
        string = (uint64_t)stpcpy((char *)string, envp[n]) + 1;
    }
    *word++ = 0;
    memcpy(word, built.auxv, built.n_auxv * sizeof *built.auxv);
    /* Asked for by hand-written assembly and nested functions of C. */
    if (program->elf.exec_stack &&
        mprotect((void *)(built.stack & ~(PAGE - 1)), PAGE,
                 PROT_READ | PROT_WRITE | PROT_EXEC | PROT_GROWSDOWN) != 0)
        sandbox_fail(SANDBOX_NOT_EXECUTABLE, "the stack can't be made executable, as it wants: %s",
                     strerror(errno));
    return built.stack;
}

/* Bounds of the program's text (prot with PROT_EXEC) or data, as the kernel tells them. */
static void bounds(const struct sandbox_program *program, int prot, uint64_t *start, uint64_t *end)
{
    *start = *end = program->base + program->elf.low;
    for (unsigned n = 0; n < program->elf.n_segments; n++) {
        const struct sandbox_segment *segment = &program->elf.segment[n];

        if (segment->prot & prot) {
            *start = program->base + segment->vaddr;
            *end = *start + segment->file_bytes;
        }
    }
}

void sandbox_stack_announce(const struct sandbox_program *program)
{
    struct prctl_mm_map map = {
        .start_stack = built.stack,
        .arg_start = built.arg_start,
        .arg_end = built.arg_end,
        .env_start = built.env_start,
        .env_end = built.env_end,
        .auxv = (void *)built.auxv,
        .auxv_size = (uint32_t)(built.n_auxv * sizeof *built.auxv),
        .exe_fd = UINT32_MAX,
    };
    uint64_t start, end;

    bounds(program, PROT_EXEC, &start, &end);
    map.start_code = start;
    map.end_code = end > start ? end : start + 1;
    bounds(program, PROT_WRITE, &start, &end);
    map.start_data = start;
    map.end_data = end;
    /* brk() begins behind the program, a page apart; libc's own heap of dune-sandbox stays where
     * it is and is never grown again. */
    map.start_brk = map.brk = program->base + program->elf.high + PAGE;
    prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0);
}
