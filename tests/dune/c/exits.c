/* What memory costs in exits, from ring 0: see open.h. */
#include "open.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define PAGE    4096ul
#define MIB     (1ul << 20)
#define AT      0x120000000000ul
#define RW      (PROT_READ | PROT_WRITE)
#define TOUCHES 1000

static struct dune_stats before;

static uint8_t *map(uint64_t at, uint64_t bytes, int prot)
{
    uint8_t *got = mmap((void *)at, bytes, prot,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);

    CHECK(got == (uint8_t *)at);
    return got;
}

static void begin(void)
{
    open_stats(); /* its own pages are there now */
    before = open_stats();
}

/* Exits since begin(), to user space and of all kinds. */
static void end(const char *what)
{
    struct dune_stats now = open_stats();

    printf("%s exits %lu\n", what, now.exits - before.exits);
    printf("%s calls %lu\n", what, now.syscalls - before.syscalls);
    printf("%s faults %lu\n", what, now.faults - before.faults);
    if (now.kvm_exits)
        printf("%s all %lu\n", what, now.kvm_exits - before.kvm_exits);
}

static void touches(void)
{
    volatile uint8_t *at = map(AT, TOUCHES * PAGE, RW);
    long sum = 0;

    madvise((void *)at, TOUCHES * PAGE, MADV_NOHUGEPAGE);
    open_ring0();
    at[0] = 1; /* the window */
    begin();
    for (int i = 1; i < TOUCHES; i++)
        at[i * PAGE] = 1;
    end("written");
    begin();
    for (int i = 0; i < TOUCHES; i++)
        sum += at[i * PAGE];
    end("read");
    EQUAL(sum, TOUCHES);
    open_leave();
}

static void windows(void)
{
    for (uint64_t i = 0; i < 20; i++)
        map(AT + i * 1024 * MIB, PAGE, RW);
    open_ring0();
    begin();
    for (uint64_t i = 0; i < 20; i++)
        *(volatile uint8_t *)(AT + i * 1024 * MIB) = 1;
    end("windows");
    open_leave();
}

/* Write, permit, run, again. */
static void execute(void)
{
    uint8_t *at = map(AT, 8 * MIB, RW);
    int sum = 0;

    open_ring0();
    EQUAL(mprotect(at, PAGE, RW), 0); /* its own code is there now */
    at[0] = 0;
    begin();
    for (int i = 0; i < 100; i++) {
        memcpy(at + 3 * PAGE, (uint8_t[]){0xb8, (uint8_t)i, 0, 0, 0, 0xc3}, 6);
        EQUAL(mprotect(at, 8 * MIB, PROT_READ | PROT_EXEC), 0);
        sum += ((int (*)(void))(at + 3 * PAGE))();
        EQUAL(mprotect(at, 8 * MIB, RW), 0);
    }
    end("flips");
    EQUAL(sum, 4950);
    CHECK(mmap(at, 8 * MIB, RW | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
    memset(at, 0xc3, 8 * MIB);
    begin();
    for (int i = 0; i < 2048; i++)
        ((void (*)(void))(at + i * PAGE))();
    end("run");
    at = mmap(NULL, MIB, RW | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); /* anywhere */
    CHECK(at != MAP_FAILED);
    memset(at, 0xc3, MIB);
    begin();
    for (int i = 0; i < 256; i++)
        ((void (*)(void))(at + i * PAGE))();
    end("found");
    open_leave();
}

static uint64_t deep(int frames)
{
    volatile uint8_t frame[3 * PAGE];

    frame[0] = (uint8_t)frames;
    return frames ? deep(frames - 1) + frame[0] : 0;
}

/* Ring 0's own stack grows under it, and under exceptions that a handler takes. */
static volatile int handled;

static bool skips(struct dune_tf *tf)
{
    handled++;
    tf->rip += 2; /* UD2 */
    return true;
}

static uint64_t deep_traps(int frames)
{
    volatile uint8_t frame[3 * PAGE];

    __asm__ volatile("ud2");
    frame[0] = (uint8_t)frames;
    return frames ? deep_traps(frames - 1) + frame[0] : 0;
}

static void stack(void)
{
    open_ring0();
    begin();
    CHECK(deep(100) > 0);
    end("stack");
    EQUAL(dune_set_trap_handler(6, skips, 0), 0);
    CHECK(deep_traps(400) > 0);
    EQUAL(handled, 401);
    open_leave();
}

/* ---- what KVM can't do, or not by itself ------------------------------------------------------
 */

static sigjmp_buf out;
static siginfo_t seen;

static void catches(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    seen = *info;
    siglongjmp(out, 1);
}

static void expect_bus(void)
{
    struct sigaction action = {.sa_sigaction = catches, .sa_flags = SA_SIGINFO | SA_NODEFER};

    EQUAL(sigaction(SIGBUS, &action, NULL), 0);
}

/* Mappings from before the entry that KVM can't read: they become readable where x86 lets them be
 * read; of secret memory it gets nothing. */
static void unreadable(void)
{
    uint8_t *at = map(AT, 2 * PAGE, RW), *secret = MAP_FAILED;
    int fd = (int)syscall(447 /* memfd_secret */, 0);

    memcpy(at, (uint8_t[]){0xb8, 42, 0, 0, 0, 0xc3}, 6);
    EQUAL(mprotect(at, PAGE, PROT_EXEC), 0);
    EQUAL(mprotect(at + PAGE, PAGE, PROT_WRITE), 0);
    if (fd >= 0 && ftruncate(fd, PAGE) == 0)
        secret = mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0);
    open_ring0();
    EQUAL(((int (*)(void))at)(), 42);
    *(volatile uint8_t *)(at + PAGE) = 7;
    EQUAL(*(volatile uint8_t *)(at + PAGE), 7);
    expect_bus();
    if (secret != MAP_FAILED) {
        if (sigsetjmp(out, 1) == 0)
            *(volatile uint8_t *)secret = 1;
        EQUAL(seen.si_signo, SIGBUS);
        EQUAL(seen.si_addr, secret);
    }
    printf("secret %d\n", secret != MAP_FAILED);
    open_leave();
}

/* More GiB in use than the CPU's physical addresses can name. */
static void narrow(void)
{
    struct dune_config config = {.physical_bits = 35};
    volatile int used = 0;

    for (uint64_t i = 0; i < 40; i++)
        map(AT + i * 1024 * MIB, PAGE, RW);
    EQUAL(dune_init(&config), 0);
    EQUAL(dune_enter(), 0);
    expect_bus();
    printf("begin %d\n", used); /* what this program itself needs has its windows from here on */
    if (sigsetjmp(out, 1) == 0)
        for (; used < 40; used++)
            *(volatile uint8_t *)(AT + used * 1024 * MIB) = 1;
    EQUAL(seen.si_signo, SIGBUS);
    EQUAL(seen.si_code, BUS_ADRERR);
    EQUAL(seen.si_addr, AT + used * 1024 * MIB);
    printf("windows %d\n", used);
    for (int i = 0; i < used; i++)
        EQUAL(*(volatile uint8_t *)(AT + i * 1024 * MIB), 1);
    open_leave();
}

int main(int argc, char **argv)
{
    static const struct open_case cases[] = {
        {"touches", touches},       {"windows", windows}, {"execute", execute}, {"stack", stack},
        {"unreadable", unreadable}, {"narrow", narrow},   {NULL, NULL},
    };

    return open_main(argc, argv, cases);
}
