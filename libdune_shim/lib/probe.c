/* dune_probe(): is this machine's KVM fit? Each property by an experiment of its own, because a KVM
 * that emulates, or that runs ring 0 on something else than the CPU, offers the same ioctls.
 *
 * What is required, in the order of enum dune_fitness:
 *   KVM's extensions (required[]); nested paging: loading CR3 doesn't exit; SYSCALL in ring 3
 * arrives in ring 0 and may do there what only ring 0 may; ring 3 can't load, store or fetch where
 * a page is ring 0's; a plain loop in ring 0 takes at most SLOWDOWN times what it takes outside;
 * the guest may have each CPU feature that glibc or the program may have chosen in this process
 * already; exceptions arrive with vector, error code, CR2, RIP and CS as the CPU's manual says, on
 * the IST stack.
 */
#include "lib/dune_lib.h"
#include "lib/probe.h"

#include <cpuid.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#define SLOWDOWN          8    /* ring 0 against outside: what is slower doesn't run natively */
#define MEMORY_SLOTS      64   /* at least */
#define CHECK_MS          5000 /* a group of experiments at most; natively microseconds */
#define MEASURE_MS        10000
#define CR3_LOADS         256
#define SAMPLES           9
#define ATTEMPTS          6
#define TICKS             101
#define TICKS_NS          200000000 /* fewer where they take longer than this */
#define SWITCHES          1024
#define LOOP_LEAST        1024
#define LOOP_MOST         (1u << 22)
#define LOOP_NS           20000 /* a loop that takes this long is long enough */
#define LOOP_INSTRUCTIONS 2     /* of one turn */

#define SECRET 0x5ec4e7005ec4e700ull
#define OTHER  0x0dd0dd0dd0dd0dd0ull

#define VECTOR_UNDEFINED  6
#define VECTOR_PROTECTION 13
#define VECTOR_PAGE       14

#define CURE_MACHINE \
    "use a machine with VT-x or AMD-V, or a hypervisor that gives its guests real nested " \
    "virtualization"

/* The first that is unfit is the one that is told. */
void probe_unfit(struct dune_report *report, enum dune_fitness fitness, const char *cure,
                 const char *format, ...)
{
    char what[sizeof(report->reason)];
    va_list arguments;

    if (report->fitness != DUNE_FIT)
        return;
    report->fitness = fitness;
    va_start(arguments, format);
    vsnprintf(what, sizeof(what), format, arguments);
    va_end(arguments);
    if (snprintf(report->reason, sizeof(report->reason), "%s (cure: %s)", what, cure) >=
        (int)sizeof(report->reason))
        memcpy(report->reason + sizeof(report->reason) - 5, "...)", 5);
}

/* ---- what KVM says of itself --------------------------------------------------------------- */

static const struct {
    int capability, least;
    const char *name;
} required[] = {
    {KVM_CAP_USER_MEMORY, 1, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_NR_MEMSLOTS, MEMORY_SLOTS, "64 memory slots"},
    {KVM_CAP_EXT_CPUID, 1, "KVM_CAP_EXT_CPUID"},
    {KVM_CAP_SYNC_REGS, 1, "KVM_CAP_SYNC_REGS"},
    {KVM_CAP_XSAVE, 1, "KVM_CAP_XSAVE"},
    {KVM_CAP_XCRS, 1, "KVM_CAP_XCRS"},
    {KVM_CAP_VCPU_EVENTS, 1, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_IMMEDIATE_EXIT, 1, "KVM_CAP_IMMEDIATE_EXIT"},
};

static void check_capabilities(struct probe *p)
{
    int version = ioctl(p->kvm, KVM_GET_API_VERSION, 0);

    if (version != KVM_API_VERSION)
        probe_unfit(p->report, DUNE_KVM_TOO_OLD, CURE_MACHINE,
                    "/dev/kvm is not Linux's KVM (version %d)", version);
    for (size_t i = 0; i < sizeof(required) / sizeof(required[0]); i++)
        if (ioctl(p->kvm, KVM_CHECK_EXTENSION, required[i].capability) < required[i].least)
            probe_unfit(p->report, DUNE_KVM_TOO_OLD, "use Linux 6.1 or later", "this KVM lacks %s",
                        required[i].name);
    p->report->memory_fault_info =
        ioctl(p->kvm, KVM_CHECK_EXTENSION, PROBE_CAP_MEMORY_FAULT_INFO) > 0;
}

static int get_cpuid(struct probe *p)
{
    size_t bytes = sizeof(*p->cpuid) + PROBE_CPUID_ENTRIES * sizeof(p->cpuid->entries[0]);

    p->cpuid = calloc(1, bytes);
    if (p->cpuid == NULL)
        return -ENOMEM;
    p->cpuid->nent = PROBE_CPUID_ENTRIES;
    if (ioctl(p->kvm, KVM_GET_SUPPORTED_CPUID, p->cpuid)) {
        p->cpuid->nent = 0;
        probe_unfit(p->report, DUNE_KVM_TOO_OLD, CURE_MACHINE,
                    "KVM doesn't tell what CPU it offers (%s)", strerror(errno));
    }
    return 0;
}

static void fill_names(struct dune_report *report)
{
    uint32_t highest, name[3];
    struct utsname uts;

    __cpuid(0, highest, name[0], name[2], name[1]);
    memcpy(report->vendor, name, sizeof(name));
    if (uname(&uts) == 0)
        snprintf(report->kernel, sizeof(report->kernel), "%.63s", uts.release);
}

/* ---- experiments --------------------------------------------------------------------------- */

static void describe(char *to, size_t bytes, enum probe_end end, const struct probe_result *r)
{
    if (end == PROBE_TRAP)
        snprintf(to, bytes, "exception %llu, error 0x%llx, from ring %llu",
                 (unsigned long long)r->vector, (unsigned long long)r->error,
                 (unsigned long long)(r->cs & 3));
    else if (end == PROBE_SYSCALL)
        snprintf(to, bytes, "in ring %u", r->ring);
    else if (end == PROBE_EXPIRED)
        snprintf(to, bytes, "no answer in %d ms", CHECK_MS);
    else if (r->detail < 0)
        snprintf(to, bytes, "KVM_RUN: %s", strerror(-r->detail));
    else
        snprintf(to, bytes, "exit reason %d", r->detail);
}

static uint64_t in_text3(const char *symbol)
{
    return PROBE_TEXT3 + (uint64_t)(symbol - dune_probe_text);
}

static void check_syscall(struct probe *p)
{
    struct kvm_regs regs = {.r13 = 1};
    struct probe_result r;
    enum probe_end end = probe_run3(p, dune_probe_syscall, &regs, &r);
    char what[80];

    p->report->syscall_raises_privilege = end == PROBE_SYSCALL && r.ring == 0 &&
                                          r.regs.r14 == PROBE_KERNEL_CS && r.regs.r15 == SECRET &&
                                          r.regs.rcx == in_text3(dune_probe_syscall_end);
    if (p->report->syscall_raises_privilege)
        return;
    describe(what, sizeof(what), end, &r);
    probe_unfit(p->report, DUNE_SYSCALL_UNSOUND, CURE_MACHINE,
                "SYSCALL from ring 3 doesn't arrive in ring 0 (%s)", what);
}

/* An access by ring 3. False: it is not stopped by a page fault. *exact: error code, CR2 and the
 * rest are right as well. */
static bool is_stopped(struct probe *p, const char *entry, uint64_t address, uint64_t error,
                       bool *exact)
{
    struct kvm_regs regs = {.r8 = address, .r9 = OTHER};
    struct probe_result r;
    enum probe_end end = probe_run3(p, entry, &regs, &r);
    uint64_t at = entry == dune_probe_fetch ? address : in_text3(entry);

    if (end != PROBE_TRAP || r.vector != VECTOR_PAGE)
        return false;
    *exact = *exact && r.error == error && r.cr2 == address && r.rip == at &&
             r.cs == PROBE_USER_CS && r.ss == PROBE_USER_DS && r.rsp == PROBE_STACK3 &&
             r.frame_at == PROBE_IST - 7 * 8 && r.ring == 0;
    return true;
}

static void check_pages(struct probe *p, bool *exact)
{
    uint64_t text = probe_address(dune_probe_undefined);
    bool load = is_stopped(p, dune_probe_load, PROBE_SECRET, 0x5, exact);
    bool store = is_stopped(p, dune_probe_store, PROBE_SECRET, 0x7, exact);
    bool fetch = is_stopped(p, dune_probe_fetch, text, 0x15, exact);
    bool readonly = is_stopped(p, dune_probe_store, PROBE_TEXT3, 0x7, exact);
    bool data = is_stopped(p, dune_probe_fetch, PROBE_OPEN, 0x15, exact);
    bool intact = *(uint64_t *)(p->memory + PROBE_SECRET) == SECRET;

    p->report->supervisor_pages_closed = load && store && fetch && readonly && data && intact;
    if (p->report->supervisor_pages_closed)
        return;
    probe_unfit(p->report, DUNE_PAGES_UNSOUND, CURE_MACHINE, "ring 3 is not kept from %s",
                !load       ? "reading a supervisor page"
                : !store    ? "writing a supervisor page"
                : !fetch    ? "executing a supervisor page"
                : !readonly ? "writing a read-only page"
                : !data     ? "executing a page marked as data"
                            : "changing a supervisor page, though it faulted");
}

/* An exception other than a page fault, or one in ring 0. */
static bool is_trap(struct probe *p, const char *entry, int ring, uint64_t address, uint64_t vector,
                    uint64_t error)
{
    struct kvm_regs regs = {.rip = probe_address(entry), .r8 = address};
    struct probe_result r;
    enum probe_end end = ring == 3 ? probe_run3(p, entry, &regs, &r) : probe_run(p, &regs, &r);

    return end == PROBE_TRAP && r.vector == vector && r.error == error &&
           (vector != VECTOR_PAGE || r.cr2 == address) && r.regs.r8 == address &&
           r.rip == (ring == 3 ? in_text3(entry) : probe_address(entry)) &&
           r.cs == (ring == 3 ? PROBE_USER_CS : PROBE_KERNEL_CS) &&
           r.frame_at == PROBE_IST - 7 * 8 && r.ring == 0;
}

static void check_traps(struct probe *p, bool pages_exact)
{
    const char *wrong =
        !pages_exact ? "a page fault in ring 3 (error code, CR2 or frame)"
        : !is_trap(p, dune_probe_undefined, 3, 0, VECTOR_UNDEFINED, 0)   ? "#UD in ring 3"
        : !is_trap(p, dune_probe_halt, 3, 0, VECTOR_PROTECTION, 0)       ? "#GP in ring 3"
        : !is_trap(p, dune_probe_load, 3, PROBE_ABSENT, VECTOR_PAGE, 4)  ? "#PF for a load"
        : !is_trap(p, dune_probe_store, 3, PROBE_ABSENT, VECTOR_PAGE, 6) ? "#PF for a store"
        : !is_trap(p, dune_probe_load, 0, PROBE_ABSENT, VECTOR_PAGE, 0)  ? "#PF in ring 0"
        : !is_trap(p, dune_probe_undefined, 0, 0, VECTOR_UNDEFINED, 0)   ? "#UD in ring 0"
                                                                         : NULL;

    p->report->traps_sound = wrong == NULL;
    if (wrong != NULL)
        probe_unfit(p->report, DUNE_TRAPS_UNSOUND, CURE_MACHINE,
                    "%s doesn't arrive in ring 0 as the CPU has it", wrong);
}

/* Ring 3 gets to the UD2 behind the piece: every instruction before it worked. */
static bool gets_to(struct probe *p, const char *entry, const char *end, struct probe_result *r)
{
    struct kvm_regs regs = {.r8 = PROBE_OPEN};

    return probe_run3(p, entry, &regs, r) == PROBE_TRAP && r->vector == VECTOR_UNDEFINED &&
           r->rip == in_text3(end);
}

static void check_extensions(struct probe *p)
{
    uint64_t xcr0 = p->report->xcr0;
    struct probe_result r;

    if (p->report->fsgsbase)
        p->report->fsgsbase = gets_to(p, dune_probe_fsbase, dune_probe_fsbase_end, &r) &&
                              r.regs.r14 == PROBE_OPEN && r.regs.r9 == OTHER;
    if (((xcr0 & XCR0_AVX) == XCR0_AVX && !gets_to(p, dune_probe_avx, dune_probe_avx_end, &r)) ||
        ((xcr0 & XCR0_AVX512) == XCR0_AVX512 &&
         !gets_to(p, dune_probe_avx512, dune_probe_avx512_end, &r)))
        probe_unfit(p->report, DUNE_CPUID_MISMATCH, CURE_MACHINE,
                    "KVM offers AVX to a guest, but it doesn't work there");
}

/* ---- measurements -------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static uint64_t median(uint64_t *values, size_t n)
{
    qsort(values, n, sizeof(*values), compare);
    return values[n / 2];
}

/* Sorted times of KVM_RUN for a piece that counts R12 down. False: it didn't end as it should. */
static bool time_piece(struct probe *p, const char *entry, int ring, uint64_t count,
                       uint64_t times[SAMPLES])
{
    struct kvm_regs regs = {.rip = probe_address(entry), .r12 = count};
    struct probe_result r;

    for (int i = 0; i < SAMPLES; i++) {
        enum probe_end end = ring == 3 ? probe_run3(p, entry, &regs, &r) : probe_run(p, &regs, &r);

        if (end != (ring == 3 ? PROBE_TRAP : PROBE_DONE) || r.regs.r12 != 0)
            return false;
        times[i] = p->run_ns;
    }
    qsort(times, SAMPLES, sizeof(times[0]), compare);
    return true;
}

static uint64_t loop_outside_ns(uint64_t count)
{
    uint64_t least = UINT64_MAX;

    for (int i = 0; i < SAMPLES; i++) {
        uint64_t began = probe_now_ns(), left = count, ns;

        __asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(left));
        ns = probe_now_ns() - began;
        least = ns < least ? ns : least;
    }
    return least > 0 ? least : 1;
}

/* What a loop of at least that time takes in ring 0, and outside. False: it doesn't come to its
 * end. */
static bool time_loop(struct probe *p, uint64_t least_ns, uint64_t *count, uint64_t *inside,
                      uint64_t *outside)
{
    uint64_t empty[SAMPLES], full[SAMPLES];

    if (!time_piece(p, dune_probe_loop, 0, 1, empty))
        return false;
    for (*count = LOOP_LEAST;; *count *= 8) {
        if (!time_piece(p, dune_probe_loop, 0, *count, full))
            return false;
        *inside = full[0] > empty[0] ? full[0] - empty[0] : 1;
        if (*inside > least_ns || *count >= LOOP_MOST)
            break;
    }
    *outside = loop_outside_ns(*count);
    return true;
}

/* The best of several times several, ever longer ones: other load, or an emulator that translates
 * the loop just then, makes ring 0 look slow now and then; but never fast. */
static void measure_ring0(struct probe *p)
{
    uint64_t count, inside, outside, ps, least_ns = LOOP_NS, ratio = UINT64_MAX;
    struct dune_report *report = p->report;

    for (int i = 0; i < ATTEMPTS && !report->ring0_native; i++, least_ns *= 2) {
        if (!time_loop(p, least_ns, &count, &inside, &outside)) {
            if (i == 0)
                probe_unfit(report, DUNE_RING0_EMULATED, CURE_MACHINE,
                            "a plain loop in ring 0 doesn't come to its end");
            break;
        }
        ps = inside * 1000 / (count * LOOP_INSTRUCTIONS);
        if (i == 0 || ps < report->ring0_ps_per_instruction)
            report->ring0_ps_per_instruction = ps;
        ratio = inside / outside < ratio ? inside / outside : ratio;
        report->ring0_native = ratio < SLOWDOWN;
    }
    if (!report->ring0_native)
        probe_unfit(report, DUNE_RING0_EMULATED, CURE_MACHINE,
                    "ring 0 doesn't run natively: a loop takes %llu times what it takes outside",
                    (unsigned long long)ratio);
}

static void measure_exits(struct probe *p)
{
    struct kvm_regs regs = {.rip = probe_address(dune_probe_tick)};
    uint64_t times[TICKS], began = probe_now_ns();
    struct probe_result r;
    size_t n = 0;

    if (probe_run(p, &regs, &r) != PROBE_TICK)
        return;
    while (n < TICKS && probe_now_ns() - began < TICKS_NS && probe_tick(p))
        times[n++] = p->run_ns;
    p->report->exit_ns = n > 0 ? median(times, n) : 0;
}

static void measure_switches(struct probe *p)
{
    uint64_t empty[SAMPLES], full[SAMPLES];

    if (!p->report->syscall_raises_privilege || !time_piece(p, dune_probe_switch, 3, 1, empty) ||
        !time_piece(p, dune_probe_switch, 3, 1 + SWITCHES, full))
        return;
    if (full[SAMPLES / 2] > empty[SAMPLES / 2])
        p->report->ring_switch_ns = (full[SAMPLES / 2] - empty[SAMPLES / 2]) / SWITCHES;
}

/* What the module was told; -1: not to be seen. */
static int module_parameter(const char *path)
{
    FILE *file = fopen(path, "re");
    int c = file != NULL ? fgetc(file) : -1;

    if (file != NULL)
        fclose(file);
    return c == 'Y' || c == '1' ? 1 : c == 'N' || c == '0' ? 0 : -1;
}

/* Without nested paging KVM must see every load of CR3, and counts it. */
static void check_nested_paging(struct probe *p)
{
    struct kvm_regs regs = {.rip = probe_address(dune_probe_load_cr3), .r12 = CR3_LOADS};
    int64_t before = probe_count_exits(p), after;
    struct probe_result r;
    int told = -1;
    bool ran = probe_run(p, &regs, &r) == PROBE_DONE;

    after = probe_count_exits(p);
    if (ran && before >= 0 && after >= before) {
        told = after - before < CR3_LOADS;
    } else {
        told = module_parameter("/sys/module/kvm_intel/parameters/ept");
        if (told < 0)
            told = module_parameter("/sys/module/kvm_amd/parameters/npt");
    }
    if (told == 0)
        probe_unfit(p->report, DUNE_NO_NESTED_PAGING,
                    "load kvm_intel with ept=1, or kvm_amd with npt=1, on a CPU that has it",
                    "every load of CR3 exits (no EPT or NPT)");
}

/* ---- all of it ----------------------------------------------------------------------------- */

static void experiment(struct probe *p)
{
    bool exact = true;

    *(uint64_t *)(p->memory + PROBE_SECRET) = SECRET;
    *(uint64_t *)(p->memory + PROBE_OPEN) = OTHER;
    probe_arm(p, CHECK_MS);
    check_nested_paging(p);
    check_syscall(p);
    check_pages(p, &exact);
    probe_disarm(p);
    probe_arm(p, MEASURE_MS);
    measure_ring0(p);
    probe_disarm(p);
    probe_check_cpuid(p);
    probe_arm(p, CHECK_MS);
    check_extensions(p);
    check_traps(p, exact);
    probe_disarm(p);
    if (!p->costs)
        return;
    probe_arm(p, MEASURE_MS);
    measure_exits(p);
    measure_switches(p);
    probe_disarm(p);
}

static void refuse_open(struct dune_report *report, int error)
{
    if (error == EACCES || error == EPERM)
        probe_unfit(report, DUNE_NO_KVM,
                    "add the user to the group kvm (usermod -aG kvm USER) and log in again",
                    "this user may not open /dev/kvm");
    else if (error == ENOENT || error == ENODEV || error == ENXIO)
        probe_unfit(
            report, DUNE_NO_KVM,
            "load the module kvm_intel or kvm_amd; if that fails, enable virtualization in the "
            "firmware or in the hypervisor",
            "there is no /dev/kvm");
    else
        probe_unfit(report, DUNE_NO_KVM, "see what the error says", "/dev/kvm can't be opened: %s",
                    strerror(error));
}

static int probe(struct dune_report *report, bool costs)
{
    struct probe p = {.report = report, .vm = -1, .vcpu = -1, .timer = -1, .costs = costs};
    int error = 0;

    memset(report, 0, sizeof(*report));
    fill_names(report);
    p.kvm = probe_open_kvm();
    if (p.kvm < 0) {
        refuse_open(report, -p.kvm);
        return 0;
    }
    check_capabilities(&p);
    if (report->fitness == DUNE_FIT)
        error = get_cpuid(&p);
    if (error == 0 && report->fitness == DUNE_FIT) {
        probe_features(&p);
        error = probe_create(&p);
        if (error == 0)
            experiment(&p);
        else if (error != -ENOMEM)
            probe_unfit(report, DUNE_KVM_TOO_OLD, CURE_MACHINE,
                        "KVM refuses to make a small guest (%s)", strerror(-error));
    }
    probe_destroy(&p);
    return error == -ENOMEM ? error : 0;
}

int dune_probe(struct dune_report *report)
{
    return probe(report, true);
}

int dune_probe_fitness(struct dune_report *report)
{
    return probe(report, false);
}
