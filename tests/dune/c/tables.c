/* Page tables from ring 0: map, protect, unmap, follow, lookup, walk, clone, switch. */
#include "open.h"

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>

#define PAGES       64
#define BYTES       (PAGES * 4096ull)
#define STACK_BYTES 65536
#define ALIAS       0x5000000000ull /* a window that nothing lies in */
#define RWU         (DUNE_PTE_READ | DUNE_PTE_WRITE | DUNE_PTE_USER)

static uint8_t user_stack[STACK_BYTES] __attribute__((aligned(4096)));
static volatile uint8_t *memory;
static volatile long faults;
static volatile uint64_t fault_at, fault_error;

static void start(void)
{
    memory = (volatile uint8_t *)mmap(NULL, BYTES, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    for (uint64_t i = 0; i < PAGES; i++)
        memory[i * 4096] = (uint8_t)i;
    open_ring0();
}

/* Lets the access go on: what appel's programs do. */
static bool opens(struct dune_tf *tf)
{
    faults = faults + 1;
    fault_at = tf->cr2;
    fault_error = tf->error;
    return dune_protect(NULL, tf->cr2 & ~4095ull, 4096, RWU) == 0;
}

static void alias(void)
{
    volatile uint8_t *seen = (volatile uint8_t *)ALIAS;
    struct dune_entry entry;

    start();
    EQUAL(dune_lookup(NULL, ALIAS, &entry), -ENOENT);
    EQUAL(dune_map(NULL, ALIAS, (uint64_t)memory, BYTES, RWU), 0);
    for (uint64_t i = 0; i < PAGES; i++)
        EQUAL(seen[i * 4096], i);
    seen[5 * 4096] = 200;
    EQUAL(memory[5 * 4096], 200);
    memory[6 * 4096] = 201;
    EQUAL(seen[6 * 4096], 201);
    EQUAL(dune_lookup(NULL, ALIAS + 3 * 4096 + 5, &entry), 0);
    EQUAL(entry.va, ALIAS + 3 * 4096);
    EQUAL(entry.source, (uint64_t)memory + 3 * 4096);
    EQUAL(entry.bytes, 4096);
    EQUAL(entry.flags & RWU, RWU);
    open_leave();
}

static void protect(void)
{
    start();
    EQUAL(dune_set_trap_handler(14, opens, 0), 0);
    EQUAL(dune_protect(NULL, (uint64_t)memory, BYTES, DUNE_PTE_READ | DUNE_PTE_USER), 0);
    for (uint64_t i = 0; i < PAGES; i++) {
        EQUAL(memory[i * 4096], i); /* reading is allowed */
        EQUAL(faults, i);
        memory[i * 4096 + 9] = 1;
        EQUAL(faults, i + 1);
        EQUAL(fault_at, memory + i * 4096 + 9);
        EQUAL(fault_error, 3);
    }
    faults = 0;
    EQUAL(dune_protect(NULL, (uint64_t)memory, BYTES, DUNE_PTE_WRITE | DUNE_PTE_USER), 0);
    EQUAL(memory[4096], 1); /* READ is gone, so that every access faults */
    EQUAL(faults, 1);
    EQUAL(fault_error, 0);
    EQUAL(dune_follow(NULL, (uint64_t)memory, BYTES), 0);
    for (uint64_t i = 0; i < PAGES; i++)
        memory[i * 4096 + 9] = 2;
    EQUAL(faults, 1);
    open_leave();
}

static bool maps(struct dune_tf *tf)
{
    faults = faults + 1;
    return dune_follow(NULL, tf->cr2 & ~4095ull, 4096) == 0;
}

static void unmap(void)
{
    start();
    EQUAL(dune_set_trap_handler(14, maps, 0), 0);
    EQUAL(dune_unmap(NULL, (uint64_t)memory + 4096, 4096), 0);
    EQUAL(memory[0], 0);
    EQUAL(faults, 0);
    EQUAL(memory[4096], 1);
    EQUAL(faults, 1);
    open_leave();
}

/* Ring 3 doesn't get what isn't marked USER, ring 0 does. */
static void reads(void *arg)
{
    dune_return(*(volatile uint8_t *)arg);
}

static void supervisor_pages(void)
{
    start();
    memory[4096] = 77;
    EQUAL(dune_set_trap_handler(14, opens, 0), 0);
    EQUAL(dune_protect(NULL, (uint64_t)memory, BYTES, DUNE_PTE_READ | DUNE_PTE_WRITE), 0);
    EQUAL(memory[4096], 77);
    EQUAL(faults, 0);
    EQUAL(dune_run_user(reads, (void *)(memory + 4096), user_stack + STACK_BYTES), 77);
    EQUAL(faults, 1);
    EQUAL(fault_error, 5);
    open_leave();
}

/* A fetch from a page without EXEC is the handler's, too. */
static bool skips_call(struct dune_tf *tf)
{
    faults = faults + 1;
    fault_error = tf->error;
    tf->rip = *(uint64_t *)tf->rsp;
    tf->rsp += 8;
    return true;
}

static void execute(void)
{
    static const uint8_t code[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov $42, %eax; ret */
    int (*function)(void);

    start();
    EQUAL(dune_set_trap_handler(14, skips_call, 0), 0);
    memcpy((void *)memory, code, sizeof(code));
    function = (int (*)(void))(void *)memory;
    EQUAL(dune_protect(NULL, (uint64_t)memory, 4096, RWU), 0);
    function();
    EQUAL(faults, 1);
    EQUAL(fault_error & 0x10, 0x10);
    EQUAL(dune_protect(NULL, (uint64_t)memory, 4096, RWU | DUNE_PTE_EXEC), 0);
    EQUAL(function(), 42);
    EQUAL(faults, 1);
    open_leave();
}

struct tally {
    long pages, accessed, dirty;
};

static int counts(const struct dune_entry *entry, void *arg)
{
    struct tally *tally = arg;

    tally->pages += (long)(entry->bytes / 4096);
    tally->accessed += (entry->flags & DUNE_PTE_ACCESSED) != 0;
    tally->dirty += (entry->flags & DUNE_PTE_DIRTY) != 0;
    return 0;
}

static int stops(const struct dune_entry *entry, void *arg)
{
    (void)entry;
    return --*(int *)arg == 0 ? 123 : 0;
}

static struct tally walk(bool clear)
{
    struct tally tally = {0, 0, 0};

    EQUAL(dune_walk(NULL, (uint64_t)memory, BYTES, counts, &tally, clear), 0);
    return tally;
}

static void walks(void)
{
    int left = 5;

    start();
    EQUAL(dune_protect(NULL, (uint64_t)memory, BYTES, RWU), 0);
    walk(true);
    EQUAL(walk(false).accessed, 0);
    EQUAL(walk(false).dirty, 0);
    EQUAL(walk(false).pages, PAGES);
    for (uint64_t i = 0; i < 10; i++)
        (void)*(volatile uint8_t *)(memory + i * 4096);
    for (uint64_t i = 20; i < 27; i++)
        *(volatile uint8_t *)(memory + i * 4096) = 1;
    EQUAL(walk(false).accessed, 17);
    EQUAL(walk(true).dirty, 7);
    EQUAL(walk(false).accessed, 0);
    *(volatile uint8_t *)memory = 1;
    EQUAL(walk(false).dirty, 1);
    EQUAL(dune_walk(NULL, (uint64_t)memory, BYTES, stops, &left, false), 123);
    open_leave();
}

/* Two views of one place: what roots are for. */
static void roots(void)
{
    volatile uint8_t *at = (volatile uint8_t *)ALIAS;
    struct dune_root *first, *second, *third;
    struct dune_stats before, after;

    start();
    first = dune_root();
    CHECK(first != NULL);
    EQUAL(dune_map(NULL, ALIAS, (uint64_t)memory, 4096, RWU), 0);
    EQUAL(dune_clone_root(NULL, &second), 0);
    EQUAL(dune_map(second, ALIAS, (uint64_t)memory + 4096, 4096, RWU), 0);
    EQUAL(at[0], 0);
    EQUAL(dune_switch_root(second), 0);
    EQUAL(dune_root(), second);
    EQUAL(at[0], 1);
    EQUAL(dune_switch_root(first), 0);
    EQUAL(at[0], 0);
    before = open_stats();
    for (int i = 0; i < 1000; i++) {
        EQUAL(dune_switch_root(i % 2 ? first : second), 0);
        EQUAL(at[0], i % 2 ? 0 : 1);
    }
    after = open_stats();
    printf("exits_per_1000_root_switches %llu\n", (unsigned long long)(after.exits - before.exits));
    EQUAL(after.exits - before.exits - (after.interrupted - before.interrupted), 0);
    EQUAL(dune_clone_root(second, &third), 0);
    EQUAL(dune_free_root(third), 0);
    EQUAL(dune_switch_root(second), 0);
    EQUAL(dune_free_root(second), -EBUSY);
    EQUAL(dune_switch_root(first), 0);
    EQUAL(dune_free_root(second), 0);
    printf("libc works, too\n");
    open_leave();
}

/* A page that another thread reads all the time is closed: it must notice. */
static volatile int reading, stop;

static bool stops_reader(struct dune_tf *tf)
{
    faults = faults + 1;
    stop = 1;
    return dune_follow(NULL, tf->cr2 & ~4095ull, 4096) == 0;
}

static void *reader(void *arg)
{
    (void)arg;
    EQUAL(dune_enter(), 0);
    while (!stop) {
        (void)memory[4096];
        reading = 1;
    }
    EQUAL(dune_leave(), 0);
    return NULL;
}

static void other_threads(void)
{
    struct dune_stats before, after;
    pthread_t thread;

    start();
    EQUAL(dune_set_trap_handler(14, stops_reader, 0), 0);
    open_leave();
    EQUAL(pthread_create(&thread, NULL, reader, NULL), 0);
    EQUAL(dune_enter(), 0);
    while (!reading)
        continue;
    before = open_stats();
    EQUAL(dune_protect(NULL, (uint64_t)memory + 4096, 4096, DUNE_PTE_WRITE), 0);
    after = open_stats();
    open_leave();
    EQUAL(pthread_join(thread, NULL), 0);
    EQUAL(faults, 1);
    CHECK(after.syscalls > before.syscalls);
}

static void refusals(void)
{
    struct dune_entry entry;
    uint64_t idt[2] = {0, 0}, vault;

    start();
    __asm__ volatile("sidt 6(%0)" : : "r"(idt) : "memory");
    vault = idt[1] & ~((1ull << 30) - 1);
    EQUAL(dune_map(NULL, ALIAS + 1, (uint64_t)memory, 4096, RWU), -EINVAL);
    EQUAL(dune_map(NULL, ALIAS, (uint64_t)memory, 100, RWU), -EINVAL);
    EQUAL(dune_map(NULL, vault, (uint64_t)memory, 4096, RWU), -EPERM);
    EQUAL(dune_map(NULL, ALIAS, vault, 4096, RWU), -EPERM);
    EQUAL(dune_protect(NULL, vault, 4096, RWU), -EPERM);
    EQUAL(dune_unmap(NULL, vault, 4096), -EPERM);
    EQUAL(dune_lookup(NULL, 0x6000000000ull, &entry), -ENOENT);
    open_leave();
}

/* appel1 and appel2 without a single exit, once the page tables are split. */
static void appel(void)
{
    struct dune_stats before, after;

    start();
    EQUAL(dune_set_trap_handler(14, opens, DUNE_HANDLER_NO_FPU), 0);
    for (int round = 0; round < 3; round++) {
        faults = 0;
        before = open_stats();
        EQUAL(dune_protect(NULL, (uint64_t)memory, BYTES, DUNE_PTE_READ | DUNE_PTE_USER), 0);
        for (uint64_t i = 0; i < PAGES; i++)
            memory[i * 4096] = 1;
        EQUAL(faults, PAGES);
        after = open_stats();
    }
    printf("exits_per_64_protections_and_faults %llu\n",
           (unsigned long long)(after.exits - before.exits));
    EQUAL(after.exits - before.exits - (after.interrupted - before.interrupted), 0);
    open_leave();
}

int main(int argc, char **argv)
{
    static const struct open_case cases[] = {
        {"alias", alias},       {"protect", protect},
        {"unmap", unmap},       {"supervisor_pages", supervisor_pages},
        {"execute", execute},   {"walks", walks},
        {"roots", roots},       {"other_threads", other_threads},
        {"refusals", refusals}, {"appel", appel},
        {NULL, NULL},
    };

    return open_main(argc, argv, cases);
}
