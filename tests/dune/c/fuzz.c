/* Random system calls from a sealed ring 3, and a look from outside at what they did to the vault.
 *
 *   fuzz SEED SECONDS [CANARY]
 *
 * Rounds of a few seconds, each a process of its own in namespaces of its own:
 *   launcher   (outside, the namespace's init) starts the fuzzed process, looks into its vault
 * twice a second and at the end (fuzz_watch.h), and ends it. worker     (in ring 3) two threads
 * make random calls (fuzz_make.h); a third changes what nested pointers lead through, all the time.
 * A timer interrupts what waits. The worker may well end itself, or wait for ever: that is what its
 * calls asked for. Prints one line of counts. Exit status: 0; 1 with the reason when something of
 * the vault changed, ring 3 holds a secret of the vault's, or the host side ended the process.
 */
#include "fuzz_make.h"
#include "fuzz_module.h"
#include "fuzz_watch.h"

#include "dune.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

enum {
    ROUND_MS = 6000,
    START_MS = 60000, /* emulated, and nested in that */
    CHECK_MS = 500,
    STUCK_MS = 4000,
    FUZZERS = 2,
    THREADS_ALL = FUZZERS + 1,
    REARM_CALLS = 64,
    FORK_EVERY = 3000,
    MODULE_EVERY = 8,
    NO_KVM = 77,
};

#define TICK_NS 5000000

/* Between the processes. */
struct shared {
    uint64_t base, data_bytes, play, seed[FUZZERS];
    uint32_t ready, crashed;
    uint64_t calls[FUZZERS], succeeded[FUZZERS], faulted[FUZZERS], module[FUZZERS];
    uint64_t nr[FUZZERS], arg[FUZZERS][6];
    uint64_t rounds, crashes, stuck, ended, checks, pages;
    char failure[512];
};

extern struct dune_vault *dune_the_vault; /* libdune's own */

static struct shared *shared;
static struct fuzz_space space;
static const char *canary = "";

/* ---- the worker ---------------------------------------------------------------------------------
 */

static long raw(uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
    register uint64_t r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* Waits to be looked at and ended, having broken itself. */
static void __attribute__((noreturn)) crash(void)
{
    shared->crashed = 1;
    for (;;)
        raw(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
}

/* The playground comes back when a call took it away. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    uint64_t at = (uint64_t)info->si_addr - (uint64_t)space.play;

    (void)number, (void)context;
    if (at >= PLAY_BYTES)
        crash();
    at = (uint64_t)space.play + (at & ~4095ull);
    if (raw(SYS_mmap, at, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
            (uint64_t)-1, 0) != (long)at)
        crash();
}

static void on_tick(int number)
{
    (void)number;
}

static void set_handlers(void)
{
    struct sigaction fault = {.sa_flags = SA_SIGINFO}, tick = {.sa_handler = on_tick};

    fault.sa_sigaction = on_fault;
    sigaction(SIGSEGV, &fault, NULL);
    sigaction(SIGBUS, &fault, NULL);
    sigaction(SIGALRM, &tick, NULL); /* no SA_RESTART */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGIO, SIG_IGN);
}

/* So that no call waits for long. */
static void arm(unsigned index)
{
    struct sigevent event = {.sigev_signo = SIGALRM, .sigev_notify = SIGEV_THREAD_ID};
    struct itimerspec time = {{0, TICK_NS}, {0, TICK_NS}};
    uint64_t none = 0;
    int timer = (int)index;

    raw(SYS_rt_sigprocmask, SIG_SETMASK, (uint64_t)&none, 0, 8, 0, 0);
    if (raw(SYS_timer_settime, (uint64_t)timer, 0, (uint64_t)&time, 0, 0, 0) == 0)
        return;
    event._sigev_un._tid = (int)raw(SYS_gettid, 0, 0, 0, 0, 0, 0);
    if (raw(SYS_timer_create, CLOCK_MONOTONIC, (uint64_t)&event, (uint64_t)&timer, 0, 0, 0) == 0)
        raw(SYS_timer_settime, (uint64_t)timer, 0, (uint64_t)&time, 0, 0, 0);
}

/* A child that ends at once; what it is told to write goes where the fuzzer likes. */
static void fork_once(struct fuzz_random *random)
{
    uint64_t flags = SIGCHLD | (fuzz_next(random) & 0x01300000), tid;
    long child = raw(SYS_clone, flags, 0, some_pointer(&space, random, 50),
                     some_pointer(&space, random, 50), 0, 0);

    if (child == 0) {
        for (unsigned i = 0; i < 20; i++) {
            uint64_t nr, arg[6];

            if (make_call(&space, random, &nr, arg))
                raw(nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
        }
        raw(SYS_exit_group, 0, 0, 0, 0, 0, 0);
    }
    if (child > 0)
        raw(SYS_wait4, (uint64_t)child, (uint64_t)&tid, 1 /* WNOHANG */, 0, 0, 0);
}

static void *fuzz(void *argument)
{
    unsigned index = (unsigned)(uint64_t)argument;
    struct fuzz_random random = {.state = shared->seed[index]};

    __atomic_add_fetch(&shared->ready, 1, __ATOMIC_RELEASE);
    for (uint64_t i = 0;; i++) {
        uint64_t nr, arg[6];
        long result;

        if (i % REARM_CALLS == 0)
            arm(index);
        if (i % FORK_EVERY == FORK_EVERY - 1)
            fork_once(&random);
        if (i % MODULE_EVERY == 0)
            shared->module[index] += fuzz_call_module(&space, &random, index == 0);
        if (!make_call(&space, &random, &nr, arg))
            continue;
        shared->nr[index] = nr;
        memcpy(shared->arg[index], arg, sizeof(arg));
        result = raw(nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
        shared->calls[index]++;
        shared->succeeded[index] += result >= 0;
        shared->faulted[index] += result == -EFAULT || result == -ENOMEM || result == -EBADF;
    }
    return NULL;
}

/* Changes words of the playground's first half while calls read them. What calls leave in the
 * second stays there to be found. */
static void *race(void *argument)
{
    struct fuzz_random random = {.state = 0x9e3779b97f4a7c15ull + (uint64_t)argument};
    struct timespec rest = {0, 200000};

    __atomic_add_fetch(&shared->ready, 1, __ATOMIC_RELEASE);
    for (uint64_t i = 0;; i++) {
        uint64_t *at = (uint64_t *)(shaky_address(&space, &random) & ~7ull);

        __atomic_store_n(at, some_word(&space, &random), __ATOMIC_RELAXED);
        if (i % 1024 == 0) /* the others are to get on, too */
            raw(SYS_nanosleep, (uint64_t)&rest, 0, 0, 0, 0, 0);
    }
    return NULL;
}

static void add_text(const char *text)
{
    snprintf(space.text[space.texts++], TEXT_BYTES, "%s", text);
}

static void make_texts(void)
{
    static const char *const text[] = {
        "f0",
        "f1",
        "d0",
        "d0/x",
        "l0",
        "l1",
        "l2",
        "",
        ".",
        "..",
        "user.x",
        "/proc/self/mem",
        "/proc/thread-self/mem",
        "/proc/self/maps",
        "/proc/self/fd/3",
        "/proc/self/task/2/mem",
        "/proc/1/mem",
        "/proc/1/root/dev/kvm",
        "../../../proc/self/mem",
        "/proc/self/root/proc/self/mem",
        "/proc/self/environ",
        "/proc/self/fdinfo",
        "d0/../l0",
        "/proc/self/syscall",
        "/proc/kcore",
        "/dev/kvm",
        "/dev/mem",
        "/dev/zero",
    };
    char buffer[TEXT_BYTES];

    space.text =
        mmap(NULL, TEXTS * TEXT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (unsigned i = 0; i < sizeof(text) / sizeof(text[0]); i++)
        add_text(text[i]);
    for (int i = 0; i < 8; i++) {
        snprintf(buffer, sizeof(buffer), "/proc/self/fd/%d", space.first_fd + i);
        add_text(buffer);
    }
    if (mkdir("d0", 0700) != 0 || symlink("/proc/self/mem", "l0") != 0 ||
        symlink("/dev/kvm", "l1") != 0 || symlink("/proc/self/fd", "l2") != 0)
        perror("fuzz: links");
}

static void open_things(void)
{
    int pair[2], yes = 1;

    for (int fd = 3; fd < 64; fd++)
        close(fd);
    (void)!pipe2(pair, O_NONBLOCK);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    space.pairs = (uint64_t)pair[0];
    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
    for (int fd = (int)space.pairs; fd < (int)space.pairs + PAIRS; fd++)
        setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)); /* control data to receive */
    space.endless = (uint64_t)open("/dev/urandom", O_RDWR);
    open("f0", O_RDWR | O_CREAT, 0600);
    open(".", O_RDONLY | O_DIRECTORY);
    open("/dev/zero", O_RDWR);
    open("/proc/self/maps", O_RDONLY);
    (void)!memfd_create("fuzz", 0);
    eventfd(0, EFD_NONBLOCK);
    epoll_create1(0);
    timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    socket(AF_INET, SOCK_DGRAM, 0);
    socket(AF_INET, SOCK_STREAM, 0);
    socket(AF_NETLINK, SOCK_RAW, 0);
}

static void limit(void)
{
    struct rlimit file = {1 << 20, 1 << 20}, core = {0, 0};

    setrlimit(RLIMIT_FSIZE, &file);
    setrlimit(RLIMIT_CORE, &core);
}

static void __attribute__((noreturn)) work(uint64_t seed, bool no_key)
{
    static struct dune_policy policy = {.log_fd = ~0u, .memory_bytes = 1ull << 29};
    struct dune_module module;
    struct dune_place place;
    struct dune_config config = {.flags = DUNE_SEALED | DUNE_SKIP_SELF_TEST |
                                          (no_key ? DUNE_NO_PKEY : 0),
                                 .policy = &policy,
                                 .place = &place,
                                 .module = &module};
    struct fuzz_random random = {.state = seed * 0x9e3779b97f4a7c15ull + 1};
    pthread_t thread;

    space.play = mmap(NULL, PLAY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    open_things();
    if (!fuzz_make_module(&module, &place) || dune_init(&config) != 0) {
        fprintf(stderr, "fuzz: %s\n", dune_error());
        _exit(NO_KVM);
    }
    space.base = dune_the_vault->base;
    space.data_bytes = place.data_bytes;
    space.first_fd = dune_the_vault->first_fd;
    make_texts();
    set_handlers();
    limit();
    for (uint64_t at = 0; at < PLAY_BYTES; at += 8)
        *(uint64_t *)(space.play + at) = some_word(&space, &random);
    shared->base = space.base;
    shared->data_bytes = space.data_bytes;
    shared->play = (uint64_t)space.play;
    for (unsigned i = 0; i < FUZZERS; i++)
        shared->seed[i] = fuzz_next(&random) | 1;
    if (dune_enter_user() != 0) {
        fprintf(stderr, "fuzz: %s\n", dune_error());
        _exit(NO_KVM);
    }
    pthread_create(&thread, NULL, race, NULL);
    for (uint64_t i = 1; i < FUZZERS; i++)
        pthread_create(&thread, NULL, fuzz, (void *)i);
    /* All vCPUs are there before anything is compared. */
    while (__atomic_load_n(&shared->ready, __ATOMIC_ACQUIRE) < THREADS_ALL - 1)
        raw(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
    fuzz(NULL);
    crash();
}

/* ---- the launcher -------------------------------------------------------------------------------
 */

static void fail(const char *what, const char *more)
{
    if (shared->failure[0] == 0)
        snprintf(shared->failure, sizeof(shared->failure), "%s%s", what, more);
}

/* What the worker said on its standard error; true: the host side gave up. */
static bool panicked(int fd, char *text, size_t bytes)
{
    ssize_t got = pread(fd, text, bytes - 1, 0);

    text[got > 0 ? got : 0] = 0;
    return memmem(text, strlen(text), "the guest is ended", 18) != NULL;
}

static uint64_t progress(void)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < FUZZERS; i++)
        sum = sum > shared->calls[i] ? sum : shared->calls[i];
    return sum;
}

static void describe_calls(void)
{
    for (unsigned i = 0; i < FUZZERS; i++)
        fprintf(stderr, "fuzz: thread %u was in %lu(%lx, %lx, %lx, %lx, %lx, %lx)\n", i,
                shared->nr[i], shared->arg[i][0], shared->arg[i][1], shared->arg[i][2],
                shared->arg[i][3], shared->arg[i][4], shared->arg[i][5]);
}

static bool wait_ready(int pid)
{
    uint64_t end = now_ms() + START_MS;

    while (__atomic_load_n(&shared->ready, __ATOMIC_ACQUIRE) < THREADS_ALL && now_ms() < end) {
        if (waitpid(pid, NULL, WNOHANG) == pid)
            return false;
        sleep_ms(10);
    }
    return shared->ready == THREADS_ALL;
}

/* False: it is not there any more. */
static bool ended(int status)
{
    shared->ended++;
    if (getenv("FUZZ_VERBOSE") != NULL) {
        fprintf(stderr, "fuzz: ended with status %x, %lu calls\n", (unsigned)status, progress());
        describe_calls();
    }
    return false;
}

/* What must be found at the next look. */
static void set_canary(struct watch *watch)
{
    uint64_t idt = watch->base + DUNE_BLOCKS_AT + DUNE_BLOCK_IDT + 0xff8; /* a vector of nobody's */
    uint8_t byte = 0x5a;

    if (strcmp(canary, "idt") == 0)
        (void)!pwrite(watch->mem, &byte, 1, (off_t)idt);
    else if (strcmp(canary, "secret") == 0)
        (void)!pwrite(watch->mem, watch->secret, WATCH_SECRET_BYTES,
                      (off_t)shared->play + PLAY_BYTES - 0x800);
}

/* Until the round's end, or the worker's. True: it is still there. */
static bool observe(struct watch *watch, int pid)
{
    uint64_t end = now_ms() + ROUND_MS, last = 0, moved = now_ms();

    while (now_ms() < end) {
        int status;

        sleep_ms(CHECK_MS);
        set_canary(watch);
        if (waitpid(pid, &status, WNOHANG) == pid)
            return ended(status);
        if (!watch_check(watch) || !watch_secret(watch, shared->play, PLAY_BYTES)) {
            /* It may be ending itself: then there is nothing to be read. */
            if (watch->gone)
                sleep_ms(CHECK_MS);
            if (watch->gone && waitpid(pid, &status, WNOHANG) == pid)
                return ended(status);
            fail("changed: ", watch->failure);
            return true;
        }
        shared->checks++;
        if (shared->crashed) {
            shared->crashes++;
            if (getenv("FUZZ_VERBOSE") != NULL)
                describe_calls();
            return true;
        }
        if (progress() != last) {
            last = progress();
            moved = now_ms();
        } else if (now_ms() - moved > STUCK_MS) {
            shared->stuck++;
            return true;
        }
    }
    return true;
}

/* What is mounted already stays as it is: as root, a random chmod("/") would outlive the round. */
static void protect_files(void)
{
    struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};

    if (mount_setattr(AT_FDCWD, "/", AT_RECURSIVE, &read_only, sizeof(read_only)) != 0)
        fail("files stay writable: ", strerror(errno));
}

/* Devices of this round's own: the fuzzer may remove them. */
static void make_devices(void)
{
    static const struct {
        const char *name;
        unsigned major, minor;
    } device[] = {{"/dev/kvm", 10, 232},
                  {"/dev/zero", 1, 5},
                  {"/dev/null", 1, 3},
                  {"/dev/mem", 1, 1},
                  {"/dev/urandom", 1, 9}};

    if (mount("fuzz", "/dev", "tmpfs", 0, "size=1m") != 0)
        fail("no /dev: ", strerror(errno));
    for (unsigned i = 0; i < sizeof(device) / sizeof(device[0]); i++)
        if (mknod(device[i].name, S_IFCHR | 0600, makedev(device[i].major, device[i].minor)) != 0)
            fail("no devices: ", strerror(errno));
}

/* A round, and a last look at what stands still. */
static void look_at(struct watch *watch, int pid)
{
    if (!observe(watch, pid) || shared->failure[0] != 0)
        return;
    kill(pid, SIGSTOP);
    sleep_ms(20);
    if (!watch_check(watch) || !watch_secret(watch, shared->play, PLAY_BYTES))
        if (!watch->gone || waitpid(pid, NULL, WNOHANG) != pid)
            fail("changed: ", watch->failure);
    shared->checks++;
}

static void launch(uint64_t seed, int errors, bool no_key)
{
    static struct watch watch;
    char text[4096];
    int pid, status;

    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    protect_files();
    mount("proc", "/proc", "proc", 0, NULL);
    if (mount("fuzz", "/tmp", "tmpfs", 0, "size=16m") != 0 || chdir("/tmp") != 0)
        fail("no /tmp: ", strerror(errno));
    make_devices();
    pid = fork();
    if (pid == 0) {
        int nothing = open("/dev/null", O_RDWR);

        dup2(nothing, 0);
        dup2(nothing, 1);
        dup2(errors, 2);
        work(seed, no_key);
    }
    if (!wait_ready(pid)) {
        panicked(errors, text, sizeof(text));
        fail("the worker didn't start: ", text);
    } else if (!watch_start(&watch, pid, shared->base, shared->data_bytes, THREADS_ALL) ||
               !watch_module(&watch, FUZZ_DATA_BYTES)) {
        sleep_ms(CHECK_MS);
        if (watch.gone && waitpid(pid, &status, WNOHANG) == pid)
            ended(status);
        else
            fail("", watch.failure);
    } else {
        look_at(&watch, pid);
    }
    if (panicked(errors, text, sizeof(text)))
        fail("the host side ended it: ", text);
    shared->pages += watch.pages_walked;
    shared->rounds++;
    if (shared->failure[0] != 0)
        describe_calls();
    _exit(0); /* the namespace's init: everything in it ends */
}

/* ---- rounds ---------------------------------------------------------------------------------- */

static int run_round(uint64_t seed, bool no_key)
{
    int errors = memfd_create("stderr", 0), status = 1;
    int outer = fork();

    if (outer == 0) {
        int inner;

        if (unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET) != 0) {
            perror("fuzz: namespaces");
            _exit(2);
        }
        inner = fork();
        if (inner == 0)
            launch(seed, errors, no_key);
        waitpid(inner, &status, 0);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 3);
    }
    waitpid(outer, &status, 0);
    close(errors);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 4;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc >= 3 ? strtoull(argv[1], NULL, 0) : 0, calls = 0, good = 0, faults = 0;
    uint64_t module = 0, end = now_ms() + (argc >= 3 ? strtoull(argv[2], NULL, 0) : 0) * 1000;
    int status = 0;

    if (argc < 3 || !fuzz_read_module()) {
        fprintf(stderr, "%s SEED SECONDS [CANARY]\n", argv[0]);
        return 2;
    }
    if (argc == 4)
        canary = argv[3];
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (uint64_t i = 0; status == 0 && shared->failure[0] == 0 && now_ms() < end; i++) {
        shared->ready = shared->crashed = 0;
        memset(shared->calls, 0, sizeof(shared->calls));
        /* The second wall hides what the first lets through: every other round is without it. */
        status = run_round(seed + i, i % 2 == 1 || getenv("DUNE_TEST_NO_PKEY") != NULL);
        for (unsigned t = 0; t < FUZZERS; t++)
            calls += shared->calls[t];
        if (shared->failure[0] != 0)
            fprintf(stderr, "fuzz: round %lu: %s\n", seed + i, shared->failure);
    }
    for (unsigned t = 0; t < FUZZERS; t++) {
        good += shared->succeeded[t];
        faults += shared->faulted[t];
        module += shared->module[t];
    }
    printf("executions %lu succeeded %lu refused %lu rounds %lu crashed %lu ended %lu stuck %lu "
           "checks %lu entries %lu module_calls %lu\n",
           calls, good, faults, shared->rounds, shared->crashes, shared->ended, shared->stuck,
           shared->checks, shared->pages, module);
    return status != 0 || shared->failure[0] != 0;
}
