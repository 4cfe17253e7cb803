/* Threads and processes of a program in its own ring 0 (the open way), and of its ring 3 when ring
 * 0 hands the calls on. */
#include "both.h"

#include <errno.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static long handled;

static bool hand_on(struct dune_tf *tf)
{
    __atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
    dune_forward(tf);
    return true;
}

static void *ring_of_thread(void *arg)
{
    (void)arg;
    return (void *)(long)dune_ring();
}

static int status_of(pid_t pid)
{
    int status = -1;

    CHECK(pid > 0);
    while (waitpid(pid, &status, 0) < 0)
        CHECK(errno == EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static int vfork_exit(void)
{
    pid_t pid = vfork();

    if (pid == 0)
        _exit(3);
    return status_of(pid);
}

static void all(const char *where)
{
    char *argv[] = {"sh", "-c", "exit 6", NULL}, *envp[] = {NULL};
    int nested = 0, again = 0;
    pthread_t thread;
    void *ring;
    pid_t pid;

    CHECK(pthread_create(&thread, NULL, ring_of_thread, NULL) == 0);
    CHECK(pthread_join(thread, &ring) == 0);
    printf("%s: ring %d, a thread's %ld", where, dune_ring(), (long)ring);
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        pid = fork();
        if (pid == 0)
            _exit(20 + dune_ring());
        nested = status_of(pid);
        _exit(nested * 4 + dune_ring());
    }
    printf(", fork %d", status_of(pid));
    printf(", vfork %d", vfork_exit());
    for (int i = 0; i < 5; i++) {
        CHECK(posix_spawn(&pid, "/bin/sh", NULL, NULL, argv, envp) == 0);
        again += status_of(pid);
    }
    printf(", spawn %d, system %d\n", again, WEXITSTATUS(system("exit 4")));
}

int main(void)
{
    struct dune_config config = {.flags = DUNE_SKIP_SELF_TEST};

    setvbuf(stdout, NULL, _IOFBF, 4096);
    if (dune_init(&config) != 0 || dune_enter() != 0) {
        fprintf(stderr, "%s\n", dune_error());
        return 98;
    }
    all("ring 0");
    CHECK(dune_set_syscall_handler(hand_on, 0) == 0);
    CHECK(dune_enter_user() == 0);
    all("ring 3, by ring 0");
    printf("handled %d\n", handled > 30);
    CHECK(dune_leave() == 0);
    all("outside");
    return 0;
}
