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
#include "lib/probe.h"

#include <cpuid.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#define SLOWDOWN              8   /* ring 0 against outside: what is slower doesn't run natively */
#define MEMORY_SLOTS          64  /* at least */
#define CHECK_MS              400 /* limits of a group of experiments; natively microseconds */
#define MEASURE_MS            1500
#define CR3_LOADS             256
#define SAMPLES               9
#define TICKS                 201
#define SWITCHES              1024
#define LOOP_LEAST            1024
#define LOOP_MOST             (1u << 22)
#define LOOP_NS               100000 /* a loop that takes this long is long enough */
#define LOOP_INSTRUCTIONS     2      /* of one turn */
#define DEFAULT_PHYSICAL_BITS 36

#define SECRET 0x5ec4e7005ec4e700ull
#define OTHER  0x0dd0dd0dd0dd0dd0ull

#define VECTOR_UNDEFINED    6
#define VECTOR_PROTECTION   13
#define VECTOR_PAGE         14
#define XCR0_AVX            0x6u
#define XCR0_AVX512         0xe6u
#define XCR0_NEEDED         0xe7u /* what code uses without asking the kernel: x87 to AVX-512 */
#define XCR0_TILES          0x60000u
#define XCR0_PKRU           0x200u
#define ARCH_GET_XCOMP_PERM 0x1022

#define CURE_MACHINE \
    "use a machine with VT-x or AMD-V, or a hypervisor that gives its guests real nested " \
    "virtualization"

/* The first that is unfit is the one that is told. */
__attribute__((format(printf, 4, 5))) static void unfit(struct dune_report *report,
                                                        enum dune_fitness fitness, const char *cure,
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
        unfit(p->report, DUNE_KVM_TOO_OLD, CURE_MACHINE, "/dev/kvm is not Linux's KVM (version %d)",
              version);
    for (size_t i = 0; i < sizeof(required) / sizeof(required[0]); i++)
        if (ioctl(p->kvm, KVM_CHECK_EXTENSION, required[i].capability) < required[i].least)
            unfit(p->report, DUNE_KVM_TOO_OLD, "use Linux 6.1 or later", "this KVM lacks %s",
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
        unfit(p->report, DUNE_KVM_TOO_OLD, CURE_MACHINE, "KVM doesn't tell what CPU it offers (%s)",
              strerror(errno));
    }
    return 0;
}

/* One register of a leaf, 0: EAX to 3: EDX. */
static uint32_t guest_register(const struct probe *p, uint32_t leaf, uint32_t index, unsigned which)
{
    const struct kvm_cpuid_entry2 *entry = probe_cpuid(p, leaf, index);

    if (entry == NULL)
        return 0;
    return which == 0 ? entry->eax : which == 1 ? entry->ebx : which == 2 ? entry->ecx : entry->edx;
}

static uint32_t own_register(uint32_t leaf, uint32_t index, unsigned which)
{
    uint32_t r[4] = {0};

    return __get_cpuid_count(leaf, index, &r[0], &r[1], &r[2], &r[3]) ? r[which] : 0;
}

static uint64_t own_xcr0(void)
{
    uint32_t low, high;

    if (!(own_register(1, 0, 2) & bit_OSXSAVE))
        return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static void fill_features(struct probe *p)
{
    struct dune_report *report = p->report;
    uint32_t c1 = guest_register(p, 1, 0, 2), b7 = guest_register(p, 7, 0, 1);

    report->pcid = c1 >> 17 & 1;
    report->xsave = c1 >> 26 & 1;
    report->fsgsbase = b7 & 1;
    report->smep = b7 >> 7 & 1;
    report->smap = b7 >> 20 & 1;
    report->gigabyte_pages = guest_register(p, 0x80000001, 0, 3) >> 26 & 1;
    report->protection_keys = own_register(7, 0, 2) >> 4 & 1; /* OSPKE: of the host side */
    report->physical_bits = guest_register(p, 0x80000008, 0, 0) & 0xff;
    if (report->physical_bits == 0)
        report->physical_bits = DEFAULT_PHYSICAL_BITS;
    report->xcr0 = (uint64_t)guest_register(p, 0xd, 0, 3) << 32 | guest_register(p, 0xd, 0, 0);
    report->xcr0 &= report->xsave ? own_xcr0() & ~(uint64_t)(XCR0_TILES | XCR0_PKRU) : 0;
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

/* ---- CPU features that this process may be using ------------------------------------------- */

/* clang-format off */
static const struct feature {
    uint32_t leaf, index, reg, bit;
    uint32_t state; /* in use only where the kernel enabled these parts of XCR0 */
    const char *name;
} features[] = {
    {1, 0, 2, 0, 0, "SSE3"}, {1, 0, 2, 1, 0, "PCLMULQDQ"}, {1, 0, 2, 9, 0, "SSSE3"},
    {1, 0, 2, 13, 0, "CMPXCHG16B"}, {1, 0, 2, 19, 0, "SSE4.1"}, {1, 0, 2, 20, 0, "SSE4.2"},
    {1, 0, 2, 22, 0, "MOVBE"}, {1, 0, 2, 23, 0, "POPCNT"}, {1, 0, 2, 25, 0, "AES"},
    {1, 0, 2, 26, 0, "XSAVE"}, {1, 0, 2, 30, 0, "RDRAND"},
    {1, 0, 2, 12, XCR0_AVX, "FMA"}, {1, 0, 2, 28, XCR0_AVX, "AVX"}, {1, 0, 2, 29, XCR0_AVX, "F16C"},
    {7, 0, 1, 3, 0, "BMI1"}, {7, 0, 1, 8, 0, "BMI2"}, {7, 0, 1, 9, 0, "ERMS"},
    {7, 0, 1, 11, 0, "RTM"}, {7, 0, 1, 18, 0, "RDSEED"}, {7, 0, 1, 19, 0, "ADX"},
    {7, 0, 1, 23, 0, "CLFLUSHOPT"}, {7, 0, 1, 24, 0, "CLWB"}, {7, 0, 1, 29, 0, "SHA"},
    {7, 0, 1, 5, XCR0_AVX, "AVX2"}, {7, 0, 1, 16, XCR0_AVX512, "AVX-512F"},
    {7, 0, 1, 17, XCR0_AVX512, "AVX-512DQ"}, {7, 0, 1, 21, XCR0_AVX512, "AVX-512IFMA"},
    {7, 0, 1, 28, XCR0_AVX512, "AVX-512CD"}, {7, 0, 1, 30, XCR0_AVX512, "AVX-512BW"},
    {7, 0, 1, 31, XCR0_AVX512, "AVX-512VL"}, {7, 0, 2, 1, XCR0_AVX512, "AVX-512VBMI"},
    {7, 0, 2, 6, XCR0_AVX512, "AVX-512VBMI2"}, {7, 0, 2, 8, 0, "GFNI"},
    {7, 0, 2, 9, XCR0_AVX, "VAES"}, {7, 0, 2, 10, XCR0_AVX, "VPCLMULQDQ"},
    {7, 0, 2, 11, XCR0_AVX512, "AVX-512VNNI"}, {7, 0, 2, 12, XCR0_AVX512, "AVX-512BITALG"},
    {7, 0, 2, 14, XCR0_AVX512, "AVX-512VPOPCNTDQ"}, {7, 0, 2, 27, 0, "MOVDIRI"},
    {7, 0, 3, 4, 0, "FSRM"}, {0xd, 1, 0, 0, 0, "XSAVEOPT"}, {0xd, 1, 0, 1, 0, "XSAVEC"},
    {0x80000001, 0, 2, 5, 0, "LZCNT"},
};
/* clang-format on */

/* glibc has looked at CPUID outside and chosen its memcpy and its lazy binding by it, for good. */
static void check_cpuid(struct probe *p)
{
    uint64_t own = own_xcr0(), lacking = own & XCR0_NEEDED & ~p->report->xcr0, permitted = 0;
    char names[96] = "";
    size_t used = 0;

    for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++) {
        const struct feature *f = &features[i];

        if ((own & f->state) != f->state ||
            !(own_register(f->leaf, f->index, f->reg) >> f->bit & 1))
            continue;
        if (guest_register(p, f->leaf, f->index, f->reg) >> f->bit & 1)
            continue;
        if (used < sizeof(names) - 1)
            used += (size_t)snprintf(names + used, sizeof(names) - used, " %s", f->name);
    }
    if (lacking != 0)
        unfit(p->report, DUNE_CPUID_MISMATCH,
              "boot the host with a CPU model that has no more than its KVM offers",
              "a guest can't have parts 0x%llx of this process's vector state",
              (unsigned long long)lacking);
    if (used != 0)
        unfit(p->report, DUNE_CPUID_MISMATCH,
              "hide them from the host, or have its hypervisor offer them to guests of guests",
              "a guest would lack%s, which this process may be using", names);
    if (syscall(SYS_arch_prctl, ARCH_GET_XCOMP_PERM, &permitted) == 0 && permitted & XCR0_TILES &&
        permitted & 0x40000)
        unfit(p->report, DUNE_CPUID_MISMATCH, "don't ask for it",
              "this process has asked for AMX, which the guest doesn't get");
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
    unfit(p->report, DUNE_SYSCALL_UNSOUND, CURE_MACHINE,
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
    unfit(p->report, DUNE_PAGES_UNSOUND, CURE_MACHINE, "ring 3 is not kept from %s",
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
        unfit(p->report, DUNE_TRAPS_UNSOUND, CURE_MACHINE,
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
        unfit(p->report, DUNE_CPUID_MISMATCH, CURE_MACHINE,
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

/* Ring 0 against the same loop outside; the best of several, so that other load matters little. */
static void measure_ring0(struct probe *p)
{
    uint64_t empty[SAMPLES], full[SAMPLES] = {0}, count = LOOP_LEAST, ns, outside;
    bool ran = time_piece(p, dune_probe_loop, 0, 1, empty);

    for (; ran; count *= 8) {
        ran = time_piece(p, dune_probe_loop, 0, count, full);
        if (full[0] - empty[0] > LOOP_NS || count >= LOOP_MOST)
            break;
    }
    if (!ran) {
        unfit(p->report, DUNE_RING0_EMULATED, CURE_MACHINE,
              "a plain loop in ring 0 doesn't come to its end");
        return;
    }
    ns = full[0] > empty[0] ? full[0] - empty[0] : 1;
    outside = loop_outside_ns(count);
    p->report->ring0_ps_per_instruction = ns * 1000 / (count * LOOP_INSTRUCTIONS);
    p->report->ring0_native = ns / SLOWDOWN <= outside;
    if (!p->report->ring0_native)
        unfit(p->report, DUNE_RING0_EMULATED, CURE_MACHINE,
              "ring 0 doesn't run natively: a loop takes %llu times what it takes outside",
              (unsigned long long)(ns / outside));
}

static void measure_exits(struct probe *p)
{
    struct kvm_regs regs = {.rip = probe_address(dune_probe_tick)};
    uint64_t times[TICKS], began = probe_now_ns();
    struct probe_result r;
    size_t n = 0;

    if (probe_run(p, &regs, &r) != PROBE_TICK)
        return;
    while (n < TICKS && probe_now_ns() - began < MEASURE_MS * 1000000ull / 8 && probe_tick(p))
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
        unfit(p->report, DUNE_NO_NESTED_PAGING,
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
    check_cpuid(p);
    probe_arm(p, CHECK_MS);
    check_extensions(p);
    check_traps(p, exact);
    probe_disarm(p);
    probe_arm(p, MEASURE_MS);
    measure_exits(p);
    measure_switches(p);
    probe_disarm(p);
}

static void refuse_open(struct dune_report *report, int error)
{
    if (error == EACCES || error == EPERM)
        unfit(report, DUNE_NO_KVM,
              "add the user to the group kvm (usermod -aG kvm USER) and log in again",
              "this user may not open /dev/kvm");
    else if (error == ENOENT || error == ENODEV || error == ENXIO)
        unfit(report, DUNE_NO_KVM,
              "load the module kvm_intel or kvm_amd; if that fails, enable virtualization in the "
              "firmware or in the hypervisor",
              "there is no /dev/kvm");
    else
        unfit(report, DUNE_NO_KVM, "see what the error says", "/dev/kvm can't be opened: %s",
              strerror(error));
}

int dune_probe(struct dune_report *report)
{
    struct probe p = {.report = report, .vm = -1, .vcpu = -1, .timer = -1};
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
        fill_features(&p);
        error = probe_create(&p);
        if (error == 0)
            experiment(&p);
        else if (error != -ENOMEM)
            unfit(report, DUNE_KVM_TOO_OLD, CURE_MACHINE, "KVM refuses to make a small guest (%s)",
                  strerror(-error));
    }
    probe_destroy(&p);
    return error == -ENOMEM ? error : 0;
}
