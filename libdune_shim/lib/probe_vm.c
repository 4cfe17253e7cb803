/* The self-test's guest: one vCPU in long mode over 128 KiB of its own, with 4 KiB pages.
 *
 * No KVM_RUN here can last: a POSIX timer sends this thread a signal that is blocked everywhere but
 * inside of KVM_RUN (KVM_SET_SIGNAL_MASK), so that it ends the call with EINTR, no handler
 * runs, and the process's own signals are left alone.
 */
#include "lib/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LIMIT_SIGNAL        (SIGRTMAX - 1)
#define KERNEL_SIGSET_BYTES 8
#define REPEAT_NS           5000000

#define PTE_PRESENT 1ull
#define PTE_WRITE   2ull
#define PTE_USER    4ull
#define PTE_NX      (1ull << 63)

#define CR0_START    0x80050033u /* PG AM WP NE ET MP PE, as Linux has it */
#define CR4_START    0x620u      /* PAE OSFXSR OSXMMEXCPT */
#define CR4_FSGSBASE (1u << 16)
#define CR4_OSXSAVE  (1u << 18)
#define EFER_START   0xd01u /* NXE LMA LME SCE */
#define MSR_STAR     0xc0000081u
#define MSR_LSTAR    0xc0000082u
#define MSR_FMASK    0xc0000084u

int probe_open_kvm(void)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

uint64_t probe_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t probe_address(const char *symbol)
{
    return PROBE_TEXT0 + (uint64_t)(symbol - dune_probe_text);
}

const struct kvm_cpuid_entry2 *probe_cpuid(const struct probe *p, uint32_t leaf, uint32_t index)
{
    for (uint32_t i = 0; i < p->cpuid->nent; i++)
        if (p->cpuid->entries[i].function == leaf && p->cpuid->entries[i].index == index)
            return &p->cpuid->entries[i];
    return NULL;
}

/* ---- its memory ---------------------------------------------------------------------------- */

static uint64_t *table(struct probe *p, uint64_t at)
{
    return (uint64_t *)(p->memory + at);
}

static void map_page(struct probe *p, uint64_t at, uint64_t flags)
{
    table(p, PROBE_PT)[at >> 12] = at | PTE_PRESENT | flags;
}

static void make_pages(struct probe *p)
{
    table(p, PROBE_PML4)[0] = PROBE_PDPT | PTE_PRESENT | PTE_WRITE | PTE_USER;
    table(p, PROBE_PDPT)[0] = PROBE_PD | PTE_PRESENT | PTE_WRITE | PTE_USER;
    table(p, PROBE_PD)[0] = PROBE_PT | PTE_PRESENT | PTE_WRITE | PTE_USER;
    for (uint64_t at = PROBE_PML4; at < PROBE_TEXT0; at += 4096)
        map_page(p, at, PTE_WRITE | PTE_NX);
    map_page(p, PROBE_TEXT0, 0);
    map_page(p, PROBE_TEXT3, PTE_USER);
    map_page(p, PROBE_STACK0 - 4096, PTE_WRITE | PTE_NX);
    map_page(p, PROBE_IST - 4096, PTE_WRITE | PTE_NX);
    map_page(p, PROBE_STACK3 - 4096, PTE_WRITE | PTE_USER | PTE_NX);
    map_page(p, PROBE_SECRET, PTE_WRITE);
    map_page(p, PROBE_OPEN, PTE_WRITE | PTE_USER | PTE_NX);
}

static void make_descriptors(struct probe *p)
{
    uint64_t *gdt = table(p, PROBE_GDT), *idt = table(p, PROBE_IDT);
    uint64_t ist = PROBE_IST, rsp0 = PROBE_STACK0;

    gdt[1] = 0x00af9b000000ffffull; /* code, ring 0 */
    gdt[2] = 0x00cf93000000ffffull; /* data, ring 0 */
    gdt[3] = 0x00cff3000000ffffull; /* data, ring 3 */
    gdt[4] = 0x00affb000000ffffull; /* code, ring 3 */
    gdt[5] = 0x67 | (PROBE_TSS & 0xffffffull) << 16 | 0x8bull << 40;
    memcpy(p->memory + PROBE_TSS + 4, &rsp0, sizeof(rsp0));
    memcpy(p->memory + PROBE_TSS + 36, &ist, sizeof(ist));
    p->memory[PROBE_TSS + 102] = 104; /* the I/O bitmap lies beyond: no port is ring 3's */
    for (uint64_t vector = 0; vector < 32; vector++) {
        uint64_t entry = probe_address(dune_probe_vectors) + 16 * vector;

        idt[2 * vector] = (entry & 0xffff) | (uint64_t)PROBE_KERNEL_CS << 16 | 1ull << 32 |
                          0x8e00ull << 32 | (entry >> 16 & 0xffff) << 48;
        idt[2 * vector + 1] = entry >> 32;
    }
}

static int make_memory(struct probe *p)
{
    struct kvm_userspace_memory_region region = {.memory_size = PROBE_BYTES};
    size_t text_bytes = (size_t)(dune_probe_text_end - dune_probe_text);
    void *memory =
        mmap(NULL, PROBE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return -errno;
    p->memory = memory;
    memcpy(p->memory + PROBE_TEXT0, dune_probe_text, text_bytes);
    memcpy(p->memory + PROBE_TEXT3, dune_probe_text, text_bytes);
    make_pages(p);
    make_descriptors(p);
    region.userspace_addr = (uint64_t)p->memory;
    return ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &region) ? -errno : 0;
}

/* ---- its CPU ------------------------------------------------------------------------------- */

static struct kvm_segment segment(uint16_t selector, uint8_t type, uint8_t l)
{
    return (struct kvm_segment){.limit = 0xffffffff,
                                .selector = selector,
                                .type = type,
                                .present = 1,
                                .db = !l,
                                .s = 1,
                                .l = l,
                                .g = 1};
}

static void fill_sregs(struct probe *p)
{
    struct kvm_sregs *sregs = &p->sregs;

    sregs->cs = segment(PROBE_KERNEL_CS, 11, 1);
    sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = segment(PROBE_KERNEL_DS, 3, 0);
    sregs->tr = (struct kvm_segment){
        .base = PROBE_TSS, .limit = 0x67, .selector = PROBE_TR, .type = 11, .present = 1};
    sregs->gdt = (struct kvm_dtable){.base = PROBE_GDT, .limit = 7 * 8 - 1};
    sregs->idt = (struct kvm_dtable){.base = PROBE_IDT, .limit = 32 * 16 - 1};
    sregs->cr0 = CR0_START;
    sregs->cr3 = PROBE_PML4;
    sregs->cr4 = CR4_START;
    if (p->report->fsgsbase)
        sregs->cr4 |= CR4_FSGSBASE;
    if (p->report->xsave)
        sregs->cr4 |= CR4_OSXSAVE;
    sregs->efer = EFER_START;
}

static int make_cpu(struct probe *p)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry[3];
    } msrs = {
        .head.nmsrs = 3,
        .entry = {{.index = MSR_STAR, .data = 0x0013000800000000ull},
                  {.index = MSR_LSTAR, .data = probe_address(dune_probe_lstar)},
                  {.index = MSR_FMASK, .data = 0x200}},
    };
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs[0] = {.xcr = 0, .value = p->report->xcr0}};
    int bytes = ioctl(p->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

    p->vcpu = ioctl(p->vm, KVM_CREATE_VCPU, 0);
    if (p->vcpu < 0 || bytes <= 0)
        return -errno;
    p->run_bytes = (size_t)bytes;
    p->run = mmap(NULL, p->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->vcpu, 0);
    if (p->run == MAP_FAILED)
        return -errno;
    if (ioctl(p->vcpu, KVM_SET_CPUID2, p->cpuid) || ioctl(p->vcpu, KVM_GET_SREGS, &p->sregs))
        return -errno;
    fill_sregs(p);
    if (ioctl(p->vcpu, KVM_SET_SREGS, &p->sregs) || ioctl(p->vcpu, KVM_SET_MSRS, &msrs) != 3)
        return -errno;
    if (p->report->xsave && ioctl(p->vcpu, KVM_SET_XCRS, &xcrs))
        return -errno;
    return 0;
}

/* ---- its time limit ------------------------------------------------------------------------ */

static int make_limit(struct probe *p)
{
    struct {
        uint32_t length;
        uint8_t set[KERNEL_SIGSET_BYTES];
    } in_guest;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = LIMIT_SIGNAL};
    uint64_t all_but_limit = ~(1ull << (LIMIT_SIGNAL - 1));
    sigset_t limit;

    sigemptyset(&limit);
    sigaddset(&limit, LIMIT_SIGNAL);
    if (pthread_sigmask(SIG_BLOCK, &limit, &p->blocked) != 0)
        return -EINVAL;
    in_guest.length = KERNEL_SIGSET_BYTES;
    memcpy(in_guest.set, &all_but_limit, KERNEL_SIGSET_BYTES);
    if (ioctl(p->vcpu, KVM_SET_SIGNAL_MASK, &in_guest))
        return -errno;
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    return syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &p->timer) ? -errno : 0;
}

/* Repeats, so that a KVM_RUN that begins just behind a signal doesn't get away. */
void probe_arm(struct probe *p, unsigned milliseconds)
{
    struct itimerspec when = {.it_interval.tv_nsec = REPEAT_NS,
                              .it_value.tv_sec = milliseconds / 1000,
                              .it_value.tv_nsec = milliseconds % 1000 * 1000000L};

    syscall(SYS_timer_settime, p->timer, 0, &when, NULL);
}

void probe_disarm(struct probe *p)
{
    struct itimerspec never = {0};
    struct timespec now = {0};
    sigset_t limit;

    if (p->timer < 0)
        return;
    syscall(SYS_timer_settime, p->timer, 0, &never, NULL);
    sigemptyset(&limit);
    sigaddset(&limit, LIMIT_SIGNAL);
    while (sigtimedwait(&limit, NULL, &now) > 0)
        continue;
}

/* ---- all of it ----------------------------------------------------------------------------- */

int probe_create(struct probe *p)
{
    int error;

    p->vm = ioctl(p->kvm, KVM_CREATE_VM, 0);
    if (p->vm < 0)
        return -errno;
    error = make_memory(p);
    if (error == 0)
        error = make_cpu(p);
    return error != 0 ? error : make_limit(p);
}

void probe_destroy(struct probe *p)
{
    if (p->timer >= 0) {
        probe_disarm(p);
        syscall(SYS_timer_delete, p->timer);
        pthread_sigmask(SIG_SETMASK, &p->blocked, NULL);
    }
    if (p->run != NULL && p->run != MAP_FAILED)
        munmap(p->run, p->run_bytes);
    for (int i = 0; i < 3; i++) {
        int fd = i == 0 ? p->vcpu : i == 1 ? p->vm : p->kvm;

        if (fd >= 0)
            close(fd);
    }
    if (p->memory != NULL)
        munmap(p->memory, PROBE_BYTES);
    free(p->cpuid);
}

/* ---- running it ---------------------------------------------------------------------------- */

/* One KVM_RUN to an exit that a port or something strange made. */
static enum probe_end run_once(struct probe *p, struct probe_result *result)
{
    uint64_t began;
    int failed;

    if (p->expired)
        return PROBE_EXPIRED;
    began = probe_now_ns();
    failed = ioctl(p->vcpu, KVM_RUN, 0) != 0 ? errno : 0;
    p->run_ns = probe_now_ns() - began;
    if (failed != 0) {
        result->detail = -failed;
        p->expired = failed == EINTR;
        return p->expired ? PROBE_EXPIRED : PROBE_STRANGE;
    }
    result->detail = (int)p->run->exit_reason;
    if (p->run->exit_reason != KVM_EXIT_IO || p->run->io.direction != KVM_EXIT_IO_OUT)
        return PROBE_STRANGE;
    switch (p->run->io.port) {
    case PROBE_PORT_TRAP:
        return PROBE_TRAP;
    case PROBE_PORT_SYSCALL:
        return PROBE_SYSCALL;
    case PROBE_PORT_TICK:
        return PROBE_TICK;
    case PROBE_PORT_DONE:
        return PROBE_DONE;
    default:
        return PROBE_STRANGE;
    }
}

/* The last port's instruction must be completed before registers are set, or KVM does it on top. */
static void complete(struct probe *p)
{
    p->run->immediate_exit = 1;
    ioctl(p->vcpu, KVM_RUN, 0);
    p->run->immediate_exit = 0;
}

static bool read_frame(const struct probe *p, struct probe_result *result)
{
    uint64_t frame[7], at = result->regs.rsp;

    if (at % 8 != 0 || at > PROBE_BYTES - sizeof(frame))
        return false;
    memcpy(frame, p->memory + at, sizeof(frame));
    result->frame_at = at;
    result->vector = frame[0];
    result->error = frame[1];
    result->rip = frame[2];
    result->cs = frame[3];
    result->rflags = frame[4];
    result->rsp = frame[5];
    result->ss = frame[6];
    result->cr2 = result->regs.r15;
    return true;
}

enum probe_end probe_run(struct probe *p, const struct kvm_regs *regs, struct probe_result *result)
{
    struct kvm_regs start = *regs;
    struct kvm_vcpu_events events = {0};
    struct kvm_sregs sregs;
    enum probe_end end;

    memset(result, 0, sizeof(*result));
    start.rflags = 2;
    start.rsp = PROBE_STACK0;
    complete(p);
    ioctl(p->vcpu, KVM_SET_VCPU_EVENTS, &events);
    if (ioctl(p->vcpu, KVM_SET_SREGS, &p->sregs) || ioctl(p->vcpu, KVM_SET_REGS, &start)) {
        result->detail = -errno;
        return PROBE_STRANGE;
    }
    end = run_once(p, result);
    if (ioctl(p->vcpu, KVM_GET_REGS, &result->regs) || ioctl(p->vcpu, KVM_GET_SREGS, &sregs)) {
        result->detail = -errno;
        return PROBE_STRANGE;
    }
    result->ring = sregs.cs.selector & 3;
    return end == PROBE_TRAP && !read_frame(p, result) ? PROBE_STRANGE : end;
}

enum probe_end probe_run3(struct probe *p, const char *entry, const struct kvm_regs *regs,
                          struct probe_result *result)
{
    struct kvm_regs start = *regs;

    start.rip = probe_address(dune_probe_enter);
    start.rdi = PROBE_TEXT3 + (uint64_t)(entry - dune_probe_text);
    return probe_run(p, &start, result);
}

bool probe_tick(struct probe *p)
{
    struct probe_result result;

    return run_once(p, &result) == PROBE_TICK;
}

/* ---- KVM's own counters -------------------------------------------------------------------- */

int64_t probe_count_exits(const struct probe *p)
{
    struct kvm_stats_header header;
    int fd = ioctl(p->vcpu, KVM_GET_STATS_FD, 0);
    int64_t value = -1;

    if (fd < 0)
        return -1;
    if (pread(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header) &&
        header.name_size <= 128) {
        size_t bytes = sizeof(struct kvm_stats_desc) + header.name_size;

        for (uint32_t i = 0; i < header.num_desc && value < 0; i++) {
            uint8_t buffer[sizeof(struct kvm_stats_desc) + 128];
            struct kvm_stats_desc desc;

            if (pread(fd, buffer, bytes, (off_t)(header.desc_offset + i * bytes)) != (ssize_t)bytes)
                break;
            memcpy(&desc, buffer, sizeof(desc));
            if (strncmp((char *)buffer + sizeof(desc), "exits", header.name_size) == 0 &&
                pread(fd, &value, sizeof(value), (off_t)(header.data_offset + desc.offset)) !=
                    (ssize_t)sizeof(value))
                value = -1;
        }
    }
    close(fd);
    return value;
}
