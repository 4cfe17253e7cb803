/* Finds what is to run: the program itself, or the interpreter that a script names. */
#include "sandbox/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SCRIPT_HEAD  256 /* as much of a file's beginning as the kernel looks at */
#define SCRIPT_DEPTH 5   /* interpreters that are scripts themselves, one more than it follows */

/* The cause of a failed open or access, as an exit status. */
static int status_of(int error)
{
    return error == ENOENT || error == ENOTDIR ? SANDBOX_NOT_FOUND : SANDBOX_NOT_EXECUTABLE;
}

static bool may_execute(int fd)
{
    struct statvfs mount;
    char link[64];

    if (fstatvfs(fd, &mount) == 0 && mount.f_flag & ST_NOEXEC) {
        errno = EACCES;
        return false;
    }
    if (syscall(SYS_faccessat2, fd, "", X_OK, AT_EMPTY_PATH | AT_EACCESS) == 0)
        return true;
    if (errno != ENOSYS)
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return access(link, X_OK) == 0;
}

/* Whether the policy lets what is in a file, or the sandboxed program, decide that path is run. */
static void check_policy(struct dune_policy *policy, const char *path, const char *as,
                         uint32_t one_of)
{
    if (one_of && !(sandbox_policy_access(policy, path) & one_of))
        sandbox_fail(SANDBOX_NOT_EXECUTABLE, "%s%s: the policy doesn't allow it", path, as);
    if (!one_of && !sandbox_policy_grant(policy, path, DUNE_MAY_READ | DUNE_MAY_EXEC))
        sandbox_fail(SANDBOX_FAILED, "the policy has no room for a rule for %s", path);
}

/* Opens a file that is to be mapped and executed; its canonical path to real[]. The policy must
 * grant one_of (DUNE_MAY_*); 0: it is made to. Nothing but an ordinary file is ever opened. */
static int open_executable(const char *path, const char *as, struct dune_policy *policy,
                           uint32_t one_of, char real[DUNE_POLICY_PATH])
{
    struct stat is;
    char link[64];
    ssize_t length;
    int place, fd;

    place = open(path, O_PATH | O_CLOEXEC);
    if (place < 0 || fstat(place, &is) != 0)
        sandbox_fail(status_of(errno), "%s%s: %s", path, as, strerror(errno));
    if (!S_ISREG(is.st_mode))
        sandbox_fail(SANDBOX_NOT_EXECUTABLE, "%s%s is %s", path, as,
                     S_ISDIR(is.st_mode) ? "a directory" : "no ordinary file");
    snprintf(link, sizeof link, "/proc/self/fd/%d", place);
    length = readlink(link, real, DUNE_POLICY_PATH);
    if (length <= 0 || length >= DUNE_POLICY_PATH)
        sandbox_fail(SANDBOX_FAILED, "%s: its path can't be told (is /proc mounted?)", path);
    real[length] = '\0';
    check_policy(policy, real, as, one_of);
    fd = open(link, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        sandbox_fail(SANDBOX_NOT_EXECUTABLE, "%s%s can't be read: %s", path, as, strerror(errno));
    if (!may_execute(fd))
        sandbox_fail(SANDBOX_NOT_EXECUTABLE, "%s%s may not be executed: %s (chmod +x?)", path, as,
                     strerror(errno));
    close(place);
    return fd;
}

static char *search_path(char *name)
{
    const char *path = getenv("PATH"), *end;
    bool forbidden = false;
    char *made;

    if (strchr(name, '/') || !name[0])
        return name;
    for (path = path ? path : "/usr/local/bin:/usr/bin:/bin";; path = end + 1) {
        struct stat is;

        end = path + strcspn(path, ":");
        if (asprintf(&made, "%.*s%s%s", (int)(end - path), path, end == path ? "" : "/", name) < 0)
            sandbox_fail(SANDBOX_FAILED, "there is no memory");
        if (stat(made, &is) == 0 && S_ISREG(is.st_mode)) {
            if (access(made, X_OK) == 0)
                return made;
            forbidden = true;
        }
        free(made);
        if (!*end)
            break;
    }
    sandbox_fail(forbidden ? SANDBOX_NOT_EXECUTABLE : SANDBOX_NOT_FOUND, "%s: %s", name,
                 forbidden ? "in PATH, but not executable" : "not found in PATH");
}

/* The first line of a script: 1: *interpreter and *argument (or NULL) point into head. 0: this is
 * no script. -1: a script without a usable first line. */
static int parse_script(char head[SCRIPT_HEAD + 1], ssize_t bytes, char **interpreter,
                        char **argument)
{
    char *end, *rest;

    if (bytes < 2 || head[0] != '#' || head[1] != '!')
        return 0;
    head[bytes] = '\0';
    end = head + 2 + strcspn(head + 2, "\n");
    *interpreter = head + 2 + strspn(head + 2, " \t");
    rest = *interpreter + strcspn(*interpreter, " \t\n");
    /* Without a line's end the name may be cut off. */
    if (rest == *interpreter || (*rest == '\0' && bytes == SCRIPT_HEAD))
        return -1;
    *end = '\0';
    while (end > head && (end[-1] == ' ' || end[-1] == '\t'))
        *--end = '\0';
    *argument = rest + strspn(rest, " \t");
    if (rest >= end || !**argument)
        *argument = NULL;
    *rest = '\0';
    return 1;
}

/* argv of a script becomes: interpreter, its argument, the script, and the script's own. */
static void insert_arguments(struct sandbox_program *program, const char *interpreter,
                             const char *argument, char *script)
{
    int more = argument ? 2 : 1, kept = program->argc > 0 ? program->argc - 1 : 0, n = 0;
    char **made = calloc((size_t)(kept + more + 2), sizeof *made);

    if (!made)
        sandbox_fail(SANDBOX_FAILED, "there is no memory");
    made[n++] = strdup(interpreter);
    if (argument)
        made[n++] = strdup(argument);
    made[n++] = script;
    for (int from = 1; from <= kept; from++)
        made[n++] = program->argv[from];
    program->argv = made;
    program->argc = n;
}

static void open_interpreter(struct sandbox_program *program, struct dune_policy *policy)
{
    char real[DUNE_POLICY_PATH];
    const char *wrong;

    program->interpreter_fd = -1;
    if (!program->elf.interpreter[0])
        return;
    program->interpreter_fd = open_executable(program->elf.interpreter, " (the dynamic loader)",
                                              policy, DUNE_MAY_READ | DUNE_MAY_EXEC, real);
    wrong = sandbox_elf_read(program->interpreter_fd, &program->interpreter);
    if (wrong)
        sandbox_fail(SANDBOX_NOT_EXECUTABLE, "%s can't be the dynamic loader: %s", real, wrong);
}

/* Opens path. True: it is a script, and *next is its interpreter's path. */
static bool open_step(struct sandbox_program *program, struct dune_policy *policy, char *path,
                      uint32_t needed, char **next)
{
    char head[SCRIPT_HEAD + 1], *interpreter, *argument;
    int script;

    program->fd = open_executable(path, "", policy, needed, program->path);
    script = parse_script(head, pread(program->fd, head, SCRIPT_HEAD, 0), &interpreter, &argument);
    if (script < 0)
        sandbox_fail(SANDBOX_NOT_EXECUTABLE, "%s: its first line names no interpreter", path);
    if (!script)
        return false;
    insert_arguments(program, interpreter, argument, path);
    *next = program->argv[0];
    close(program->fd);
    return true;
}

void sandbox_program_open(struct sandbox_program *program, struct dune_policy *policy, char *path,
                          char **argv, bool search, bool inherited)
{
    uint32_t needed = inherited ? DUNE_MAY_EXEC : 0;
    const char *wrong;
    int depth = 0;

    memset(program, 0, sizeof *program);
    program->argv = argv;
    while (argv[program->argc])
        program->argc++;
    if (search)
        path = search_path(path);
    program->exec_path = path;
    program->name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    while (open_step(program, policy, path, needed, &path)) {
        if (++depth == SCRIPT_DEPTH)
            sandbox_fail(SANDBOX_NOT_EXECUTABLE, "%s: too many scripts run by scripts", path);
        needed = inherited ? DUNE_MAY_EXEC : DUNE_MAY_READ | DUNE_MAY_EXEC;
    }
    wrong = sandbox_elf_read(program->fd, &program->elf);
    if (wrong)
        sandbox_fail(SANDBOX_NOT_EXECUTABLE, "%s can't be run: %s", program->path, wrong);
    open_interpreter(program, policy);
}

void sandbox_program_map(struct sandbox_program *program)
{
    const char *wrong;

    wrong = sandbox_elf_map(program->fd, &program->elf, SANDBOX_PLACE_PROGRAM, &program->base);
    if (wrong)
        sandbox_fail(SANDBOX_NOT_EXECUTABLE, "%s can't be mapped: %s", program->path, wrong);
    close(program->fd);
    if (program->interpreter_fd < 0)
        return;
    wrong = sandbox_elf_map(program->interpreter_fd, &program->interpreter, SANDBOX_PLACE_ANYWHERE,
                            &program->interpreter_base);
    if (wrong)
        sandbox_fail(SANDBOX_NOT_EXECUTABLE, "%s can't be mapped: %s", program->elf.interpreter,
                     wrong);
    close(program->interpreter_fd);
}
