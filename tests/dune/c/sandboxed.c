/* What test_sandbox.py has done by an ordinary program: `sandboxed DEED ARGS`. Prints what came of
 * it; an errno by its name. It doesn't use libdune. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int tell(const char *what, long result)
{
    printf("%s %s\n", what, result < 0 ? strerrorname_np(errno) : "ok");
    return 0;
}

static int try_open(const char *path, const char *mode)
{
    int flags = strchr(mode, 'c') ? O_CREAT | O_RDWR : strchr(mode, 'w') ? O_WRONLY : O_RDONLY;
    int fd = open(path, flags, 0600);

    return tell("open", fd);
}

static int try_files(const char *directory)
{
    char a[256], b[256];
    struct stat is;

    snprintf(a, sizeof a, "%s/a", directory);
    snprintf(b, sizeof b, "%s/b", directory);
    tell("stat", stat(directory, &is));
    tell("create", open(a, O_CREAT | O_WRONLY, 0600));
    tell("mkdir", mkdir(b, 0700));
    tell("rename", rename(a, b));
    tell("symlink", symlink("/", b));
    tell("link", link(a, b));
    tell("unlink", unlink(a));
    tell("rmdir", rmdir(b));
    tell("truncate", truncate(a, 0));
    tell("chmod", chmod(directory, 0755));
    return tell("chdir", chdir(directory));
}

/* A file that may be read, and one that may not, get names where all is allowed. */
static int try_names(const char *secret, const char *directory)
{
    char to[4096];
    int fd = open(secret, O_PATH), place = open(directory, O_PATH | O_DIRECTORY);

    tell("open O_PATH", fd);
    snprintf(to, sizeof to, "%s/link", directory);
    tell("link", link(secret, to));
    snprintf(to, sizeof to, "%s/renamed", directory);
    tell("rename", rename(secret, to));
    tell("linkat by descriptor", linkat(fd, "", place, "linked", AT_EMPTY_PATH));
    snprintf(to, sizeof to, "/proc/self/fd/%d", fd);
    tell("open by descriptor", open(to, O_RDONLY));
    tell("openat upwards", openat(place, "../secret", O_RDONLY));
    snprintf(to, sizeof to, "%s/symlink", directory);
    tell("symlink", symlink(secret, to));
    tell("open of it", open(to, O_RDONLY));
    return tell("truncate", truncate(secret, 0));
}

static int try_network(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
    int pair[2], fd = socket(AF_INET, SOCK_STREAM, 0);

    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    tell("socket", fd);
    tell("connect", connect(fd, (struct sockaddr *)&to, sizeof to));
    tell("datagram", socket(AF_INET6, SOCK_DGRAM, 0));
    tell("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
    tell("packet", socket(AF_PACKET, SOCK_RAW, 0));
    return tell("pair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
}

static int try_fork(void)
{
    pid_t child = fork();
    int status = 0;

    if (child == 0)
        _exit(9);
    if (child > 0)
        waitpid(child, &status, 0);
    tell("fork", child);
    child = vfork();
    if (child == 0)
        _exit(9);
    tell("vfork", child);
    return tell("posix_spawn", (errno = posix_spawn(&child, "/bin/true", NULL, NULL,
                                                    (char *[]){"true", NULL}, environ))
                                   ? -1
                                   : 0);
}

static void *nothing(void *unused)
{
    return unused;
}

static int try_thread(void)
{
    pthread_t thread;

    errno = pthread_create(&thread, NULL, nothing, NULL);
    return tell("thread", errno ? -1 : pthread_join(thread, NULL));
}

static int try_exec(char **argv)
{
    execv(argv[0], argv);
    return tell("exec", -1);
}

static int try_memory(void)
{
    struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    uint64_t got = 0;

    tell("raise the limit", setrlimit(RLIMIT_AS, &limit));
    while (mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
               MAP_FAILED &&
           got < 4096)
        got++;
    printf("%llu\n", (unsigned long long)got);
    return 0;
}

static int try_signal(const char *pid)
{
    tell("kill another", kill(atoi(pid), 0));
    return tell("kill itself", kill(getpid(), 0));
}

static int try_ipc(void)
{
    return tell("shmget", shmget(IPC_PRIVATE, 4096, 0600 | IPC_CREAT));
}

static int try_admin(void)
{
    tell("chroot", chroot("/tmp"));
    tell("sethostname", sethostname("x", 1));
    return tell("settime", clock_settime(CLOCK_REALTIME, &(struct timespec){1, 0}));
}

/* Large output, by pieces of odd sizes. */
static int write_much(const char *bytes)
{
    long left = atol(bytes), piece = 1;
    char *data = malloc(1 << 20);

    memset(data, 'x', 1 << 20);
    while (left > 0) {
        ssize_t done = write(1, data, (size_t)(piece < left ? piece : left));

        if (done < 0)
            return 1;
        left -= done;
        piece = piece * 3 % (1 << 20) + 1;
    }
    return 0;
}

/* As deep as the stack's limit allows and less than what is left of it after `bytes`. */
static uint64_t deep(uint64_t left)
{
    volatile char frame[4000];

    frame[0] = (char)left;
    return left < sizeof frame ? (uint64_t)frame[0]
                               : deep(left - sizeof frame) + (uint64_t)frame[0];
}

static int show(int argc, char **argv)
{
    char name[32], path[4096] = "";

    for (int n = 0; n < argc; n++)
        printf("argv %s\n", argv[n]);
    for (char **at = environ; *at; at++)
        printf("env %s\n", *at);
    prctl(PR_GET_NAME, name);
    printf("name %s\n", name);
    if (readlink("/proc/self/exe", path, sizeof path - 1) > 0)
        printf("exe %s\n", path);
    printf("execfn %s\n", (char *)getauxval(AT_EXECFN));
    printf("descriptors %ld\n", sysconf(_SC_OPEN_MAX));
    return 0;
}

int main(int argc, char **argv)
{
    const char *deed = argc > 1 ? argv[1] : "", *with = argc > 2 ? argv[2] : "";

    setvbuf(stdout, NULL, _IONBF, 0);
    if (!strcmp(deed, "exit"))
        return atoi(with);
    if (!strcmp(deed, "signal"))
        return raise(atoi(with));
    if (!strcmp(deed, "fault"))
        return *(volatile int *)atol(with);
    if (!strcmp(deed, "open"))
        return try_open(with, argc > 3 ? argv[3] : "r");
    if (!strcmp(deed, "files"))
        return try_files(with);
    if (!strcmp(deed, "names"))
        return try_names(with, argv[3]);
    if (!strcmp(deed, "network"))
        return try_network();
    if (!strcmp(deed, "fork"))
        return try_fork();
    if (!strcmp(deed, "thread"))
        return try_thread();
    if (!strcmp(deed, "exec"))
        return try_exec(argv + 2);
    if (!strcmp(deed, "memory"))
        return try_memory();
    if (!strcmp(deed, "kill"))
        return try_signal(with);
    if (!strcmp(deed, "ipc"))
        return try_ipc();
    if (!strcmp(deed, "admin"))
        return try_admin();
    if (!strcmp(deed, "much"))
        return write_much(with);
    if (!strcmp(deed, "deep"))
        return deep(strtoull(with, NULL, 10)) == 1;
    return show(argc, argv);
}
