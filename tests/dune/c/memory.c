/* Memory as Linux maps it: what works, and what exactly the signal says where it doesn't.
 * PROGRAM bare|dune CASE, see both.h. Addresses are fixed, so that both ways print the same. */
#include "tell.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

static volatile int faults;

/* ---- what the signal says -------------------------------------------------------------------- */

static int call(uint64_t at)
{
    return ((int (*)(void))at)();
}

/* mov $value, %eax; ret */
static void put_code(uint8_t *at, uint8_t value)
{
    memcpy(at, (uint8_t[]){0xb8, value, 0, 0, 0, 0xc3}, 6);
}

static void copy(uint64_t to, uint64_t from, uint64_t bytes)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

static void unmapped(void)
{
    catch (tell);
    map(AT, 4 * PAGE, RW, 0);
    CHECK(mprotect((void *)(AT + PAGE), PAGE, PROT_NONE) == 0);
    CHECK(munmap((void *)(AT + 2 * PAGE), PAGE) == 0);
    CHECK(mprotect((void *)(AT + 3 * PAGE), PAGE, PROT_READ) == 0);
    TRY(peek(0));
    TRY(poke(8));
    TRY(peek(AT + PAGE + 5));
    TRY(poke(AT + PAGE + 6));
    TRY(peek(AT + 2 * PAGE + 7));
    TRY(poke(AT + 2 * PAGE + 8));
    TRY(peek(AT + 3 * PAGE));
    TRY(poke(AT + 3 * PAGE + 9));
    TRY(peek8(AT + PAGE - 4));
    TRY(poke8(AT + PAGE - 4));
    TRY(peek8(AT + 3 * PAGE - 4));
    TRY(poke8(AT + 3 * PAGE - 4));
    TRY(copy(AT + PAGE - 16, AT, 32));
    TRY(copy(AT + 4 * PAGE - 16, AT, 32));
    TRY(copy(AT, AT + PAGE - 16, 32));
    TRY(peek(AT + 512 * 1024 * MIB)); /* a window that nothing is in */
    TRY(poke(AT + 513 * 1024 * MIB));
    TRY(peek(0x7ffffffff000));
    TRY(poke(0x7ffffffffffe));
    TRY(peek(0x800000000000));
    TRY(poke(0xdead000000000000));
    TRY(peek(0xffff888000000000));
    TRY(poke(0xffffffff81000000));
    TRY(peek(0xffffffffff600000));
    for (int i = 0; i < 100; i++) /* the same page, there and not there */
        CHECK(mprotect((void *)AT, PAGE, i % 2 ? RW : PROT_NONE) == 0 &&
              (i % 2 == 0 || peek(AT) < 255));
    TRY(peek(AT));
}

static void fetches(void)
{
    catch (tell);
    map(AT, 4 * PAGE, RW, 0);
    put_code((uint8_t *)AT, 42);
    map(AT + 8 * PAGE, PAGE, PROT_NONE, 0);
    TRY(call(0));
    TRY(call(AT));
    TRY(call(AT + 8 * PAGE));
    TRY(call(AT + 16 * PAGE));
    TRY(call(AT + 700 * 1024 * MIB));
    TRY(call(0x7ffffffff000));
    TRY(call(0x800000000000));
    TRY(call(0xffffffff81000000));
    CHECK(mprotect((void *)AT, PAGE, RX) == 0);
    TRY(printf("  %d\n", call(AT)));
    /* An instruction that runs off the page's end, to where nothing may be executed. */
    memcpy((void *)(AT + 2 * PAGE - 1), (uint8_t[]){0xb8}, 1);
    CHECK(mprotect((void *)(AT + PAGE), PAGE, RX) == 0);
    TRY(call(AT + 2 * PAGE - 1));
    CHECK(munmap((void *)(AT + 2 * PAGE), PAGE) == 0);
    TRY(call(AT + 2 * PAGE - 1));
}

/* ---- files ----------------------------------------------------------------------------------- */

static void beyond(void)
{
    int fd = memfd_create("file", 0);
    uint8_t *at = (uint8_t *)AT;

    catch (tell);
    CHECK(fd >= 0 && ftruncate(fd, PAGE + 10) == 0);
    CHECK(mmap(at, 4 * PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) == at);
    TRY(poke(AT));
    TRY(poke(AT + PAGE + 100));
    TRY(peek(AT + 2 * PAGE + 5));
    TRY(poke(AT + 3 * PAGE));
    CHECK(ftruncate(fd, 0) == 0);
    TRY(peek(AT));
    CHECK(ftruncate(fd, 4 * PAGE) == 0);
    TRY(printf("  %d %d\n", peek(AT), peek(AT + 3 * PAGE)));
    CHECK(mprotect(at, 4 * PAGE, RX) == 0 && ftruncate(fd, PAGE) == 0);
    TRY(call(AT + PAGE));
    TRY(write(1, at + 2 * PAGE, 1) < 0 && errno == EFAULT ? (void)0 : abort());
}

static void memfd_code(void)
{
    int fd = memfd_create("code", 0);
    uint8_t *write_at = (uint8_t *)AT, *run_at = (uint8_t *)(AT + MIB);

    catch (tell);
    CHECK(fd >= 0 && ftruncate(fd, PAGE) == 0);
    CHECK(mmap(write_at, PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) == write_at);
    CHECK(mmap(run_at, PAGE, RX, MAP_SHARED | MAP_FIXED, fd, 0) == run_at);
    for (int i = 0; i < 50; i++) {
        put_code(write_at, (uint8_t)i);
        CHECK(call((uint64_t)run_at) == i);
    }
    TRY(call((uint64_t)write_at));
    TRY(poke((uint64_t)run_at));
}

static void one_permission(void)
{
    catch (tell);
    map(AT, PAGE, PROT_WRITE, 0);
    TRY(poke(AT));
    TRY(printf("  %d\n", peek(AT)));
    TRY(call(AT));
    map(AT + PAGE, PAGE, RW, 0);
    put_code((uint8_t *)(AT + PAGE), 5);
    CHECK(mprotect((void *)(AT + PAGE), PAGE, PROT_EXEC) == 0);
    TRY(printf("  %d\n", call(AT + PAGE)));
    TRY(poke(AT));
}

/* ---- calls ----------------------------------------------------------------------------------- */

#define SAY(what) \
    do { \
        errno = 0; \
        long result_ = (long)(what); \
        printf("%s: %lx %d\n", #what, result_, errno); \
    } while (0)

static void calls(void)
{
    void *at = (void *)AT;
    uint8_t *bytes = at;
    uint64_t far = AT + 1024 * 1024 * MIB;

    SAY(mmap(at, 0, RW, ANON | MAP_FIXED, -1, 0));
    SAY(mmap(at + 1, PAGE, RW, ANON | MAP_FIXED, -1, 0));
    SAY(mmap(at, PAGE, RW, MAP_FIXED, -1, 0));
    SAY(mmap(at, PAGE, RW, MAP_PRIVATE | MAP_FIXED, 777, 0));
    SAY(mmap((void *)0xffffffff80000000, PAGE, RW, ANON | MAP_FIXED, -1, 0));
    SAY(mmap(at, -PAGE, RW, ANON | MAP_FIXED, -1, 0));
    SAY(mmap(at, 8 * PAGE, RW, ANON | MAP_FIXED, -1, 0));
    SAY(mmap(at, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0));
    memset(at, 1, 8 * PAGE);
    SAY(munmap(at + 2, PAGE));
    SAY(munmap(at + 2 * PAGE, PAGE));
    SAY(munmap(at + 2 * PAGE, PAGE));
    SAY(mprotect(at, 4 * PAGE, PROT_READ));
    SAY(mprotect(at + 2 * PAGE, PAGE, RW));
    SAY(mprotect(at, PAGE, 0x40));
    SAY(mprotect(at, 2 * PAGE, RW));
    SAY(madvise(at, PAGE, MADV_DONTNEED));
    SAY(bytes[0] + 16 * bytes[PAGE]);
    SAY(madvise(at, PAGE, 12345));
    SAY(mremap(at + 3 * PAGE, 5 * PAGE, 6 * PAGE, 0));
    SAY(mremap(at + 3 * PAGE, 5 * PAGE, 20 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)far));
    SAY(((uint8_t *)far)[5 * PAGE - 1] + ((uint8_t *)far)[5 * PAGE]);
    SAY(mremap(at + 3 * PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    SAY(mremap((void *)far, 20 * PAGE, PAGE, 0));
    SAY(mremap((void *)far, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | 4, (void *)(far + MIB)));
    SAY(((uint8_t *)far)[0] * 16 + ((uint8_t *)(far + MIB))[0]);
    SAY(syscall(SYS_pkey_mprotect, at, PAGE, RW, -1));
    SAY(syscall(SYS_pkey_mprotect, at, PAGE, RW, 9));
    SAY(msync(at, PAGE, MS_SYNC));
    SAY(mlock(at, PAGE));
    SAY(munlock(at, PAGE));
    SAY(syscall(SYS_brk, 1) == syscall(SYS_brk, 0));
}

static void heap(void)
{
    uint8_t *start = sbrk(0), *at;

    catch (tell);
    for (int i = 1; i <= 64; i++) {
        CHECK(sbrk(MIB) == start + (i - 1) * MIB);
        memset(start + (i - 1) * MIB, i, MIB);
    }
    for (int i = 1; i <= 64; i++)
        CHECK(start[(i - 1) * MIB + 77] == i);
    CHECK(sbrk(-(long)(63 * MIB)) == start + 64 * MIB && sbrk(0) == start + MIB);
    CHECK(sbrk(MIB) == start + MIB && start[MIB] == 0 && start[0] == 1);
    for (int i = 0; i < 200; i++) {
        at = malloc(300000);
        memset(at, i, 300000);
        free(at);
    }
    printf("the heap grew, shrank and grew\n");
}

/* Much memory, in many windows, sparse. */
static void sparse(void)
{
    for (uint64_t i = 0; i < 40; i++) {
        uint64_t at = AT + i * 3 * 1024 * MIB + i * 5 * MIB;

        map(at, 16 * MIB, RW, MAP_NORESERVE);
        memset((void *)(at + i * PAGE), (int)i + 1, 3 * PAGE);
    }
    for (uint64_t i = 0; i < 40; i++) {
        uint64_t at = AT + i * 3 * 1024 * MIB + i * 5 * MIB;

        CHECK(peek(at + i * PAGE + 2 * PAGE) == i + 1 && peek(at + i * PAGE + 3 * PAGE) == 0);
        CHECK(munmap((void *)at, 16 * MIB) == 0);
    }
    map(AT + 1023 * MIB, 2 * MIB, RW, 0); /* over a window's border */
    memset((void *)(AT + 1023 * MIB), 3, 2 * MIB);
    poke8(AT + 1024 * MIB - 4);
    CHECK(peek(AT + 1024 * MIB - 4) == 7 && peek(AT + 1024 * MIB) == 0);
    printf("found as left\n");
}

static void hugetlb(void)
{
    int flags = ANON | MAP_HUGETLB | MAP_FIXED;

    catch (tell);
    if (mmap((void *)AT, 4 * MIB, RW, flags, -1, 0) == MAP_FAILED)
        printf("none reserved: %d\n", errno);
    else
        TRY(poke(AT + 3 * MIB));
    SAY(mmap((void *)(AT + 64 * MIB), 4 * MIB, RW, flags | MAP_NORESERVE, -1, 0));
    TRY(poke(AT + 64 * MIB)); /* with none free: SIGBUS */
}

/* What the kernel does to pages behind the guest's back. */
static void advice(void)
{
    uint64_t bytes = 16 * MIB;
    uint64_t *at = (uint64_t *)map(AT, bytes, RW, 0), sum = 0;
    int fd = memfd_create("pages", 0);

    catch (tell);
    SAY(madvise(at, bytes, MADV_HUGEPAGE));
    for (uint64_t i = 0; i < bytes / 8; i++)
        at[i] = i;
    SAY(madvise((uint8_t *)at + 4 * MIB, 2 * MIB, MADV_DONTNEED));
    SAY(madvise((uint8_t *)at + 8 * MIB + PAGE, PAGE, MADV_DONTNEED));
    SAY(madvise(at, bytes, 25)); /* MADV_COLLAPSE */
    SAY(madvise(at, bytes, MADV_PAGEOUT));
    SAY(madvise(at, bytes, MADV_COLD));
    for (uint64_t i = 0; i < bytes / 8; i++)
        sum += at[i];
    printf("%lx\n", sum);
    SAY(madvise((uint8_t *)at + MIB, 2 * PAGE, 102)); /* MADV_GUARD_INSTALL, Linux 6.13 */
    TRY(peek(AT + MIB + PAGE));
    TRY(poke(AT + MIB));
    SAY(madvise((uint8_t *)at + MIB, 2 * PAGE, 103));
    TRY(poke(AT + MIB));
    TRY(printf("  %d\n", peek(AT + MIB + 8)));
    CHECK(ftruncate(fd, MIB) == 0);
    CHECK(mmap(at, MIB, RW, MAP_SHARED | MAP_FIXED, fd, 0) == at);
    memset(at, 5, MIB);
    SAY(madvise((uint8_t *)at + PAGE, PAGE, MADV_REMOVE));
    TRY(printf("  %d %d\n", peek(AT), peek(AT + PAGE)));
    SAY(pwrite(fd, "x", 1, PAGE));
    TRY(printf("  %d\n", peek(AT + PAGE)));
}

static volatile int finished;

static void *verify(void *arg)
{
    volatile uint64_t *at = (uint64_t *)AT;

    (void)arg;
    while (!finished)
        for (uint64_t i = 0; i < 8 * MIB / 8; i += 61) {
            if (at[i] != i)
                _exit(95);
            at[i] = i;
        }
    return NULL;
}

/* The same while another thread uses them. */
static void moving(void)
{
    uint64_t *at = (uint64_t *)map(AT, 8 * MIB, RW, 0);
    pthread_t thread[2];

    for (uint64_t i = 0; i < 8 * MIB / 8; i++)
        at[i] = i;
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&thread[i], NULL, verify, NULL) == 0);
    for (int i = 0; i < 60; i++) {
        madvise(at, 8 * MIB, i % 3 ? MADV_PAGEOUT : 25);
        CHECK(mprotect(at, 8 * MIB, RW | (i % 2 ? PROT_EXEC : 0)) == 0);
        CHECK(mremap((uint8_t *)at + 8 * MIB, 0, PAGE, 0) == MAP_FAILED);
        madvise((uint8_t *)at + MIB, MIB, i % 2 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    }
    finished = 1;
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    printf("all there\n");
}

/* ---- stacks ---------------------------------------------------------------------------------- */

static uint64_t deep(int frames)
{
    volatile uint8_t frame[3 * PAGE];

    frame[0] = (uint8_t)frames;
    return frames ? deep(frames - 1) + frame[0] : 0;
}

static void *deep_thread(void *arg)
{
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};

    sigaltstack(&stack, NULL);
    TRY(deep(*(int *)arg));
    return NULL;
}

static void overflown(int number, siginfo_t *info, void *context)
{
    const greg_t *reg = ((ucontext_t *)context)->uc_mcontext.gregs;
    uint64_t distance = (uint64_t)reg[REG_RSP] - (uint64_t)info->si_addr + 4 * PAGE;

    printf("  signal %d code %d error %llx, %s the stack pointer\n", number, info->si_code,
           reg[REG_ERR] & ~1ll, distance < 8 * PAGE ? "by" : "far from");
    siglongjmp(out, 1);
}

static void stacks(void)
{
    struct rlimit limit = {4 * MIB, 8 * MIB};
    pthread_t thread;
    int few = 20, many = 1000;

    catch (tell);
    printf("deep: %d\n", deep(500) > 0); /* 6 MiB */
    CHECK(setrlimit(RLIMIT_STACK, &limit) == 0);
    catch (overflown);
    TRY(deep(5000));
    TRY(deep(10));
    CHECK(pthread_create(&thread, NULL, deep_thread, &few) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(pthread_create(&thread, NULL, deep_thread, &many) == 0 &&
          pthread_join(thread, NULL) == 0);
    catch (tell);
    map(AT + 64 * MIB, PAGE, RW, MAP_GROWSDOWN);
    TRY(poke(AT + 64 * MIB - 5 * PAGE));
    TRY(peek(AT + 64 * MIB - 6 * PAGE - 1));
}

/* ---- write xor execute ----------------------------------------------------------------------- */

static void write_execute(void)
{
    uint8_t *at = map(AT, 600 * PAGE, RW, 0), *moved = (uint8_t *)(AT + 256 * MIB);

    catch (tell);
    for (int i = 0; i < 100; i++) {
        CHECK(mprotect(at, 600 * PAGE, RW) == 0);
        put_code(at + 513 * PAGE, (uint8_t)i);
        CHECK(mprotect(at, 600 * PAGE, RX) == 0);
        CHECK(call(AT + 513 * PAGE) == i);
    }
    TRY(poke(AT));
    CHECK(mprotect(at + 512 * PAGE, 10 * PAGE, RW) == 0);
    TRY(call(AT + 513 * PAGE));
    CHECK(mprotect(at + 512 * PAGE, 10 * PAGE, RW | PROT_EXEC) == 0);
    TRY(printf("  %d\n", call(AT + 513 * PAGE)));
    put_code(at + 513 * PAGE, 77);
    TRY(printf("  %d\n", call(AT + 513 * PAGE)));
    CHECK(mremap(at + 512 * PAGE, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved) ==
          moved);
    TRY(call(AT + 513 * PAGE));
    TRY(printf("  %d\n", call((uint64_t)moved + PAGE)));
    map(AT + 512 * PAGE, 10 * PAGE, RW, 0);
    put_code(at + 513 * PAGE, 3);
    TRY(call(AT + 513 * PAGE));
    map((uint64_t)moved, 10 * PAGE, RW, 0);
    put_code(moved + PAGE, 3);
    TRY(call((uint64_t)moved + PAGE));
    CHECK(munmap(at, 600 * PAGE) == 0);
    map(AT, 600 * PAGE, RW, 0);
    memset(at, 0xc3, 600 * PAGE);
    TRY(call(AT));
    CHECK(mprotect(at, 600 * PAGE, PROT_NONE) == 0);
    TRY(call(AT + PAGE));
    CHECK(mmap(at, PAGE, RW | PROT_EXEC, ANON | MAP_FIXED, -1, 0) == at);
    put_code(at, 9);
    TRY(printf("  %d\n", call(AT)));
    TRY(call(AT + PAGE));
}

/* ---- threads --------------------------------------------------------------------------------- */

static __thread sigjmp_buf own_out;
static volatile int stop;

static void count(int number, siginfo_t *info, void *context)
{
    (void)context;
    if (number != SIGSEGV || info->si_code != SEGV_ACCERR ||
        (uint64_t)info->si_addr - AT >= 16 * PAGE)
        _exit(97);
    __atomic_fetch_add(&faults, 1, __ATOMIC_RELAXED);
    siglongjmp(own_out, 1);
}

static void *use(void *arg)
{
    volatile uint64_t *word = (uint64_t *)(AT + 8 * PAGE);
    volatile long done = 0;

    (void)arg;
    while (!stop) {
        if (sigsetjmp(own_out, 1) == 0) {
            __atomic_fetch_add(word, 1, __ATOMIC_RELAXED);
            done++;
            if (call(AT) != 42)
                _exit(96);
        }
    }
    return (void *)done;
}

static void race(void)
{
    pthread_t thread[3];
    struct timespec begin, now;
    long done = 0;

    map(AT, 16 * PAGE, RW, 0);
    put_code((uint8_t *)AT, 42);
    catch (count);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&thread[i], NULL, use, NULL) == 0);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        for (int i = 0; i < 20; i++) {
            CHECK(mprotect((void *)AT, PAGE, RX) == 0);
            CHECK(mprotect((void *)(AT + 8 * PAGE), PAGE, PROT_READ) == 0);
            CHECK(mprotect((void *)AT, PAGE, RW) == 0);
            CHECK(mprotect((void *)(AT + 8 * PAGE), PAGE, RW) == 0);
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - begin.tv_sec < 3);
    stop = 1;
    for (int i = 0; i < 3; i++) {
        void *result;

        CHECK(pthread_join(thread[i], &result) == 0);
        done += (long)result;
    }
    CHECK(*(uint64_t *)(AT + 8 * PAGE) == (uint64_t)done && done > 0 && faults > 0);
    catch (tell);
    TRY(call(AT)); /* nothing is left executable */
    printf("all additions counted\n");
}

int main(int argc, char **argv)
{
    static const struct both_case cases[] = {
        {"unmapped", unmapped},
        {"fetches", fetches},
        {"beyond", beyond},
        {"memfd", memfd_code},
        {"one-permission", one_permission},
        {"calls", calls},
        {"heap", heap},
        {"sparse", sparse},
        {"hugetlb", hugetlb},
        {"advice", advice},
        {"moving", moving},
        {"stacks", stacks},
        {"write-execute", write_execute},
        {"race", race},
        {NULL, NULL},
    };

    return tell_main(argc, argv, cases);
}
