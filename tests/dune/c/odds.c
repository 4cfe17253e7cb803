/* arch_prctl, prctl, ioctl, limits. PROGRAM bare|dune CASE, see both.h. */
#include "both.h"

#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>

/* As Linux answers: the result, or minus errno. */
static long call(long result)
{
    return result == -1 ? -errno : result;
}

static uint64_t read_gs(void)
{
    uint64_t value;

    __asm__ volatile("mov %%gs:0, %0" : "=r"(value));
    return value;
}

static void bases(void)
{
    uint64_t words[2] = {0x1122334455667788, 7}, fs = 0, gs = 1;

    CHECK(syscall(SYS_arch_prctl, ARCH_GET_FS, &fs) == 0 && fs == *(uint64_t *)pthread_self());
    CHECK(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs) == 0 && gs == 0);
    CHECK(syscall(SYS_arch_prctl, ARCH_SET_GS, words) == 0);
    sched_yield();
    printf("gs:0 %lx\n", read_gs());
    CHECK(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs) == 0 && gs == (uint64_t)words);
    CHECK(syscall(SYS_arch_prctl, ARCH_SET_FS, fs) == 0);
    printf("beyond the end %ld\n", call(syscall(SYS_arch_prctl, ARCH_SET_GS, 1ul << 63)));
    printf("to nowhere %ld\n", call(syscall(SYS_arch_prctl, ARCH_GET_FS, 8)));
    printf("unknown %ld\n", call(syscall(SYS_arch_prctl, 0x9999, 0)));
    printf("AMX %d\n", syscall(SYS_arch_prctl, 0x1023, 18) == 0);
}

static void *bases_of_thread(void *arg)
{
    uint64_t gs;

    CHECK(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs) == 0);
    return (void *)(long)(gs == (uint64_t)arg);
}

static void bases_threads(void)
{
    uint64_t word = 5;
    pthread_t thread;
    void *same;

    CHECK(syscall(SYS_arch_prctl, ARCH_SET_GS, &word) == 0);
    pthread_create(&thread, NULL, bases_of_thread, &word);
    pthread_join(thread, &same);
    printf("a thread has its parent's GS base: %ld\n", (long)same);
    if (fork() == 0)
        _exit((int)read_gs());
    wait((int *)&word);
    printf("and a child: %d\n", WEXITSTATUS((int)word));
}

static void options(void)
{
    char name[17] = "", auxv[512];
    int number = -1;
    void *page;

    CHECK(prctl(PR_SET_NAME, "fifteen letters, more") == 0 && prctl(PR_GET_NAME, name) == 0);
    printf("name %s\n", name);
    CHECK(prctl(PR_SET_PDEATHSIG, 10) == 0 && prctl(PR_GET_PDEATHSIG, &number) == 0);
    printf("death signal %d\n", number);
    printf("dumpable %d, then %d\n", prctl(PR_GET_DUMPABLE), prctl(PR_SET_DUMPABLE, 0));
    printf("dumpable %d\n", prctl(PR_GET_DUMPABLE));
    prctl(PR_SET_DUMPABLE, 1);
    printf("subreaper %d", prctl(PR_SET_CHILD_SUBREAPER, 1));
    prctl(PR_GET_CHILD_SUBREAPER, &number);
    printf(" %d\n", number);
    printf("slack %d", prctl(PR_SET_TIMERSLACK, 70000));
    printf(" %d\n", prctl(PR_GET_TIMERSLACK));
    printf("capability 0: %d\n", prctl(PR_CAPBSET_READ, 0));
    printf("no new privileges %d %d\n", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
           prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    printf("huge pages off %d %d\n", prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0),
           prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("named range %d\n", prctl(PR_SET_VMA, 0, page, 4096, "ours") == 0 || errno == EINVAL);
    printf("auxv %d\n", prctl(0x41555856, auxv, sizeof(auxv), 0, 0) > 0 || errno == EINVAL);
    printf("to nowhere %ld\n", call(prctl(PR_GET_PDEATHSIG, 8)));
    printf("unknown %ld\n", call(prctl(12345)));
}

/* What would reach the host side: refused in ring 3, each with EINVAL. */
static void closed(void)
{
    printf("seccomp %ld\n", call(prctl(PR_SET_SECCOMP, 2, NULL)));
    printf("dispatch %ld\n", call(prctl(59, 1, 0, 1, 0)));
    printf("memory map %ld\n", call(prctl(PR_SET_MM, PR_SET_MM_BRK, 0, 0, 0)));
    printf("time stamp %ld\n", call(prctl(PR_SET_TSC, PR_TSC_SIGSEGV)));
    printf("tracer %ld\n", call(prctl(PR_SET_PTRACER, -1)));
    printf("write xor execute %ld\n", call(prctl(65, 1, 0, 0, 0)));
    printf("unshare descriptors %ld\n", call(unshare(CLONE_FILES)));
    printf("namespace %ld\n", call(unshare(CLONE_NEWUSER)));
    printf("input %ld\n", call(ioctl(0, TIOCSTI, "x")));
}

static void terminal(void)
{
    struct winsize size = {.ws_row = 33, .ws_col = 44}, got;
    int master = posix_openpt(O_RDWR | O_NOCTTY), slave, number = 0;
    struct termios mode;
    char text[16] = "";

    CHECK(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    CHECK(slave >= 0 && isatty(slave) && isatty(master) && !isatty(open("/dev/null", O_RDWR)));
    CHECK(ioctl(master, TIOCSWINSZ, &size) == 0 && ioctl(slave, TIOCGWINSZ, &got) == 0);
    printf("size %d %d\n", got.ws_row, got.ws_col);
    CHECK(tcgetattr(slave, &mode) == 0);
    printf("echo %d canonical %d\n", !!(mode.c_lflag & ECHO), !!(mode.c_lflag & ICANON));
    cfmakeraw(&mode);
    CHECK(tcsetattr(slave, TCSANOW, &mode) == 0);
    CHECK(write(master, "hello", 5) == 5 &&
          poll(&(struct pollfd){.fd = slave, .events = POLLIN}, 1, 2000) == 1 &&
          ioctl(slave, FIONREAD, &number) == 0);
    CHECK(read(slave, text, sizeof(text)) == 5);
    printf("%d waited: %s\n", number, text);
    CHECK(ioctl(master, TIOCGPTN, &number) == 0);
    printf("name %d\n", strncmp(ptsname(master), "/dev/pts/", 9));
    if (fork() == 0) {
        CHECK(setsid() == getpid() && ioctl(slave, TIOCSCTTY, 0) == 0);
        CHECK(tcsetpgrp(slave, getpid()) == 0 && tcgetpgrp(slave) == getpid());
        CHECK(tcgetsid(slave) == getpid() && ioctl(slave, TIOCNOTTY) == -1);
        _exit(0);
    }
    CHECK(wait(&number) > 0);
    printf("session leader: %d\n", WEXITSTATUS(number));
    printf("flush %d drain %d\n", tcflush(slave, TCIOFLUSH), tcdrain(slave));
}

static void sockets(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0), pipes[2], number = 1;
    struct ifreq list[8], one = {0};
    struct ifconf all = {.ifc_len = sizeof(list), .ifc_req = list};

    strcpy(one.ifr_name, "lo");
    CHECK(ioctl(fd, SIOCGIFINDEX, &one) == 0 && one.ifr_ifindex == 1);
    CHECK(ioctl(fd, SIOCGIFMTU, &one) == 0);
    printf("mtu of lo %d\n", one.ifr_mtu);
    CHECK(ioctl(fd, SIOCGIFCONF, &all) == 0);
    for (int i = 0; i < all.ifc_len / (int)sizeof(*list); i++)
        if (strcmp(list[i].ifr_name, "lo") == 0)
            printf("found lo\n");
    all.ifc_req = NULL;
    CHECK(ioctl(fd, SIOCGIFCONF, &all) == 0);
    printf("none %ld\n", call(ioctl(fd, SIOCGIFCONF, NULL)));
    CHECK(pipe(pipes) == 0 && ioctl(pipes[0], FIONBIO, &number) == 0);
    printf("empty %ld\n", call(read(pipes[0], &number, 1)));
    CHECK(ioctl(pipes[0], FIOCLEX) == 0);
    printf("close-on-exec %d\n", fcntl(pipes[0], F_GETFD));
    printf("bad descriptor %ld\n", call(ioctl(999, FIONREAD, &number)));
    printf("no terminal %ld\n", call(ioctl(pipes[0], TCGETS, &(struct termios){0})));
    printf("unknown %ld\n", call(ioctl(pipes[0], 0xabcd1234, &number)));
}

static void limits(void)
{
    struct rlimit limit, old;
    int fd = -1, last;

    CHECK(getrlimit(RLIMIT_STACK, &limit) == 0);
    printf("stack %lu\n", limit.rlim_cur);
    limit = (struct rlimit){0, limit.rlim_max};
    CHECK(setrlimit(RLIMIT_CORE, &(struct rlimit){0, 4096}) == 0);
    CHECK(prlimit(0, RLIMIT_CORE, &(struct rlimit){100, 200}, &old) == 0);
    printf("core %lu %lu\n", old.rlim_cur, old.rlim_max);
    CHECK(getrlimit(RLIMIT_CORE, &limit) == 0);
    printf("core %lu %lu\n", limit.rlim_cur, limit.rlim_max);
    printf("odd %ld\n", call(setrlimit(RLIMIT_CORE, &(struct rlimit){200, 100})));
    printf("unknown %ld\n", call(getrlimit(99, &limit)));
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = 20;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0);
    printf("descriptors %lu\n", limit.rlim_cur);
    while ((last = dup(0)) >= 0)
        fd = last;
    printf("the last descriptor %d, then %d\n", fd, errno);
    fflush(NULL);
    if (fork() == 0) {
        close(fd);
        execl("/bin/sh", "sh", "-c", "ulimit -n; ulimit -c", NULL);
        _exit(127);
    }
    wait(NULL);
}

static void cpu(void)
{
    unsigned number = 99, node = 99;
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(1, &set);
    CHECK(sched_setaffinity(0, sizeof(set), &set) == 0);
    CHECK(syscall(SYS_getcpu, &number, &node, NULL) == 0);
    printf("cpu %u of node %u\n", number, node);
    CPU_ZERO(&set);
    CHECK(sched_getaffinity(0, sizeof(set), &set) == 0);
    printf("allowed %d\n", CPU_COUNT(&set));
}

int main(int argc, char **argv)
{
    static const struct both_case cases[] = {
        {"bases", bases},       {"bases-threads", bases_threads},
        {"options", options},   {"closed", closed},
        {"terminal", terminal}, {"sockets", sockets},
        {"limits", limits},     {"cpu", cpu},
        {NULL, NULL},
    };

    return both_main(argc, argv, cases);
}
