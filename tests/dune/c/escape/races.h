/* By changing what was checked before it is used. */
#ifndef ESCAPE_RACES_H
#define ESCAPE_RACES_H

#include "kit.h"

#include <sys/socket.h>
#include <sys/uio.h>

#define RACE_NS 700000000ull /* each: thousands of tries, emulated hundreds */

static struct {
    volatile bool stop;
    volatile uint64_t *word; /* flips between the two values */
    uint64_t fine, bad;
} racer;

static void *flip(void *unused)
{
    (void)unused;
    while (!racer.stop) {
        *racer.word = racer.bad;
        for (int n = 0; n < 50; n++)
            __builtin_ia32_pause();
        *racer.word = racer.fine;
        for (int n = 0; n < 50; n++)
            __builtin_ia32_pause();
    }
    return NULL;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Runs attempt() while *word flips. It returns what the call said; reads from `made` are searched
 * for the secret. */
static void race(const char *what, volatile uint64_t *word, uint64_t fine, uint64_t bad,
                 long (*attempt)(void))
{
    unsigned long calls = 0, good_ones = 0;
    uint64_t end = now_ns() + RACE_NS;
    bool leak = false;
    pthread_t thread;

    memset(good, 0, 16 * PAGE);
    racer.stop = false;
    racer.word = word;
    racer.fine = fine;
    racer.bad = bad;
    if (pthread_create(&thread, NULL, flip, NULL) != 0) {
        say(false, what, "no thread");
        return;
    }
    while (now_ns() < end && !leak) {
        good_ones += attempt() >= 0;
        calls++;
        leak = leaked(good + 4 * PAGE, 4 * PAGE);
    }
    racer.stop = true;
    pthread_join(thread, NULL);
    *word = fine;
    say(!leak, what, leak ? "the secret was read" : "%lu calls, %lu went well", calls, good_ones);
}

static struct iovec raced_iovec[2];
static struct msghdr raced_message;
static char raced_path[64];

static long race_readv(void)
{
    return CALL(SYS_preadv, a_file, raced_iovec, 2, 0);
}

/* What was written is read back to where race() looks. */
static long race_writev(void)
{
    long result = CALL(SYS_pwritev, a_file, raced_iovec, 2, 0);

    CALL(SYS_pread64, a_file, good + 4 * PAGE, 256, 0);
    return result;
}

static long race_sendmsg(void)
{
    long result = CALL(SYS_sendmsg, a_socket, &raced_message, MSG_DONTWAIT);

    CALL(SYS_recvfrom, other_socket, good + 4 * PAGE, 256, MSG_DONTWAIT, 0, 0);
    return result;
}

static long race_recvmsg(void)
{
    CALL(SYS_write, other_socket, good, 64);
    return CALL(SYS_recvmsg, a_socket, &raced_message, MSG_DONTWAIT);
}

static long race_vmsplice(void)
{
    long result = CALL(SYS_vmsplice, a_pipe[1], raced_iovec, 1, 2);

    CALL(SYS_read, a_pipe[0], good + 4 * PAGE, 256);
    return result;
}

/* The path flips between a harmless file and the memory of this process. */
static long race_open(void)
{
    long fd = CALL(SYS_open, raced_path, O_RDWR);

    if (fd < 0)
        return fd;
    CALL(SYS_pread64, fd, good + 4 * PAGE, 64, given.target);
    return CALL(SYS_close, fd);
}

static char link_path[64];

static long race_link(void)
{
    long fd = CALL(SYS_open, link_path, O_RDWR);

    if (fd < 0)
        return fd;
    CALL(SYS_pread64, fd, good + 4 * PAGE, 64, given.target);
    return CALL(SYS_close, fd);
}

/* Flips a symbolic link by rename(). */
static void *relink(void *unused)
{
    char other[80];

    (void)unused;
    snprintf(other, sizeof other, "%s-new", link_path);
    for (unsigned n = 0; !racer.stop; n++) {
        unlink(other);
        if (symlink(n % 2 ? "/proc/self/mem" : "/dev/null", other) != 0)
            continue;
        rename(other, link_path);
    }
    unlink(other);
    return NULL;
}

static void race_symlinks(void)
{
    uint64_t end = now_ns() + RACE_NS;
    unsigned long calls = 0, opened = 0;
    bool leak = false;
    pthread_t thread;

    snprintf(link_path, sizeof link_path, "/tmp/escape-race-%d", getpid());
    racer.stop = false;
    if (pthread_create(&thread, NULL, relink, NULL) != 0)
        return;
    while (now_ns() < end && !leak) {
        opened += race_link() >= 0;
        calls++;
        leak = leaked(good + 4 * PAGE, PAGE);
    }
    racer.stop = true;
    pthread_join(thread, NULL);
    unlink(link_path);
    say(!leak, "open of a symbolic link", leak ? "the secret was read" : "%lu calls, %lu opened",
        calls, opened);
}

static void races_all(void)
{
    uint64_t fine = U(good), bad = given.target + 128, words[2];
    volatile uint64_t *first = (volatile uint64_t *)&raced_iovec[0].iov_base;
    volatile uint64_t *second = (volatile uint64_t *)&raced_iovec[1].iov_base;

    group = "race";
    /* First those that would read the secret, then those that would overwrite it. */
    raced_iovec[0] = (struct iovec){good, 64};
    raced_iovec[1] = (struct iovec){good + 128, 64};
    race("pwritev, the first base changes", first, fine, bad, race_writev);
    race("pwritev, the second base changes", second, fine, bad, race_writev);
    race("vmsplice, the base changes", first, fine, bad, race_vmsplice);
    raced_message = (struct msghdr){.msg_iov = raced_iovec, .msg_iovlen = 1};
    race("sendmsg, the base changes", first, fine, bad, race_sendmsg);
    race("sendmsg, the iovec changes", (volatile uint64_t *)&raced_message.msg_iov, U(raced_iovec),
         bad, race_sendmsg);
    race("preadv, the first base changes", first, fine, bad, race_readv);
    race("preadv, the second base changes", second, fine, bad, race_readv);
    race("recvmsg, the base changes", first, fine, bad, race_recvmsg);
    raced_message.msg_controllen = 64;
    race("recvmsg, the control buffer changes", (volatile uint64_t *)&raced_message.msg_control,
         fine, bad, race_recvmsg);
    raced_iovec[0] = (struct iovec){(void *)(given.vault - GIB - 64), 64};
    race("pwritev, a length changes", (volatile uint64_t *)&raced_iovec[0].iov_len, 64, GIB * 2,
         race_writev);
    strcpy(raced_path, "/proc/self/mem"); /* the last word flips between "elf/mem" and "elf/exe" */
    memcpy(&words[0], "elf/exe", 8);
    memcpy(&words[1], "elf/mem", 8);
    race("open, the path changes", (volatile uint64_t *)(raced_path + 7), words[0], words[1],
         race_open);
    race_symlinks();
}

#endif
