/* By what the kernel does for a thread that begins, is preempted, or ends. */
#ifndef ESCAPE_THREADS_H
#define ESCAPE_THREADS_H

#include "kit.h"

#include <linux/futex.h>

/* At a thread's end the kernel writes to these places, in the name of the thread. */
static void *ends_with_tid_in_vault(void *unused)
{
    (void)unused;
    harmless("set_tid_address, and the thread's end",
             CALL(SYS_set_tid_address, given.target + 512));
    CALL(SYS_exit, 0);
    return NULL;
}

struct robust {
    uint64_t next;
    int64_t offset;
    uint64_t pending;
};

/* Its list leads to a word in the vault that holds the thread's number: Linux would set a bit in
 * it. */
static void *ends_with_robust_list(void *way)
{
    static struct robust head;
    static uint64_t entry[2];
    uint32_t tid = (uint32_t)CALL(SYS_gettid), place = tid - given.tid_base;
    uint64_t word = given.tids + 4ull * (place < 1024 ? place : 0);

    head = (struct robust){(uint64_t)&head, 0, 0};
    switch ((uintptr_t)way) {
    case 0: /* the entry itself */
        head.next = word;
        break;
    case 1: /* by the distance between an entry and its word */
        head.next = (uint64_t)entry;
        entry[0] = (uint64_t)&head;
        head.offset = (int64_t)(word - (uint64_t)entry);
        break;
    case 2: /* the one that is being taken */
        head.pending = word;
        break;
    case 3: /* by an entry that leads there */
        head.next = (uint64_t)entry;
        entry[0] = word;
        break;
    case 4: /* a priority-inheriting one: the lowest bit of the pointer */
        head.next = word | 1;
        break;
    }
    harmless("set_robust_list, and the thread's end", CALL(SYS_set_robust_list, &head, 24));
    CALL(SYS_exit, 0);
    return NULL;
}

static void thread_ends(void)
{
    group = "a thread's end";
    for (uintptr_t way = 0; way < 6; way++) {
        pthread_t thread;
        pthread_attr_t attributes;

        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        if (pthread_create(&thread, &attributes,
                           way < 5 ? ends_with_robust_list : ends_with_tid_in_vault,
                           (void *)way) != 0)
            say(false, "pthread_create", "failed");
        usleep(100000);
    }
    harmless("set_tid_address of the main thread", CALL(SYS_set_tid_address, given.target + 512));
    CALL(SYS_set_tid_address, good);
}

/* ---- restartable sequences
 * -------------------------------------------------------------------------- */

struct rseq_area {
    uint32_t cpu_start, cpu;
    uint64_t section;
    uint32_t flags, node, mm_cid, end;
} __attribute__((aligned(32)));

struct rseq_section {
    uint32_t version, flags;
    uint64_t start, length, abort;
} __attribute__((aligned(32)));

static volatile unsigned aborted_in; /* the code segment that the abort handler ran in */

/* The signature that the kernel wants before an abort address. */
__asm__(".pushsection .text\n"
        "    .long 0x53053053\n"
        "escape_abort:\n"
        "    mov %cs, %eax\n"
        "    mov %eax, aborted_in(%rip)\n"
        "    ud2\n"
        ".popsection\n");
extern const char escape_abort[];

extern const ptrdiff_t __rseq_offset;

/* A critical section that covers the host side's code: if the kernel still knew this thread's area
 * (libc registered one, or this call does), preemption there would lead the host side here. */
static void restartable_sequence(void)
{
    static struct rseq_area own;
    struct rseq_area *libcs = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
    struct rseq_section section = {0, 0, given.vault, 1 << 20, (uint64_t)escape_abort};
    uint64_t kept = libcs->section;
    unsigned calls = 0;

    group = "rseq";
    aborted_in = 0;
    fails("registering an area", CALL(SYS_rseq, &own, sizeof own, 0, 0x53053053));
    fails("registering it in the vault", CALL(SYS_rseq, given.target, 32, 0, 0x53053053));
    own.section = libcs->section = (uint64_t)&section;
    for (; calls < 3000 && !aborted_in; calls++)
        CALL(calls % 2 ? SYS_sched_yield : SYS_getppid);
    own.section = 0;
    libcs->section = kept;
    say(aborted_in == 0, "abort_ip that leads the host side away", "not followed in %u calls",
        calls);
}

static void threads_all(void)
{
    thread_ends();
    restartable_sequence();
}

#endif
