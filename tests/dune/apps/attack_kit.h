/* What attacks share: attempts and their outcome, faults that are survived, what lies where. */
#ifndef ATTACK_KIT_H
#define ATTACK_KIT_H

#include "api/gate.h"
#include "libdune_shim/dune.h"
#include "native/app.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GIB          (1ull << 30)
#define PAGE         4096ull
#define PLACES_MAX   1024

struct kit {
    char directory[200];
    int orders;
    struct ix_event live; /* the latest RECV: a connection that lives */
    uint32_t attempts;
    char failure[300]; /* the first attempt that was not refused */
};
static struct kit kit;

static bool kit_open(const char *directory)
{
    char path[256];
    snprintf(kit.directory, sizeof kit.directory, "%s", directory);
    snprintf(path, sizeof path, "%s/orders", directory);
    kit.orders = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    return kit.orders >= 0;
}

static void kit_begin(void)
{
    kit.attempts = 0;
    kit.failure[0] = 0;
}

__attribute__((format(printf, 2, 3))) static void kit_expect(bool fine, const char *what, ...)
{
    va_list rest;
    kit.attempts++;
    if (fine || kit.failure[0])
        return;
    va_start(rest, what);
    vsnprintf(kit.failure, sizeof kit.failure, what, rest);
    va_end(rest);
}

static void kit_answer(const char *name)
{
    char path[256], line[400];
    snprintf(path, sizeof path, "%s/answers", kit.directory);
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    int bytes = snprintf(line, sizeof line, "%s %u %s\n", name, kit.attempts,
                         kit.failure[0] ? kit.failure : "refused");
    if (fd < 0 || write(fd, line, (size_t)bytes) != bytes)
        abort();
    close(fd);
}

/* ---- faults ------------------------------------------------------------------------ */

static sigjmp_buf kit_back;

static void kit_on_fault(int number)
{
    siglongjmp(kit_back, number);
}

/* The signal that act(argument) ends in; 0: none. */
static int kit_fault(void (*act)(uint64_t), uint64_t argument)
{
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
    struct sigaction mine = {.sa_handler = kit_on_fault, .sa_flags = SA_NODEFER}, before[4];
    for (int i = 0; i < 4; i++)
        sigaction(numbers[i], &mine, &before[i]);
    int number = sigsetjmp(kit_back, 1);
    if (!number)
        act(argument);
    for (int i = 0; i < 4; i++)
        sigaction(numbers[i], &before[i], NULL);
    return number;
}

static void kit_write(uint64_t at)
{
    *(volatile uint8_t *)at = 0x5a;
}

static void kit_read(uint64_t at)
{
    (void)*(volatile uint8_t *)at;
}

/* ---- what lies where ---------------------------------------------------------------- */

struct place {
    uint64_t from, to;
    char rights[5], name[100];
};

/* The mappings of a process. */
static uint32_t kit_places_of(const char *process, struct place *places)
{
    char line[512], path[32];
    uint32_t n = 0;
    snprintf(path, sizeof path, "/proc/%s/maps", process);
    FILE *file = fopen(path, "r");
    while (file && n < PLACES_MAX && fgets(line, sizeof line, file)) {
        struct place *p = &places[n];
        p->name[0] = 0;
        if (sscanf(line, "%lx-%lx %4s %*s %*s %*s %99s", &p->from, &p->to, p->rights, p->name) >= 3)
            n++;
    }
    if (file)
        fclose(file);
    return n;
}

static uint32_t kit_places(struct place *places)
{
    return kit_places_of("self", places);
}

/* The data windows' start: the UMEM is mapped there, besides where this process sees it. */
static uint64_t kit_data(const struct ix_app *app)
{
    static struct place places[PLACES_MAX];
    uint64_t seen = (uint64_t)app->io->umem, bytes = app->io->umem_bytes;
    uint32_t n = kit_places(places);
    for (uint32_t i = 0; i < n; i++)
        if (strstr(places[i].name, "ixnet-umem") && places[i].from - seen >= bytes)
            return places[i].from & ~(GIB - 1);
    return 0;
}

/* What of the closed range is mapped: vault, gate, rings, shard, UMEM. */
static uint32_t kit_closed(const struct ix_app *app, struct place *places)
{
    uint64_t data = kit_data(app);
    uint32_t n = kit_places(places), kept = 0;
    for (uint32_t i = 0; i < n; i++)
        if (data && places[i].from >= data - GIB && places[i].to <= data + GIB &&
            strcmp(places[i].rights, "---p"))
            places[kept++] = places[i];
    kit_expect(kept > 6, "only %u mappings are seen in the closed range", kept);
    return kept;
}

static long kit_call(uint64_t n, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3)
{
    register uint64_t r10 __asm__("r10") = a3, r8 __asm__("r8") = 0;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(DUNE_CALL_MODULE + n), "D"(a0), "S"(a1), "d"(a2), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

#endif
