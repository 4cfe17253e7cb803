/* The self-test's guest machine: made in probe_vm.c, experimented with in probe.c. */
#ifndef DUNE_PROBE_H
#define DUNE_PROBE_H

#include "dune.h"
#include "lib/probe_guest.h"

#include <linux/kvm.h>
#include <signal.h>

/* Extensions that the headers of Linux 6.1 don't name. */
#define PROBE_CAP_MEMORY_FAULT_INFO 232

/* Parts of XCR0. */
#define XCR0_AVX    0x6u
#define XCR0_AVX512 0xe6u

#define PROBE_CPUID_ENTRIES 256

struct probe {
    struct dune_report *report;
    int kvm, vm, vcpu; /* descriptors, -1: none */
    struct kvm_run *run;
    size_t run_bytes;
    uint8_t *memory;          /* the guest's, PROBE_BYTES */
    struct kvm_cpuid2 *cpuid; /* what KVM supports */
    struct kvm_sregs sregs;   /* each experiment's start, ring 0 */
    int timer;                /* the kernel's number, -1: none */
    sigset_t blocked;         /* the thread's mask before */
    uint64_t run_ns;          /* what the last KVM_RUN took */
    bool costs;   /* exits and ring switches are to be measured too */
    bool expired; /* an experiment took too long: KVM is not to be trusted with another */
};

/* What an experiment ended with. */
enum probe_end {
    PROBE_TRAP,    /* an exception; in probe_result */
    PROBE_SYSCALL, /* SYSCALL arrived in ring 0 */
    PROBE_TICK,
    PROBE_DONE,
    PROBE_STRANGE, /* another exit, or KVM_RUN failed: result.detail says which */
    PROBE_EXPIRED,
};

struct probe_result {
    struct kvm_regs regs;
    uint32_t ring; /* at the exit */
    int detail;    /* exit reason, or -errno */
    /* PROBE_TRAP: the frame that the CPU pushed, and where. */
    uint64_t frame_at, vector, error, rip, cs, rflags, rsp, ss, cr2;
};

uint64_t probe_now_ns(void);
/* Fills in fitness and reason unless something unfit was found before. printf's format. */
void probe_unfit(struct dune_report *report, enum dune_fitness fitness, const char *cure,
                 const char *format, ...) __attribute__((format(printf, 4, 5)));
/* By CPUID: what the guest can have; and what it would lack (DUNE_CPUID_MISMATCH). */
void probe_features(struct probe *p);
void probe_check_cpuid(struct probe *p);

/* Opens /dev/kvm: its descriptor, or -errno. */
int probe_open_kvm(void);
/* All that experiments need. p->kvm and p->report must be set. 0 or -errno. */
int probe_create(struct probe *p);
void probe_destroy(struct probe *p);

/* Runs from regs in ring 0 (entry) or ring 3 (through IRETQ, entry3) until it tells. The other
 * registers are those of regs. Offsets are of the guest's text. */
enum probe_end probe_run(struct probe *p, const struct kvm_regs *regs, struct probe_result *result);
enum probe_end probe_run3(struct probe *p, const char *entry, const struct kvm_regs *regs,
                          struct probe_result *result);
/* Goes on after PROBE_TICK: KVM_RUN alone. True: ticked again. */
bool probe_tick(struct probe *p);
/* A time limit for everything until probe_disarm(). */
void probe_arm(struct probe *p, unsigned milliseconds);
void probe_disarm(struct probe *p);

/* A symbol of probe_guest.S: its address in ring 0's copy. */
uint64_t probe_address(const char *symbol);
/* KVM's counter of all exits of the vCPU, those that it handled itself included. -1: not told. */
int64_t probe_count_exits(const struct probe *p);
const struct kvm_cpuid_entry2 *probe_cpuid(const struct probe *p, uint32_t leaf, uint32_t index);

extern const char dune_probe_text[], dune_probe_text_end[], dune_probe_enter[], dune_probe_lstar[],
    dune_probe_tick[], dune_probe_loop[], dune_probe_load_cr3[], dune_probe_load[],
    dune_probe_load_end[], dune_probe_syscall[], dune_probe_syscall_end[], dune_probe_switch[],
    dune_probe_switch_end[], dune_probe_store[], dune_probe_store_end[], dune_probe_fetch[],
    dune_probe_halt[], dune_probe_undefined[], dune_probe_fsbase[], dune_probe_fsbase_end[],
    dune_probe_avx[], dune_probe_avx_end[], dune_probe_avx512[], dune_probe_avx512_end[],
    dune_probe_vectors[];

#endif
