/* Paths and descriptors: the same program bare and under dune-sandbox says the same.
 *
 *   paths open|names|fifo|limit DIR    in a directory that is empty
 *   paths race DIR                     in ring 3 alone: prints what it got hold of
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define RACES 1500

static void make_tree(void)
{
    static const char *const links[][2] = {
        {"f", "l_f"},         {"d", "l_d"},    {"nothere", "dangling"}, {"dangling", "dang2"},
        {"d/new", "dang_d"},  {"loop", "loop"}, {"nothere/", "dang_s"},  {"fifo", "l_fifo"},
        {"/dev/null", "null"}};

    mkdir("d", 0755);
    close(open("f", O_CREAT | O_WRONLY, 0644));
    close(open("d/x", O_CREAT | O_WRONLY, 0644));
    mkfifo("fifo", 0644);
    for (unsigned i = 0; i < COUNT(links); i++) {
        if (symlink(links[i][0], links[i][1]) != 0)
            perror(links[i][1]);
    }
}

static const char *const kinds[] = {
    "",     "f",       "f/",          "f/x",  "d",        "d/",     "d/.",    "d/..",   ".",
    "/",    "l_f",     "l_f/",        "l_d",  "l_d/",     "l_d/x",  "fifo",   "l_fifo", "dangling",
    "dang2", "dang_d", "dang_s",      "loop", "loop/x",   "null",   "absent", "absent/", "absent/x",
    "/dev/null", "/proc/self/cwd/f", "/proc/self/cwd/fresh", "/proc/self/fd/0", "/dev/fd/0",
    "/proc/self/fd/77777"};

static const char *name_of(long error)
{
    return strerrorname_np((int)error);
}

/* One line for what open() gave; away with what it made. */
static void try_open(const char *path, int flags)
{
    long fd = syscall(SYS_openat, AT_FDCWD, path, flags | O_NONBLOCK, 0640);
    struct stat what;

    if (fd < 0) {
        printf("%s %o %s\n", path, flags, name_of(errno));
        return;
    }
    if (fstat((int)fd, &what) != 0)
        perror("fstat");
    printf("%s %o fd %ld mode %o links %lu flags %o %d\n", path, flags, fd, what.st_mode,
           S_ISDIR(what.st_mode) ? 0 : (unsigned long)what.st_nlink,
           fcntl((int)fd, F_GETFL) & ~O_NOFOLLOW, fcntl((int)fd, F_GETFD));
    close((int)fd);
    unlink("nothere");
    unlink("absent");
    unlink("fresh");
    unlink("d/new");
}

static void case_open(void)
{
    static const int modes[] = {O_RDONLY, O_WRONLY, O_RDWR}, bits[] = {
        O_CREAT, O_EXCL, O_NOFOLLOW, O_DIRECTORY, O_PATH, O_TMPFILE & ~O_DIRECTORY, O_CLOEXEC};

    for (unsigned k = 0; k < COUNT(kinds); k++) {
        for (unsigned m = 0; m < COUNT(modes); m++) {
            try_open(kinds[k], modes[m]);
            for (unsigned a = 0; a < COUNT(bits); a++) {
                for (unsigned b = a; b < COUNT(bits); b++)
                    try_open(kinds[k], modes[m] | bits[a] | bits[b]);
            }
        }
    }
}

static void say(const char *call, const char *path, long result)
{
    printf("%s %s %s\n", call, path, result < 0 ? name_of(errno) : "ok");
}

static void case_names(void)
{
    struct stat what;
    char text[64];

    for (unsigned k = 0; k < COUNT(kinds); k++) {
        const char *path = kinds[k];

        say("stat", path, stat(path, &what));
        say("lstat", path, lstat(path, &what));
        say("access", path, access(path, R_OK | W_OK));
        say("readlink", path, readlink(path, text, sizeof(text)));
        if (path[0] == '/' || strstr(path, "..") != NULL || strcmp(path, "null") == 0)
            continue;
        say("chmod", path, chmod(path, 0700));
        say("chown", path, lchown(path, getuid(), getgid()));
        say("truncate", path, truncate(path, 5));
        say("utimensat", path, utimensat(AT_FDCWD, path, NULL, AT_SYMLINK_NOFOLLOW));
        say("mkdir", path, mkdir(path, 0700));
        say("rmdir", path, strncmp(path, "absent", 6) == 0 ? rmdir(path) : 0);
        say("symlink", path, symlink("to", path));
        say("link", path, link(path, "hard"));
        unlink("hard");
        say("rename", path, rename(path, "moved"));
        rename("moved", path);
        say("unlink", path, strcmp(path, "absent") == 0 ? unlink(path) : 0);
    }
}

static atomic_int rung;

static void ring(int number)
{
    (void)number;
    atomic_fetch_add(&rung, 1);
}

static void *open_other_end(void *arg)
{
    (void)arg;
    while (atomic_load(&rung) < 3)
        usleep(1000);
    return (void *)(long)open("fifo", O_WRONLY);
}

/* An open() that waits is interrupted, or goes on, as the handler's SA_RESTART says. */
static void case_fifo(void)
{
    struct sigaction action = {.sa_handler = ring};
    struct itimerval often = {{0, 50000}, {0, 50000}}, never = {{0, 0}, {0, 0}};
    sigset_t alarm;
    pthread_t other;
    void *end;
    int fd;

    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    fd = open("fifo", O_RDONLY);
    printf("without SA_RESTART %s\n", fd < 0 ? name_of(errno) : "ok");
    setitimer(ITIMER_REAL, &never, NULL);
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, NULL);
    atomic_store(&rung, 0);
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &alarm, NULL); /* the thread's mask: the alarms are for this one */
    pthread_create(&other, NULL, open_other_end, NULL);
    pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    fd = open("l_fifo", O_RDONLY);
    setitimer(ITIMER_REAL, &never, NULL);
    pthread_join(other, &end);
    printf("with SA_RESTART %s %s %s\n", fd < 0 ? name_of(errno) : "ok",
           (long)end >= 0 ? "ok" : "no end", atomic_load(&rung) >= 3 ? "after alarms" : "early");
}

static void case_limit(void)
{
    struct rlimit limit;
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "socket"};
    int server = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0), n = 0;

    say("bind", "socket", bind(server, (struct sockaddr *)&address, sizeof(address)));
    say("bind", "socket again", bind(client, (struct sockaddr *)&address, sizeof(address)));
    say("listen", "socket", listen(server, 1));
    say("connect", "socket", connect(client, (struct sockaddr *)&address, sizeof(address)));
    getrlimit(RLIMIT_NOFILE, &limit);
    printf("limit %lu\n", limit.rlim_cur);
    limit.rlim_cur = 40;
    say("setrlimit", "40", setrlimit(RLIMIT_NOFILE, &limit));
    while (open("f", O_RDONLY) >= 0)
        n++;
    printf("%d more, then %s\n", n, name_of(errno));
    say("dup", "", dup(0));
    say("dup2", "39", dup2(0, 39));
    say("dup2", "40", dup2(0, 40));
    say("fcntl", "", fcntl(0, F_DUPFD, 0));
    say("accept", "", accept(server, NULL, NULL));
    say("stat", "f", access("f", F_OK));
    say("close_range", "", (long)syscall(SYS_close_range, 3, ~0u, 0));
    say("dup", "", dup(0));
    say("dup2", "5000000", dup2(0, 5000000));
    say("close", "5000000", close(5000000));
}

/* ---- in ring 3, against the shim ------------------------------------------------------------- */

static atomic_int stop;

static void *flip(void *arg)
{
    (void)arg;
    for (unsigned i = 0; !atomic_load(&stop); i++) {
        static const char *const targets[] = {"f", "/proc/self/mem", "/dev/kvm"};

        unlink("next");
        if (symlink(targets[i % 3], "next") == 0)
            rename("next", "flips");
    }
    return NULL;
}

static void *put_over(void *arg)
{
    int null = *(int *)arg;

    while (!atomic_load(&stop)) {
        for (int fd = null + 1; fd < null + 4; fd++) {
            dup2(null, fd);
            close(fd);
        }
    }
    return NULL;
}

/* What a descriptor turned out to be: 'f' the file, 'n' /dev/null or a directory (another thread's
 * lookup has the number since), '-' gone, '!' anything else. */
static char kind_of(int fd)
{
    struct stat what;

    if (fstat(fd, &what) != 0)
        return '-';
    if ((S_ISCHR(what.st_mode) && what.st_rdev == 0x103) || S_ISDIR(what.st_mode))
        return 'n';
    return S_ISREG(what.st_mode) && what.st_size == 0 && (what.st_mode & 0777) == 0644 ? 'f' : '!';
}

static void case_race(void)
{
    unsigned found[256] = {0};
    int null = open("/dev/null", O_RDWR);
    pthread_t flipper, putter;

    symlink("f", "flips");
    pthread_create(&flipper, NULL, flip, NULL);
    pthread_create(&putter, NULL, put_over, &null);
    for (int i = 0; i < RACES || (i < 20 * RACES && (!found['f'] || !found['e'])); i++) {
        int fd = open("flips", i % 3 == 0 ? O_RDWR : i % 3 == 1 ? O_RDONLY : O_PATH);

        found[(unsigned char)(fd < 0 ? 'e' : kind_of(fd))]++;
        if (fd >= 0)
            close(fd);
    }
    atomic_store(&stop, 1);
    pthread_join(flipper, NULL);
    pthread_join(putter, NULL);
    printf("file %u, refused %u, overwritten %u, other %u\n", found['f'], found['e'],
           found['n'] + found['-'], found['!']);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } cases[] = {{"open", case_open},   {"names", case_names}, {"fifo", case_fifo},
                 {"limit", case_limit}, {"race", case_race}};

    umask(022);
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    if (argc != 3 || chdir(argv[2]) != 0)
        return 2;
    make_tree();
    for (unsigned i = 0; i < COUNT(cases); i++) {
        if (strcmp(argv[1], cases[i].name) == 0) {
            cases[i].run();
            return 0;
        }
    }
    return 2;
}
