/* Threads: their own storage, locks, ends. PROGRAM bare|dune CASE, see both.h. */
#include "both.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define MANY 64

static __thread int own_number = -1;
static __thread char own_text[64] = "fresh";
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long total;
static int arrived, turn;

static void *add_and_meet(void *arg)
{
    int number = (int)(long)arg;

    CHECK(own_number == -1 && strcmp(own_text, "fresh") == 0);
    own_number = number;
    snprintf(own_text, sizeof(own_text), "thread %d", number);
    for (int i = 0; i < 100; i++) {
        pthread_mutex_lock(&lock);
        total += number;
        pthread_mutex_unlock(&lock);
    }
    pthread_mutex_lock(&lock);
    arrived++;
    pthread_cond_broadcast(&changed);
    while (arrived < MANY)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    sched_yield();
    CHECK(own_number == number && atoi(own_text + 7) == number);
    return (void *)(long)(number * 3);
}

static void storage(void)
{
    pthread_t thread[MANY];
    long returned = 0;

    for (long i = 0; i < MANY; i++)
        CHECK(pthread_create(&thread[i], NULL, add_and_meet, (void *)i) == 0);
    for (int i = 0; i < MANY; i++) {
        void *result;

        CHECK(pthread_join(thread[i], &result) == 0);
        returned += (long)result;
    }
    printf("total %ld returned %ld main's %d\n", total, returned, own_number);
}

/* Threads take turns in a fixed order, by one condition variable. */
static void *take_turns(void *arg)
{
    int number = (int)(long)arg;

    for (int round = 0; round < 20; round++) {
        pthread_mutex_lock(&lock);
        while (turn % 4 != number)
            pthread_cond_wait(&changed, &lock);
        total = total * 31 % 1000003 + number;
        turn++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void turns(void)
{
    pthread_t thread[4];

    for (long i = 0; i < 4; i++)
        CHECK(pthread_create(&thread[i], NULL, take_turns, (void *)i) == 0);
    for (int i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    printf("turns %d total %ld\n", turn, total);
}

static pthread_key_t key;
static atomic_int destroyed;

static void destroy(void *value)
{
    destroyed += (int)(long)value;
}

static void *set_value(void *arg)
{
    pthread_setspecific(key, arg);
    return NULL;
}

static void destructors(void)
{
    pthread_t thread;

    pthread_key_create(&key, destroy);
    for (long i = 1; i <= 10; i++) {
        pthread_create(&thread, NULL, set_value, (void *)i);
        pthread_join(thread, NULL);
    }
    printf("destroyed %d\n", destroyed);
}

/* ---- robust mutexes
 * ------------------------------------------------------------------------------ */

static pthread_mutex_t *robust_mutex(int n)
{
    pthread_mutex_t *made =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_t attributes;

    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    for (int i = 0; i < n; i++)
        pthread_mutex_init(&made[i], &attributes);
    return made;
}

static pthread_mutex_t *robust;
static atomic_int holds;

static void *end_with_it(void *arg)
{
    for (int i = 0; i < 3; i++)
        pthread_mutex_lock(&robust[i]);
    holds = 1;
    if (arg)
        usleep(200000); /* others wait by now */
    return NULL;
}

static void *wait_for_it(void *arg)
{
    while (!holds)
        usleep(1000);
    for (int i = 0; i < 3; i++) {
        int error = pthread_mutex_lock(&robust[i]);

        CHECK(error == EOWNERDEAD || error == 0);
        if (error == EOWNERDEAD) {
            *(int *)arg += 1;
            pthread_mutex_consistent(&robust[i]);
        }
        pthread_mutex_unlock(&robust[i]);
    }
    return NULL;
}

static void robust_threads(void)
{
    pthread_t owner, waiter[3];
    int found[3] = {0};

    robust = robust_mutex(3);
    pthread_create(&owner, NULL, end_with_it, (void *)1);
    for (int i = 0; i < 3; i++)
        pthread_create(&waiter[i], NULL, wait_for_it, &found[i]);
    pthread_join(owner, NULL);
    for (int i = 0; i < 3; i++)
        pthread_join(waiter[i], NULL);
    printf("owner died %d times, to three waiters\n", found[0] + found[1] + found[2]);
}

static void robust_processes(void)
{
    int status, found = 0, died = 0;

    robust = robust_mutex(3);
    for (int how = 0; how < 3; how++) { /* by exit_group, by exec, by a thread's end */
        pid_t pid = fork();

        if (pid == 0) {
            end_with_it(NULL);
            if (how == 1)
                execl("/bin/true", "true", NULL);
            if (how == 2)
                syscall(SYS_exit, 0);
            _exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
        printf("ended by way %d\n", how);
        holds = 1;
        wait_for_it(&died);
        for (int i = 0; i < 3; i++)
            found +=
                pthread_mutex_trylock(&robust[i]) == 0 && pthread_mutex_unlock(&robust[i]) == 0;
    }
    printf("owner died %d, free again %d\n", died, found);
}

/* ---- ends
 * ----------------------------------------------------------------------------------------- */

static int cleaned;

static void clean(void *arg)
{
    cleaned += (int)(long)arg;
}

static void *sleep_long(void *arg)
{
    pthread_cleanup_push(clean, (void *)5);
    if (arg)
        sem_wait(arg);
    else
        sleep(1000);
    pthread_cleanup_pop(0);
    return NULL;
}

static void cancel(void)
{
    sem_t semaphore;
    pthread_t thread;
    void *result;

    sem_init(&semaphore, 0, 0);
    for (int i = 0; i < 4; i++) {
        pthread_create(&thread, NULL, sleep_long, i % 2 ? &semaphore : NULL);
        if (i > 1)
            usleep(50000);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        CHECK(result == PTHREAD_CANCELED);
    }
    printf("cancelled, cleaned %d\n", cleaned);
}

static void *end_process(void *arg)
{
    usleep(50000);
    printf("the last thread\n");
    exit((int)(long)arg);
}

static void leave_main(void)
{
    pthread_t thread;

    pthread_create(&thread, NULL, end_process, (void *)7);
    pthread_exit(NULL);
}

static void *spin(void *arg)
{
    for (;;)
        ++*(volatile long *)arg;
    return NULL;
}

static void group(void)
{
    pthread_t thread;
    long counter[3] = {0};

    for (int i = 0; i < 3; i++) {
        pthread_create(&thread, NULL, spin, &counter[i]);
        pthread_create(&thread, NULL, sleep_long, NULL);
    }
    pthread_create(&thread, NULL, end_process, (void *)9);
    pause();
}

static void *count(void *arg)
{
    ++*(int *)arg;
    return arg;
}

static void sequence(void)
{
    pthread_t thread;
    int n = 0;

    for (int i = 0; i < 500; i++) {
        CHECK(pthread_create(&thread, NULL, count, &n) == 0);
        pthread_join(thread, NULL);
    }
    printf("threads %d\n", n);
}

static atomic_int detached_left = 40;
static sem_t all_ran;

static void *detached_count(void *arg)
{
    (void)arg;
    if (--detached_left == 0)
        sem_post(&all_ran);
    return NULL;
}

static void detached(void)
{
    pthread_attr_t attributes;
    pthread_t thread;

    sem_init(&all_ran, 0, 0);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (int i = 0; i < 40; i++)
        while (pthread_create(&thread, &attributes, detached_count, NULL) == EAGAIN)
            sched_yield();
    sem_wait(&all_ran);
    printf("all detached threads ran\n");
}

/* A new thread has its parent's mask, rounding mode, and registers of its own. */
static void *look(void *arg)
{
    sigset_t mask;
    unsigned csr;

    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    __asm__ volatile("stmxcsr %0" : "=m"(csr));
    printf("blocked %d %d, mxcsr %x, main thread %d\n", sigismember(&mask, SIGUSR1),
           sigismember(&mask, SIGUSR2), csr, getpid() == (pid_t)syscall(SYS_gettid));
    return arg;
}

static void inherits(void)
{
    unsigned csr = 0x7f80; /* towards zero */
    pthread_t thread;
    sigset_t mask;

    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    __asm__ volatile("ldmxcsr %0" : : "m"(csr));
    pthread_create(&thread, NULL, look, NULL);
    pthread_join(thread, NULL);
    look(NULL);
}

/* Signals that reach threads before or at their first instruction. */
static __thread volatile sig_atomic_t reached;

static void reach(int number)
{
    reached = number;
}

static void *until_reached(void *arg)
{
    while (!reached)
        sched_yield();
    ++*(atomic_int *)arg;
    return NULL;
}

static void early(void)
{
    atomic_int n = 0;

    signal(SIGUSR1, reach);
    for (int i = 0; i < 25; i++) {
        pthread_t thread[4];

        for (int j = 0; j < 4; j++) {
            CHECK(pthread_create(&thread[j], NULL, until_reached, &n) == 0);
            CHECK(pthread_kill(thread[j], SIGUSR1) == 0);
        }
        for (int j = 0; j < 4; j++)
            CHECK(pthread_join(thread[j], NULL) == 0);
    }
    printf("reached %d threads\n", n);
}

/* What this library doesn't do, said as Linux would say it. */
static void refusals(void)
{
    int word = 0;

    errno = 0;
    CHECK(syscall(SYS_clone, 0x100, NULL, NULL, NULL, NULL) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_clone, 0x10000, NULL, NULL, NULL, NULL) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_set_robust_list, &word, 23) == -1 && errno == EINVAL);
    printf("refused\n");
}

/* Open: how many vCPUs there are behind 500 threads, one after the other. */
static int pool(void)
{
    char path[64], what[64];
    int vcpus = 0;

    if (dune_init(NULL) != 0 || dune_enter() != 0) {
        fprintf(stderr, "%s\n", dune_error());
        return 98;
    }
    sequence();
    CHECK(dune_leave() == 0);
    for (int fd = 0; fd < 100000; fd++) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        memset(what, 0, sizeof(what));
        if (readlink(path, what, sizeof(what) - 1) > 0)
            vcpus += strstr(what, "kvm-vcpu") != NULL;
    }
    printf("vCPUs %d\n", vcpus);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct both_case cases[] = {
        {"storage", storage},
        {"turns", turns},
        {"destructors", destructors},
        {"robust-threads", robust_threads},
        {"robust-processes", robust_processes},
        {"cancel", cancel},
        {"leave-main", leave_main},
        {"group", group},
        {"sequence", sequence},
        {"detached", detached},
        {"inherits", inherits},
        {"early", early},
        {"refusals", refusals},
        {NULL, NULL},
    };

    if (argc == 2 && strcmp(argv[1], "pool") == 0)
        return pool();
    return both_main(argc, argv, cases);
}
