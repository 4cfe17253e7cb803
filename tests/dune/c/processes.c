/* Processes: fork, vfork, spawn, exec. PROGRAM bare|dune CASE, see both.h. PROGRAM show ...: what
 * it was given. */
#include "both.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

extern char **environ;

static int status_of(pid_t pid)
{
    int status = -1;

    CHECK(pid > 0);
    while (waitpid(pid, &status, 0) < 0)
        CHECK(errno == EINTR);
    return status;
}

static void say_status(const char *what, int status)
{
    if (WIFEXITED(status))
        printf("%s: exit %d\n", what, WEXITSTATUS(status));
    else
        printf("%s: signal %d\n", what, WTERMSIG(status));
}

/* ---- fork
 * ----------------------------------------------------------------------------------------- */

static void fork_pipe(void)
{
    double half = 0.5, third = 1.0 / 3;
    char buffer[64];
    int pipes[2];
    pid_t pid;

    CHECK(pipe(pipes) == 0);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        int n = snprintf(buffer, sizeof(buffer), "child %d %.3f", getppid() > 1, half + third);

        CHECK(getpid() == (pid_t)syscall(SYS_gettid));
        CHECK(write(pipes[1], buffer, (size_t)n + 1) == n + 1);
        _exit(41);
    }
    CHECK(read(pipes[0], buffer, sizeof(buffer)) > 0);
    printf("%s, parent %.3f\n", buffer, half + third);
    say_status("fork", status_of(pid));
}

static long shared_value = 1;

static void fork_many(void)
{
    long sum = 0;

    for (int i = 0; i < 50; i++) {
        pid_t pid = fork();

        if (pid == 0) {
            shared_value += i; /* its own copy */
            _exit((int)shared_value);
        }
        sum += WEXITSTATUS(status_of(pid));
    }
    printf("sum %ld, ours %ld\n", sum, shared_value);
}

static int nest(int depth)
{
    pid_t pid;

    if (depth == 0)
        return 5;
    pid = fork();
    if (pid == 0)
        _exit(nest(depth - 1) + 1);
    return WEXITSTATUS(status_of(pid));
}

static void fork_nested(void)
{
    printf("nested %d\n", nest(5));
}

static void *child_thread(void *arg)
{
    *(int *)arg += 3;
    return NULL;
}

static void *fork_from_thread(void *arg)
{
    static __thread int own = 10;
    pid_t pid;

    own += 7;
    pid = fork();
    if (pid == 0) {
        pthread_t thread[3];
        int n = own;

        CHECK(getpid() == (pid_t)syscall(SYS_gettid));
        for (int i = 0; i < 3; i++) {
            CHECK(pthread_create(&thread[i], NULL, child_thread, &n) == 0);
            pthread_join(thread[i], NULL);
        }
        _exit(n);
    }
    *(int *)arg = WEXITSTATUS(status_of(pid));
    return NULL;
}

static void *busy(void *arg)
{
    while (!*(volatile int *)arg)
        free(malloc(100));
    return NULL;
}

static void fork_thread(void)
{
    pthread_t worker, thread;
    int stop = 0, result = 0;

    pthread_create(&worker, NULL, busy, &stop);
    for (int i = 0; i < 5; i++) {
        pthread_create(&thread, NULL, fork_from_thread, &result);
        pthread_join(thread, NULL);
        printf("fork in a thread: %d\n", result);
    }
    stop = 1;
    pthread_join(worker, NULL);
}

static volatile sig_atomic_t caught;

static void catch_signal(int number)
{
    caught += number;
}

static void fork_signals(void)
{
    sigset_t mask, old;
    pid_t pid;

    signal(SIGUSR1, catch_signal);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    sigprocmask(SIG_BLOCK, &mask, &old);
    raise(SIGUSR1); /* pending: not the child's */
    pid = fork();
    if (pid == 0) {
        sigset_t pending;

        sigpending(&pending);
        CHECK(!sigismember(&pending, SIGUSR1));
        sigprocmask(SIG_SETMASK, &old, NULL);
        CHECK(caught == 0);
        raise(SIGUSR1);
        CHECK(caught == SIGUSR1);
        signal(SIGUSR1, SIG_DFL);
        raise(SIGUSR1);
        _exit(1);
    }
    say_status("fork", status_of(pid));
    sigprocmask(SIG_SETMASK, &old, NULL);
    printf("caught %d\n", caught);
}

static void fork_memory(void)
{
    char *shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *private = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pid_t pid;

    strcpy(shared, "parent's");
    strcpy(private, "parent's");
    pid = fork();
    if (pid == 0) {
        strcpy(shared, "child's");
        strcpy(private, "child's");
        munmap(private, 8192);
        private = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(private, 1, 1 << 20);
        _exit(private[4000]);
    }
    say_status("fork", status_of(pid));
    printf("shared %s, private %s\n", shared, private);
}

static char *volatile nowhere = (char *)8;

static void statuses(void)
{
    const int signals[] = {SIGTERM, SIGKILL, SIGSEGV, SIGABRT};
    struct rlimit none = {0, 0};

    setrlimit(RLIMIT_CORE, &none);
    for (int i = 0; i < 4; i++) {
        pid_t pid = fork();

        if (pid == 0) {
            if (signals[i] == SIGSEGV)
                *(volatile int *volatile)nowhere = 1;
            kill(getpid(), signals[i]);
            _exit(1);
        }
        say_status("child", status_of(pid));
    }
}

/* ---- vfork, spawn
 * --------------------------------------------------------------------------------- */

static void vfork_exec(void)
{
    volatile int seen = 1, i;

    for (i = 0; i < 20; i++) {
        pid_t pid = vfork();

        if (pid == 0) {
            seen++; /* the parent's memory */
            if (i % 2)
                _exit(3);
            execl("/bin/false", "false", NULL);
            _exit(127);
        }
        CHECK(WEXITSTATUS(status_of(pid)) == (i % 2 ? 3 : 1));
    }
    printf("vfork, seen %d\n", seen);
}

static void spawn(void)
{
    char *argv[] = {"sh", "-c", "echo to the file; echo $VALUE >&2; kill -USR1 $$; echo alive",
                    NULL};
    char *envp[] = {"VALUE=from the environment", NULL};
    char name[] = "/tmp/dune-spawn-XXXXXX", text[200] = "";
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t defaults;
    int fd = mkstemp(name);
    pid_t pid;

    signal(SIGUSR1, SIG_IGN);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, name, O_WRONLY | O_TRUNC, 0);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    posix_spawnattr_init(&attributes);
    CHECK(posix_spawn(&pid, "/bin/sh", &actions, &attributes, argv, envp) == 0);
    say_status("ignored", status_of(pid));
    CHECK(pread(fd, text, sizeof(text) - 1, 0) > 0);
    printf("%s", text);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGUSR1);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    CHECK(posix_spawn(&pid, "/bin/sh", &actions, &attributes, argv, envp) == 0);
    say_status("default", status_of(pid));
    printf("error %d\n", posix_spawn(&pid, "/no/such/program", NULL, NULL, argv, envp));
    unlink(name);
}

static void *spawn_one(void *arg)
{
    char *argv[] = {"sh", "-c", "exit 6", NULL};
    pid_t pid;

    for (int i = 0; i < 5; i++) {
        CHECK(posix_spawn(&pid, "/bin/sh", NULL, NULL, argv, environ) == 0);
        *(int *)arg += WEXITSTATUS(status_of(pid));
    }
    return NULL;
}

static void spawn_threads(void)
{
    pthread_t thread[4];
    int sum[4] = {0};

    for (int i = 0; i < 4; i++)
        pthread_create(&thread[i], NULL, spawn_one, &sum[i]);
    for (int i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    printf("sum %d\n", sum[0] + sum[1] + sum[2] + sum[3]);
}

static void shells(void)
{
    char line[100] = "";
    FILE *pipe;

    say_status("system", system("exit 3"));
    say_status("system", system("kill -TERM $$"));
    pipe = popen("echo hello; exit 4", "r");
    CHECK(pipe && fgets(line, sizeof(line), pipe));
    printf("%s", line);
    say_status("popen", pclose(pipe));
    fflush(stdout);
    pipe = popen("tr a-z A-Z", "w");
    fputs("to a filter\n", pipe);
    say_status("popen", pclose(pipe));
}

/* ---- exec
 * ------------------------------------------------------------------------------------------ */

static void show(int argc, char **argv)
{
    unsigned long bytes = 0, sum = 0;
    sigset_t mask, pending;

    sigprocmask(SIG_SETMASK, NULL, &mask);
    sigpending(&pending);
    for (int i = 2; i < argc; i++) {
        bytes += strlen(argv[i]);
        for (const char *at = argv[i]; *at; at++)
            sum = sum * 31 + (unsigned char)*at;
    }
    printf("argc %d bytes %lu sum %lx", argc, bytes, sum);
    for (int i = 2; i < argc && i < 6; i++)
        printf(" [%.20s]", argv[i]);
    printf("\nvalue %s, USR1 blocked %d pending %d, USR2 ignored %d, HUP ignored %d\n",
           getenv("DUNE_VALUE"), sigismember(&mask, SIGUSR1), sigismember(&pending, SIGUSR1),
           signal(SIGUSR2, SIG_DFL) == SIG_IGN, signal(SIGHUP, SIG_DFL) == SIG_IGN);
}

static void *exec_show(void *how)
{
    char *argv[] = {"processes", "show", "one", "", "three words here", NULL};
    char *envp[] = {"DUNE_VALUE=kept", NULL};
    sigset_t mask;

    signal(SIGUSR2, SIG_IGN);
    signal(SIGHUP, catch_signal);
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    kill(getpid(), SIGUSR1);
    fflush(NULL);
    if (how)
        syscall(SYS_execveat, open("/proc/self/exe", O_PATH), "", argv, envp, AT_EMPTY_PATH);
    else
        execve("/proc/self/exe", argv, envp);
    CHECK(!"exec came back");
    return NULL;
}

static void exec_main(void)
{
    exec_show(NULL);
}

static void exec_at(void)
{
    exec_show("at");
}

static void exec_thread(void)
{
    pthread_t thread[3];
    int stop = 0;
    sigset_t mask;

    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    pthread_create(&thread[0], NULL, busy, &stop);
    pthread_create(&thread[1], NULL, exec_show, NULL);
    pthread_join(thread[1], NULL);
}

#define LONG 30000

static void exec_long(void)
{
    char **argv = calloc(LONG + 3, sizeof(*argv)), *envp[] = {"DUNE_VALUE=long", NULL};

    argv[0] = "processes";
    argv[1] = "show";
    for (int i = 0; i < LONG; i++) {
        argv[2 + i] = malloc(12);
        snprintf(argv[2 + i], 12, "%d", i * 7);
    }
    fflush(NULL);
    execve("/proc/self/exe", argv, envp);
    CHECK(!"exec came back");
}

static int try_exec(const char *path, char **argv, char **envp)
{
    errno = 0;
    CHECK(syscall(SYS_execve, path, argv, envp) == -1);
    return errno;
}

static void exec_errors(void)
{
    static char *many[900001];
    char *argv[] = {"x", NULL}, name[] = "/tmp/dune-exec-XXXXXX", *odd[] = {"x", (char *)8, NULL};
    int fd = mkstemp(name);

    CHECK(write(fd, "neither ELF nor script\n", 23) == 23);
    printf("missing %d\n", try_exec("/no/such/program", argv, environ));
    printf("directory %d\n", try_exec("/tmp", argv, environ));
    printf("no x %d\n", try_exec(name, argv, environ));
    fchmod(fd, 0755);
    close(fd);
    printf("format %d\n", try_exec(name, argv, environ));
    printf("no path %d\n", try_exec(NULL, argv, environ));
    printf("wild argv %d\n", try_exec("/bin/true", (char **)8, environ));
    printf("wild string %d\n", try_exec("/bin/true", odd, environ));
    for (int i = 0; i < 900000; i++)
        many[i] = "argument";
    printf("too many %d\n", try_exec("/bin/true", many, environ));
    printf("again %d\n", try_exec("/no/such/program", many, environ));
    unlink(name);
    fork_many(); /* all is as before */
}

static void exec_script(void)
{
    char name[] = "/tmp/dune-script-XXXXXX";
    static const char text[] = "#!/bin/sh -e\necho \"script $# $1 $2\"\n";
    int fd = mkstemp(name);
    pid_t pid;

    CHECK(write(fd, text, sizeof(text) - 1) == sizeof(text) - 1);
    fchmod(fd, 0755);
    close(fd);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        execl(name, name, "a", "b c", NULL);
        _exit(127);
    }
    say_status("script", status_of(pid));
    unlink(name);
}

int main(int argc, char **argv)
{
    static const struct both_case cases[] = {
        {"fork-pipe", fork_pipe},
        {"fork-many", fork_many},
        {"fork-nested", fork_nested},
        {"fork-thread", fork_thread},
        {"fork-signals", fork_signals},
        {"fork-memory", fork_memory},
        {"statuses", statuses},
        {"vfork-exec", vfork_exec},
        {"spawn", spawn},
        {"spawn-threads", spawn_threads},
        {"shells", shells},
        {"exec", exec_main},
        {"exec-at", exec_at},
        {"exec-thread", exec_thread},
        {"exec-long", exec_long},
        {"exec-errors", exec_errors},
        {"exec-script", exec_script},
        {NULL, NULL},
    };

    if (argc > 1 && strcmp(argv[1], "show") == 0) {
        show(argc, argv);
        return 0;
    }
    return both_main(argc, argv, cases);
}
