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
    struct timespec time = {0, 200000000}, left = {9, 9};
    int status;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        raise(SIGSTOP);
        raise(SIGTSTP);
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

    set_handler(SIGUSR1, count, 0);
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
