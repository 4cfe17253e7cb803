/* The rest of signals.c: processes and threads. */

/* ---- what no handler is for
 * -------------------------------------------------------------------------- */

static void defaults(void)
{
    static const int number[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGILL,  SIGTRAP, SIGABRT, SIGBUS,
                                 SIGFPE,  SIGKILL, SIGUSR1, SIGSEGV, SIGUSR2, SIGPIPE, SIGALRM,
                                 SIGTERM, SIGCHLD, SIGURG,  SIGXCPU, SIGSYS,  34,      64};

    for (unsigned i = 0; i < sizeof(number) / sizeof(*number); i++) {
        for (int handled = 0; handled < 2; handled++) { /* one that had a handler before */
            int status;
            pid_t pid;

            fflush(stdout);
            pid = fork();
            if (pid == 0) {
                if (handled && number[i] != SIGKILL) {
                    set_handler(number[i], count, 0);
                    raise(number[i]);
                    CHECK(calls == 1);
                    signal(number[i], SIG_DFL);
                }
                if (i % 2)
                    kill(getpid(), number[i]);
                else
                    raise(number[i]);
                _exit(11);
            }
            CHECK(waitpid(pid, &status, 0) == pid);
            printf("%d: %x\n", number[i], status & ~0x80);
        }
    }
}

static void stops(void)
{
    struct timespec time = {1, 0}, left = {9, 9};
    char byte;
    int status;
    pid_t pid;

    CHECK(pipe(pipe_fd) == 0);
    fflush(stdout);
    pid = fork();
    if (pid == 0) { /* a stop wipes out a continuation that nobody has seen yet: one by one */
        raise(SIGSTOP);
        CHECK(read(pipe_fd[0], &byte, 1) == 1);
        kill(getpid(), SIGSTOP);
        CHECK(read(pipe_fd[0], &byte, 1) == 1);
        _exit(nanosleep(&time, &left) == 0 && left.tv_sec == 9 ? 5 : 6);
    }
    for (int i = 0; i < 3; i++) {
        if (i == 2) {
            usleep(50000); /* in its sleep, which goes on by itself */
            kill(pid, SIGSTOP);
        }
        CHECK(waitpid(pid, &status, WUNTRACED) == pid);
        printf("%x\n", status);
        kill(pid, SIGCONT);
        CHECK(waitpid(pid, &status, WCONTINUED) == pid);
        printf("%x\n", status);
        CHECK(write(pipe_fd[1], "x", 1) == 1);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    printf("%x\n", status);
}

/* ---- threads
 * -------------------------------------------------------------------------------------------- */

static __thread int mine;
static volatile int ready, quit;
static pthread_t third;

static void to_thread(int number, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    mine += number == SIGUSR1 ? 1 : 100;
    calls++;
}

static void *spin(void *arg)
{
    sigset_t set = set_of(SIGUSR2, 0);

    pthread_sigmask(arg ? SIG_UNBLOCK : SIG_BLOCK, &set, NULL);
    __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    while (!quit)
        if (arg == NULL)
            usleep(2000);
    return (void *)(long)mine;
}

static void *asleep(void *arg)
{
    sigset_t set = set_of(SIGUSR2, 0);

    (void)arg;
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    pause();
    return (void *)(long)mine;
}

static void wait_for_calls(int due)
{
    for (int i = 0; calls < due && i < 5000; i++)
        usleep(1000);
    CHECK(calls == due);
}

/* To one thread by tgkill, to the only one that doesn't block it by kill. */
static void threads(void)
{
    sigset_t set = set_of(SIGUSR2, 0);
    pthread_t one, two;
    void *result[3];

    set_handler(SIGUSR1, to_thread, 0);
    set_handler(SIGUSR2, to_thread, 0);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    CHECK(pthread_create(&one, NULL, spin, (void *)1) == 0);
    CHECK(pthread_create(&two, NULL, spin, NULL) == 0);
    CHECK(pthread_create(&third, NULL, asleep, NULL) == 0);
    while (ready < 3)
        usleep(1000);
    usleep(20000);
    pthread_kill(one, SIGUSR1);
    pthread_kill(two, SIGUSR1);
    wait_for_calls(2);
    kill(getpid(), SIGUSR2);
    wait_for_calls(3);
    pthread_kill(two, SIGUSR1);
    pthread_kill(third, SIGUSR1);
    wait_for_calls(5);
    quit = 1;
    CHECK(pthread_join(one, &result[0]) == 0);
    CHECK(pthread_join(two, &result[1]) == 0);
    CHECK(pthread_join(third, &result[2]) == 0);
    printf("%ld %ld %ld main %d\n", (long)result[0], (long)result[1], (long)result[2], mine);
}

/* ---- storms over threads
 * -------------------------------------------------------------------------- */

#define STORM_THREADS 3
#define STORM_QUEUED  400

static volatile int received[STORM_THREADS];
static __thread volatile int *counter;

/* Ruins what the interrupted code may hold in vectors, and counts. */
static void queued(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    CHECK(info->si_code == SI_QUEUE && info->si_value.sival_int == *counter);
    if (__builtin_cpu_supports("avx"))
        __asm__ volatile(
            "vpcmpeqd %%xmm3, %%xmm3, %%xmm3\n vinsertf128 $1, %%xmm3, %%ymm3, %%ymm3\n"
            "vmovaps %%ymm3, %%ymm11" ::
                : "xmm3", "xmm11");
    ++*counter;
}

/* The vectors' upper halves over a system call and some time. False: they changed. */
static int round_of_vectors(uint64_t seed)
{
    uint64_t in[8], after[8];

    if (!__builtin_cpu_supports("avx"))
        return 1;
    for (int i = 0; i < 8; i++)
        in[i] = after[i] = seed * (uint64_t)(i + 7);
    __asm__ volatile("vmovups 0(%0), %%ymm3\n vmovups 32(%0), %%ymm11\n"
                     "mov $39, %%eax\n syscall\n"
                     "mov $3000, %%ecx\n1: dec %%ecx\n jnz 1b\n"
                     "vmovups %%ymm3, 0(%1)\n vmovups %%ymm11, 32(%1)\n vzeroupper"
                     :
                     : "S"(in), "D"(after)
                     : "rax", "rcx", "r11", "memory", "cc", "xmm3", "xmm11");
    return memcmp(in, after, sizeof(in)) == 0;
}

/* Registers, vectors, and memory that comes and goes. */
static void *bear(void *arg)
{
    uint64_t rounds = 0;

    counter = &received[(long)arg];
    __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    while (*counter < STORM_QUEUED) {
        volatile char *page =
            mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        CHECK(page != MAP_FAILED);
        page[100] = 1;
        CHECK(round_of_registers(++rounds));
        page[5000] = 2;
        CHECK(round_of_vectors(rounds));
        CHECK(page[100] == 1 && page[5000] == 2);
        CHECK(munmap((void *)page, 8192) == 0);
    }
    return NULL;
}

/* Queued signals: none is lost, doubled or out of order, to whichever thread. */
static void storms(void)
{
    pthread_t thread[STORM_THREADS];

    set_handler(SIGRTMIN + 2, queued, SA_RESTART);
    for (long i = 0; i < STORM_THREADS; i++)
        CHECK(pthread_create(&thread[i], NULL, bear, (void *)i) == 0);
    while (ready < STORM_THREADS)
        usleep(1000);
    for (int sent = 0; sent < STORM_QUEUED; sent++)
        for (int i = 0; i < STORM_THREADS; i++)
            while (pthread_sigqueue(thread[i], SIGRTMIN + 2, (union sigval){.sival_int = sent}))
                usleep(1000);
    for (int i = 0; i < STORM_THREADS; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    printf("received %d %d %d\n", received[0], received[1], received[2]);
}

/* Forks, their ends and a timer, all at once. */
static void fork_storm(void)
{
    struct itimerval often = {.it_interval.tv_usec = 2000, .it_value.tv_usec = 2000}, none = {0};
    int ended = 0;

    set_handler(SIGALRM, clobber, SA_RESTART);
    set_handler(SIGCHLD, count, SA_RESTART);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 30; i++) {
        int status;
        pid_t pid = i % 3 ? fork() : vfork();

        CHECK(pid >= 0);
        if (pid == 0) {
            if (i % 3 && !round_of_registers(i))
                _exit(1);
            _exit(42);
        }
        CHECK(round_of_registers(i));
        CHECK(waitpid(pid, &status, 0) == pid);
        ended += WIFEXITED(status) && WEXITSTATUS(status) == 42;
    }
    setitimer(ITIMER_REAL, &none, NULL);
    printf("ended %d\n", ended);
}

/* ---- other programs
 * ---------------------------------------------------------------------------------------- */

/* What is ignored or blocked stays so over exec, what was handled does not. */
static void inherited(void)
{
    sigset_t set = set_of(SIGUSR2, SIGTERM);
    int status;
    pid_t pid;

    set_handler(SIGUSR1, count, 0);
    signal(SIGHUP, SIG_IGN);
    signal(SIGFPE, SIG_IGN); /* libdune has a handler of its own for it */
    sigprocmask(SIG_SETMASK, &set, NULL);
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        execl("/bin/grep", "grep", "-E", "Sig(Blk|Ign|Cgt)", "/proc/self/status", NULL);
        _exit(9);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    pid = vfork();
    if (pid == 0) {
        execl("/bin/grep", "grep", "-E", "Sig(Blk|Ign|Cgt)", "/proc/self/status", NULL);
        _exit(9);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    printf("status %x mask %x\n", status, mask_now());
}

/* Handlers in a fork's child, which are its own from then on. */
static void children(void)
{
    int status;
    pid_t pid;

    set_handler(SIGUSR1, count, SA_RESTART);
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        raise(SIGUSR1);
        kill(getppid(), SIGUSR1);
        signal(SIGUSR1, SIG_IGN);
        raise(SIGUSR1);
        _exit(calls);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    while (calls == 0)
        usleep(1000);
    raise(SIGUSR1);
    printf("child %x parent %d\n", status, (int)calls);
}
