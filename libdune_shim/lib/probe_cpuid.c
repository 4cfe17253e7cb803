/* The self-test: what the guest's CPU would have, against what this process may be using. */
#include "lib/probe.h"

#include <cpuid.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#define XCR0_NEEDED           0xe7u /* what code uses without asking the kernel: x87 to AVX-512 */
#define XCR0_TILES            0x60000u
#define XCR0_PKRU             0x200u
#define ARCH_GET_XCOMP_PERM   0x1022
#define DEFAULT_PHYSICAL_BITS 36

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

void probe_features(struct probe *p)
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
void probe_check_cpuid(struct probe *p)
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
        probe_unfit(p->report, DUNE_CPUID_MISMATCH,
                    "boot the host with a CPU model that has no more than its KVM offers",
                    "a guest can't have parts 0x%llx of this process's vector state",
                    (unsigned long long)lacking);
    if (used != 0)
        probe_unfit(
            p->report, DUNE_CPUID_MISMATCH,
            "hide them from the host, or have its hypervisor offer them to guests of guests",
            "a guest would lack%s, which this process may be using", names);
    if (syscall(SYS_arch_prctl, ARCH_GET_XCOMP_PERM, &permitted) == 0 && permitted & XCR0_TILES &&
        permitted & 0x40000)
        probe_unfit(p->report, DUNE_CPUID_MISMATCH, "don't ask for it",
                    "this process has asked for AMX, which the guest doesn't get");
}
