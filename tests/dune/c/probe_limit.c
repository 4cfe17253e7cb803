/* The self-test's time limits: guests that would run for ever. Runs on an unfit KVM, too. */
#include "lib/probe.h"
#include "open.h"

#include <sys/ioctl.h>

#define LIMIT_MS    50
#define PATIENCE_NS 2000000000ull
#define FOR_EVER    (1ull << 62)

static void limited(struct probe *p, const char *what, bool ring3)
{
    struct kvm_regs regs = {.rip = probe_address(dune_probe_loop), .r12 = FOR_EVER};
    uint64_t began = probe_now_ns(), took;
    struct probe_result result;
    enum probe_end end;

    probe_arm(p, LIMIT_MS);
    end = ring3 ? probe_run3(p, dune_probe_loop, &regs, &result) : probe_run(p, &regs, &result);
    took = probe_now_ns() - began;
    probe_disarm(p);
    printf("%s: end %d after %llu ms\n", what, end, (unsigned long long)(took / 1000000));
    EQUAL(end, PROBE_EXPIRED);
    CHECK(took < PATIENCE_NS);
    /* The next one is not begun: such a KVM isn't trusted with another. */
    EQUAL(probe_run(p, &regs, &result), PROBE_EXPIRED);
    p->expired = false;
}

int main(void)
{
    struct dune_report report = {0};
    struct probe p = {.report = &report, .vm = -1, .vcpu = -1, .timer = -1};
    struct kvm_regs regs = {.rip = probe_address(dune_probe_loop), .r12 = 10};
    struct probe_result result;

    p.kvm = probe_open_kvm();
    if (p.kvm < 0) {
        printf("no KVM: %s\n", strerror(-p.kvm));
        return 77;
    }
    p.cpuid = calloc(1, sizeof(*p.cpuid) + PROBE_CPUID_ENTRIES * sizeof(p.cpuid->entries[0]));
    CHECK(p.cpuid != NULL);
    p.cpuid->nent = PROBE_CPUID_ENTRIES;
    EQUAL(ioctl(p.kvm, KVM_GET_SUPPORTED_CPUID, p.cpuid), 0);
    EQUAL(probe_create(&p), 0);
    limited(&p, "a loop in ring 0", false);
    limited(&p, "a loop in ring 3", true);
    EQUAL(probe_run(&p, &regs, &result), PROBE_DONE); /* and it still works */
    EQUAL(result.regs.r12, 0);
    probe_destroy(&p);
    return 0;
}
