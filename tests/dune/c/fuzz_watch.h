/* The outside view of a sealed process, for fuzz.c: its vault as /proc/PID/mem shows it to a
 * process that isn't in a guest. What must never change is compared with how it was at the start,
 * and the guest's page tables are walked as the CPU would. */
#ifndef FUZZ_WATCH_H
#define FUZZ_WATCH_H

#include "shim/pagetable.h"
#include "shim/shim.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WATCH_AREAS = 256, WATCH_MAPS = 1 << 16, WATCH_SECRETS = 8, WATCH_SECRET_BYTES = 64 };

/* Where nothing of the shim's is: a page of secrets in each. */
#define WATCH_SECRET_AT(i) (DUNE_MODULES_AT + 0x8000000 + (uint64_t)(i)*0x100000)

struct watch_area {
    uint64_t at, bytes;
    uint8_t *was;
    const char *name;
};

struct watch {
    int mem, pid;
    uint64_t base, data_bytes;
    struct watch_area area[WATCH_AREAS];
    unsigned areas;
    char maps[WATCH_MAPS]; /* of the vault and its guards */
    uint8_t secret[WATCH_SECRET_BYTES];
    uint64_t pages_walked;
    bool gone; /* its memory could not be read: it may be ending */
    char failure[256];
};

static uint64_t now_ms(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

static void sleep_ms(unsigned ms)
{
    struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};

    nanosleep(&time, NULL);
}

static bool watch_read(struct watch *watch, uint64_t at, void *to, uint64_t bytes)
{
    bool done = pread(watch->mem, to, bytes, (off_t)at) == (ssize_t)bytes;

    watch->gone |= !done;
    return done;
}

static bool watch_fail(struct watch *watch, const char *what, uint64_t at)
{
    if (watch->failure[0] == 0)
        snprintf(watch->failure, sizeof(watch->failure), "%s (at %lx, vault's base %lx)", what, at,
                 watch->base);
    return false;
}

static void watch_add(struct watch *watch, const char *name, uint64_t at, uint64_t bytes)
{
    struct watch_area *area = &watch->area[watch->areas];

    if (watch->areas == WATCH_AREAS)
        return;
    *area = (struct watch_area){.at = at, .bytes = bytes, .was = malloc(bytes), .name = name};
    if (watch_read(watch, at, area->was, bytes))
        watch->areas++;
    else
        watch_fail(watch, "the vault can't be read", at);
}

/* Notes what of a mapping lies in [first, last). */
static size_t watch_clip(char *to, size_t used, uint64_t first, uint64_t last, const uint64_t *map,
                         const char *rights)
{
    first = map[0] > first ? map[0] : first;
    last = map[1] < last ? map[1] : last;
    if (first >= last || used + 64 > WATCH_MAPS)
        return used;
    return used +
           (size_t)snprintf(to + used, WATCH_MAPS - used, "%lx-%lx %s\n", first, last, rights);
}

/* What /proc/PID/maps says about the vault's windows, but for where execve() puts its
 * arguments meanwhile. */
static void watch_maps(const struct watch *watch, char *to)
{
    uint64_t map[2], base = watch->base;
    char path[64], line[512], rights[8];
    size_t used = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/maps", watch->pid);
    file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        if (sscanf(line, "%lx-%lx %7s", &map[0], &map[1], rights) != 3)
            continue;
        used = watch_clip(to, used, base - DUNE_WINDOW, base + DUNE_EXEC_AT, map, rights);
        used = watch_clip(to, used, base + DUNE_WINDOW,
                          base + 2ull * DUNE_WINDOW + watch->data_bytes, map, rights);
    }
    to[used] = 0;
    if (file != NULL)
        fclose(file);
}

static void watch_vcpu(struct watch *watch, uint64_t block)
{
    uint64_t vcpu = block + DUNE_BLOCK_VCPU;

    watch_add(watch, "stubs", block, DUNE_PAGE);
    watch_add(watch, "GDT and TSS", block + DUNE_BLOCK_GDT, DUNE_BLOCK_IDT - DUNE_BLOCK_GDT);
    watch_add(watch, "IDT", block + DUNE_BLOCK_IDT, DUNE_PAGE);
    watch_add(watch, "a vCPU's entries", vcpu + DUNE_VCPU_STACK_TOP,
              DUNE_VCPU_SELF + 8 - DUNE_VCPU_STACK_TOP);
    watch_add(watch, "a vCPU's pointers", vcpu + offsetof(struct dune_vcpu, vault),
              offsetof(struct dune_vcpu, scratch_used) - offsetof(struct dune_vcpu, vault));
    watch_add(watch, "a vCPU's signal table", vcpu + offsetof(struct dune_vcpu, sighand), 8);
}

/* The module's image, and the half of its data that stays as it is: full of the secret. */
static bool watch_module(struct watch *watch, uint64_t bytes)
{
    uint64_t at = watch->base + DUNE_WINDOW + bytes / 2, end = watch->base + DUNE_WINDOW + bytes;

    for (; at < end; at += WATCH_SECRET_BYTES)
        if (pwrite(watch->mem, watch->secret, WATCH_SECRET_BYTES, (off_t)at) < 0)
            return watch_fail(watch, "no secret can be put there", at);
    watch_add(watch, "the module's data", end - bytes / 2, bytes / 2);
    watch_add(watch, "the module's image", watch->base + DUNE_MODULES_AT, 0x20000);
    watch_add(watch, "struct dune_loaded",
              watch->base + DUNE_VAULT_AT + offsetof(struct dune_vault, module),
              sizeof(struct dune_loaded));
    return true;
}

static bool watch_start(struct watch *watch, int pid, uint64_t base, uint64_t data_bytes,
                        unsigned vcpus)
{
    uint64_t vault = base + DUNE_VAULT_AT;
    char path[64];
    int random = open("/dev/urandom", O_RDONLY);

    watch->pid = pid;
    watch->base = base;
    watch->data_bytes = data_bytes;
    snprintf(path, sizeof(path), "/proc/%d/mem", pid);
    watch->mem = open(path, O_RDWR);
    if (watch->mem < 0 || read(random, watch->secret, WATCH_SECRET_BYTES) != WATCH_SECRET_BYTES)
        return watch_fail(watch, "the process can't be looked into", 0);
    close(random);
    for (unsigned i = 0; i < WATCH_SECRETS; i++) {
        uint64_t at = base + WATCH_SECRET_AT(i);

        if (pwrite(watch->mem, watch->secret, WATCH_SECRET_BYTES, (off_t)at) < 0)
            return watch_fail(watch, "no secret can be put there", at);
        watch_add(watch, "a secret", at, DUNE_PAGE);
    }
    watch_add(watch, "the image", base, DUNE_IMAGE_BYTES);
    watch_add(watch, "the vault's head", vault, offsetof(struct dune_vault, lock));
    watch_add(watch, "handlers, entries, policy", vault + offsetof(struct dune_vault, handler),
              offsetof(struct dune_vault, counts) - offsetof(struct dune_vault, handler));
    watch_add(watch, "policy and CPUID", base + DUNE_VAULT_AT + 0xe0000, 0x20000);
    for (unsigned i = 0; i < vcpus; i++)
        watch_vcpu(watch, base + DUNE_BLOCKS_AT + (uint64_t)i * DUNE_BLOCK);
    watch_maps(watch, watch->maps);
    return watch->failure[0] == 0;
}

/* ---- the guest's page tables ----------------------------------------------------------------- */

static bool watch_table(struct watch *watch, uint64_t gpa, uint64_t entry, unsigned level,
                        bool user)
{
    uint64_t table[DUNE_ENTRIES], bytes = dune_level_bytes(level);
    uint64_t at = watch->base + (entry & DUNE_ENTRY_ADDRESS) - gpa;

    if (at - watch->base >= DUNE_WINDOW || !watch_read(watch, at, table, sizeof(table)))
        return watch_fail(watch, "a page table outside of the vault", at);
    for (unsigned i = 0; i < DUNE_ENTRIES; i++) {
        uint64_t leads = table[i] & DUNE_ENTRY_ADDRESS;
        bool is_user = user && (table[i] & DUNE_ENTRY_USER);

        if (!(table[i] & DUNE_ENTRY_PRESENT))
            continue;
        if (dune_is_table(table[i], level)) {
            if (!watch_table(watch, gpa, table[i], level - 1, is_user))
                return false;
            continue;
        }
        watch->pages_walked++;
        if (is_user && leads < gpa + DUNE_WINDOW + watch->data_bytes && leads + bytes > gpa)
            return watch_fail(watch, "ring 3 has a page of the vault", at + i * 8);
    }
    return true;
}

/* Of the process's own root. Others come and go while they are looked at. */
static bool watch_tables(struct watch *watch)
{
    uint64_t vault = watch->base + DUNE_VAULT_AT, gpa = 0, at = 0;
    struct dune_root root;

    if (!watch_read(watch, vault + offsetof(struct dune_vault, window[0].gpa), &gpa, sizeof(gpa)) ||
        !watch_read(watch, vault + offsetof(struct dune_vault, root), &at, sizeof(at)) ||
        !watch_read(watch, at, &root, sizeof(root)))
        return watch_fail(watch, "the vault can't be read", vault);
    return watch_table(watch, gpa, root.top, DUNE_LEVELS - 1, true);
}

/* What KVM was told: no window but the first ones shows the vault, its data or
 * its guards. */
static bool watch_windows(struct watch *watch)
{
    uint64_t vault = watch->base + DUNE_VAULT_AT;
    struct dune_window window[64];
    uint32_t n = 0;

    if (!watch_read(watch, vault + offsetof(struct dune_vault, n_windows), &n, sizeof(n)) ||
        !watch_read(watch, vault + offsetof(struct dune_vault, window), window, sizeof(window)))
        return watch_fail(watch, "the vault can't be read", vault);
    for (uint32_t i = 0; i < n && i < 64; i++) {
        bool closed = window[i].address + DUNE_WINDOW > watch->base - DUNE_WINDOW &&
                      window[i].address < watch->base + 2ull * DUNE_WINDOW + watch->data_bytes;

        if (closed != (i <= watch->data_bytes / DUNE_WINDOW))
            return watch_fail(watch, "a window onto the vault", window[i].address);
    }
    return true;
}

/* False: something changed that can't, or leads where it mustn't; watch->failure says what. The
 * process may be running. */
static bool watch_check(struct watch *watch)
{
    static char maps[WATCH_MAPS];
    static uint8_t now[DUNE_IMAGE_BYTES];

    for (unsigned i = 0; i < watch->areas; i++) {
        const struct watch_area *area = &watch->area[i];

        if (!watch_read(watch, area->at, now, area->bytes))
            return watch_fail(watch, area->name, area->at);
        for (uint64_t at = 0; memcmp(now, area->was, area->bytes) != 0 && at < area->bytes; at++)
            if (now[at] != area->was[at])
                return watch_fail(watch, area->name, area->at + at);
    }
    watch_maps(watch, maps);
    watch->gone |= maps[0] == 0;
    if (strcmp(maps, watch->maps) != 0) {
        if (!watch->gone)
            fprintf(stderr, "was:\n%sis:\n%s", watch->maps, maps);
        return watch_fail(watch, "the vault's mappings", 0);
    }
    return watch_tables(watch) && watch_windows(watch);
}

/* False: the secret lies in the process's own memory, of which some pages may be missing. */
static bool watch_secret(struct watch *watch, uint64_t at, uint64_t bytes)
{
    uint8_t page[DUNE_PAGE];

    for (uint64_t i = 0; i < bytes; i += DUNE_PAGE) {
        ssize_t got = pread(watch->mem, page, DUNE_PAGE, (off_t)(at + i));

        if (got == DUNE_PAGE && memmem(page, DUNE_PAGE, watch->secret, 16) != NULL)
            return watch_fail(watch, "a secret of the vault's is in ring 3's memory", at + i);
    }
    return true;
}

#endif
