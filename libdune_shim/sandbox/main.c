/* dune-sandbox POLICY -- PROGRAM ARGS: see --help. */
#include "sandbox/sandbox.h"

#include "dune.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define POLICY_BYTES_MAX (1 << 20)

static const char usage[] =
    "dune-sandbox [OPTIONS] POLICY -- PROGRAM [ARGS]\n"
    "Runs an unmodified program (static or dynamic ELF for x86-64, or a script) as a KVM guest in\n"
    "ring 3: it sees the machine and the files as usual, but each of its system calls is checked.\n"
    "\n"
    "  --dry-run   say what would be mapped where, and the policy as understood; run nothing\n"
    "  --no-pkey   no protection key on the vault, even where the CPU has them (for tests)\n"
    "  --help      this\n"
    "\n"
    "Exit status: PROGRAM's own, and it dies of the signal that PROGRAM dies of. 125: "
    "dune-sandbox\n"
    "itself fails (no fit /dev/kvm, a wrong policy). 126: PROGRAM can't be run. 127: not found.\n"
    "\n";

struct options {
    bool dry_run;
    const char *policy;  /* a file or a built-in name */
    const char *inherit; /* or: the descriptor that holds the parent's */
    uint32_t dune_flags;
    char *program, **argv; /* argv[0] included */
};

static struct sandbox_policy policy;
static struct sandbox_program program;

void sandbox_fail(int status, const char *format, ...)
{
    va_list list;

    fputs("dune-sandbox: ", stderr);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(status);
}

/* ---- command line --------------------------------------------------------------------------- */

static void parse_options(int argc, char **argv, struct options *options)
{
    int at = 1;

    for (; at < argc && strncmp(argv[at], "--", 2) == 0 && argv[at][2]; at++) {
        if (strcmp(argv[at], "--help") == 0) {
            fputs(usage, stdout);
            fputs(sandbox_policy_help, stdout);
            exit(0);
        } else if (strcmp(argv[at], "--dry-run") == 0) {
            options->dry_run = true;
        } else if (strcmp(argv[at], "--no-pkey") == 0) {
            options->dune_flags |= DUNE_NO_PKEY;
        } else if (strcmp(argv[at], "--inherit") == 0 && at + 1 < argc) {
            options->inherit = argv[++at];
        } else {
            sandbox_fail(SANDBOX_FAILED, "%s is no option of it (see dune-sandbox --help)",
                         argv[at]);
        }
    }
    if (!options->inherit && at < argc && strcmp(argv[at], "--") != 0)
        options->policy = argv[at++];
    if (at == argc && options->dry_run && options->policy)
        return;
    if ((!options->policy && !options->inherit) || at == argc || strcmp(argv[at], "--") != 0)
        sandbox_fail(SANDBOX_FAILED,
                     "use it as: dune-sandbox POLICY -- PROGRAM ARGS (see dune-sandbox --help)");
    if (++at == argc)
        sandbox_fail(SANDBOX_FAILED, "no program is given behind the --");
    options->program = argv[at];
    options->argv = argv + at + (options->inherit != NULL);
}

/* ---- policy --------------------------------------------------------------------------------- */

static char *read_policy(const char *path, size_t *bytes)
{
    char *text = malloc(POLICY_BYTES_MAX + 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got;

    if (fd < 0 && errno == ENOENT && !strchr(path, '/'))
        sandbox_fail(SANDBOX_FAILED, "there is no policy %s: give a file, `strict` or `permissive`",
                     path);
    if (fd < 0 || !text)
        sandbox_fail(SANDBOX_FAILED, "the policy %s can't be read: %s", path, strerror(errno));
    for (*bytes = 0; (got = read(fd, text + *bytes, POLICY_BYTES_MAX + 1 - *bytes)) > 0;)
        *bytes += (size_t)got;
    if (got < 0)
        sandbox_fail(SANDBOX_FAILED, "the policy %s can't be read: %s", path, strerror(errno));
    if (*bytes > POLICY_BYTES_MAX)
        sandbox_fail(SANDBOX_FAILED, "the policy %s is larger than 1 MiB", path);
    close(fd);
    return text;
}

static void load_policy(const char *name)
{
    const char *builtin = sandbox_policy_builtin(name);
    size_t bytes = builtin ? strlen(builtin) : 0;
    char error[DUNE_POLICY_PATH + 256];
    char *text = builtin ? NULL : read_policy(name, &bytes);

    if (!sandbox_policy_parse(builtin ? builtin : text, bytes, name, builtin != NULL, &policy,
                              error, sizeof error))
        sandbox_fail(SANDBOX_FAILED, "%s", error);
    free(text);
}

/* The policy of the parent, which ran this program on behalf of one in its ring 3. The descriptor
 * is the parent's shim's: ring 3 can't have made it, or its exec would not have come here. That it
 * is a sealed memfd of the right size is checked against mistakes, not against attacks. */
static void inherit_policy(const char *word)
{
    const int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
    char *end;
    long fd = strtol(word, &end, 10);
    struct stat is;

    if (*end || end == word || fd < 0 || fd > INT32_MAX ||
        (fcntl((int)fd, F_GET_SEALS) & seals) != seals || fstat((int)fd, &is) != 0 ||
        is.st_size != sizeof policy.policy ||
        pread((int)fd, &policy.policy, sizeof policy.policy, 0) != sizeof policy.policy ||
        policy.policy.n_rules > DUNE_POLICY_RULES)
        sandbox_fail(SANDBOX_FAILED,
                     "--inherit %s: this is no policy that was handed down; the "
                     "option is for dune-sandbox's own use",
                     word);
    close((int)fd);
    for (uint32_t n = 0; n < policy.policy.n_rules; n++)
        policy.policy.rule[n].path[sizeof policy.policy.rule[n].path - 1] = '\0';
    policy.exec_outside = policy.policy.sandbox[0] == '\0';
}

/* The log's descriptor, and what ring 3's exec leads to. */
static void complete_policy(bool inherited)
{
    struct dune_policy *made = &policy.policy;

    memcpy(made->self, program.path, sizeof made->self);
    if (inherited)
        return;
    /* This name can't be given to another file, as dune-sandbox's own can by who may write there:
     * it leads to what this process runs, which nobody can write while it runs. */
    if (!policy.exec_outside)
        strcpy(made->sandbox, "/proc/self/exe");
    if (policy.log_none)
        return;
    if (policy.log_file[0]) {
        int fd = open(policy.log_file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0644);

        if (fd < 0)
            sandbox_fail(SANDBOX_FAILED, "the log %s can't be opened: %s", policy.log_file,
                         strerror(errno));
        made->log_fd = (uint32_t)fd;
    } else {
        int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);

        made->log_fd = fd < 0 ? SANDBOX_LOG_NONE : (uint32_t)fd;
    }
}

/* ---- running -------------------------------------------------------------------------------- */

/* The limit counts all address space, so what the vault reserves must come on top. Only the soft
 * limit: ring 3 can't raise it (the shim sees to that), and a child's dune-sandbox needs room to
 * begin with (make_room). */
static void limit_memory(void)
{
    uint64_t pages = 0, most;
    struct rlimit limit;
    FILE *file;

    if (!policy.policy.memory_bytes)
        return;
    file = fopen("/proc/self/statm", "re");
    if (!file || fscanf(file, "%lu", &pages) != 1)
        sandbox_fail(SANDBOX_FAILED, "/proc/self/statm can't be read: %s", strerror(errno));
    fclose(file);
    getrlimit(RLIMIT_AS, &limit);
    most = pages * 4096 + policy.policy.memory_bytes;
    limit.rlim_cur = most < limit.rlim_max ? most : limit.rlim_max;
    if (setrlimit(RLIMIT_AS, &limit) != 0)
        sandbox_fail(SANDBOX_FAILED, "memory can't be limited: %s", strerror(errno));
}

static void make_room(void)
{
    struct rlimit limit;

    if (policy.policy.memory_bytes && getrlimit(RLIMIT_AS, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_AS, &limit);
    }
}

/* What execve() resets, and this process's own libc has set. */
static void forget_libc(void)
{
    syscall(SYS_set_tid_address, NULL);
    syscall(SYS_set_robust_list, NULL, 24);
    prctl(PR_SET_NAME, program.name);
    if (!policy.exec_outside && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        sandbox_fail(SANDBOX_FAILED, "PR_SET_NO_NEW_PRIVS: %s", strerror(errno));
}

static void say_plan(void)
{
    const struct sandbox_elf *elf = &program.elf;

    sandbox_policy_print(&policy, stdout);
    if (!program.path[0])
        return;
    printf("program %s\n", program.path);
    for (int n = 0; n < program.argc; n++)
        printf("argument %s\n", program.argv[n]);
    printf("interpreter %s\n", elf->interpreter[0] ? elf->interpreter : "none");
    printf("stack %s\n", elf->exec_stack ? "executable" : "data");
    for (unsigned n = 0; n < elf->n_segments; n++)
        printf("segment 0x%lx %lu bytes, %lu from 0x%lx, %s%s%s\n", elf->segment[n].vaddr,
               elf->segment[n].mem_bytes, elf->segment[n].file_bytes, elf->segment[n].offset,
               elf->segment[n].prot & PROT_READ ? "r" : "-",
               elf->segment[n].prot & PROT_WRITE ? "w" : "-",
               elf->segment[n].prot & PROT_EXEC ? "x" : "-");
    printf("base 0x%lx\n", program.base);
    printf("entry 0x%lx\n", program.base + elf->entry);
    printf("phdr 0x%lx\n", elf->phdr ? program.base + elf->phdr : 0);
}

/* Point of no return: from here on the program's memory is where it belongs. */
static void run(const struct options *options)
{
    struct dune_config config = {
        .flags = DUNE_SEALED | options->dune_flags,
        .policy = &policy.policy,
    };
    uint64_t stack, entry = program.base + program.elf.entry;
    int error = dune_init(&config);

    if (error)
        sandbox_fail(SANDBOX_FAILED, "%s", dune_error());
    if (policy.policy.log_fd != SANDBOX_LOG_NONE)
        close((int)policy.policy.log_fd); /* the shim has a copy of its own */
    if (program.interpreter_fd >= 0)
        entry = program.interpreter_base + program.interpreter.entry;
    limit_memory();
    stack = sandbox_stack_build(&program, environ);
    forget_libc();
    fflush(NULL);
    sandbox_stack_announce(&program);
    error = dune_enter_user();
    if (error)
        sandbox_fail(SANDBOX_FAILED, "%s", dune_error());
    sandbox_start(stack, entry);
}

int main(int argc, char **argv)
{
    struct options options = {0};

    parse_options(argc, argv, &options);
    if (options.inherit) {
        inherit_policy(options.inherit);
        make_room();
    } else {
        load_policy(options.policy);
    }
    if (options.program) {
        sandbox_program_open(&program, &policy.policy, options.program, options.argv,
                             !options.inherit, options.inherit != NULL);
        sandbox_program_map(&program);
    }
    if (options.dry_run) {
        say_plan();
        return 0;
    }
    complete_policy(options.inherit != NULL);
    run(&options);
}
