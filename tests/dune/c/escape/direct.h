/* By instructions alone: loads, stores, fetches, and what is ring 0's. */
#ifndef ESCAPE_DIRECT_H
#define ESCAPE_DIRECT_H

#include "kit.h"

static void try_access(const char *name, uint64_t at)
{
    char what[80];
    volatile uint64_t *word = (uint64_t *)at;
    static uint64_t seen;

    seen = 0;
    snprintf(what, sizeof what, "load %s", name);
    FAULTS(what, seen = *word);
    if (seen == ~given.not_secret)
        say(false, what, "the secret was read");
    snprintf(what, sizeof what, "store %s", name);
    FAULTS(what, *word = 0);
    snprintf(what, sizeof what, "lock cmpxchg %s", name);
    FAULTS(what, __sync_bool_compare_and_swap((uint64_t *)at, ~given.not_secret, 1));
    snprintf(what, sizeof what, "call %s", name);
    FAULTS(what, ((void (*)(void))at)());
}

static void direct_everywhere(void)
{
    group = "direct access";
    try_access("the secret", given.target);
    try_access("the image", given.vault);
    try_access("struct dune_vault", given.vault + 0x100000);
    try_access("the page tables", given.vault + 0x200000);
    try_access("a vCPU's stub", given.vault + 0x10000000);
    try_access("the GDT", given.vault + 0x10002e00);
    try_access("kvm_run", given.vault + 0x1000c000);
    try_access("the host side's stack", given.vault + 0x1001fff0);
    try_access("the scratch", given.scratch);
    try_access("the guard below", given.vault - 8);
    try_access("the guard above", given.vault + GIB);
    try_access("the upper half", 0xffff800000000000);
    try_access("the upper half's end", 0xfffffffffffff000);
    try_access("no canonical address", 0x800000000000);
}

static void direct_by_odd_instructions(void)
{
    uint64_t at = given.target, kept = U(good);

    group = "direct access";
    FAULTS("rep movsb out of it", __asm__ volatile("rep movsb" ::"S"(at), "D"(kept), "c"(64)
                                                   : "memory"));
    FAULTS("rep movsb into it", __asm__ volatile("rep movsb" ::"S"(kept), "D"(at), "c"(64)
                                                 : "memory"));
    FAULTS("rep stosq across the guard's edge",
           __asm__ volatile("rep stosq" ::"D"(given.vault - 16), "c"(4), "a"(0)
                            : "memory"));
    FAULTS("fxsave into it", __asm__ volatile("fxsave64 (%0)" ::"r"(at) : "memory"));
    FAULTS("fxrstor out of it", __asm__ volatile("fxrstor64 (%0)" ::"r"(at) : "memory"));
    FAULTS("xsave into it", __asm__ volatile("xsave64 (%0)" ::"r"(at), "a"(3), "d"(0) : "memory"));
    FAULTS("movnti into it", __asm__ volatile("movnti %1, (%0)" ::"r"(at), "r"(0ull) : "memory"));
    MAY_PASS("clflush of it", __asm__ volatile("clflush (%0)" ::"r"(at) : "memory"));
    FAULTS("push with rsp in it",
           __asm__ volatile("mov %%rsp, %%rbx\n\tmov %0, %%rsp\n\tpush $0\n\t"
                            "mov %%rbx, %%rsp" ::"r"(at + 64)
                            : "rbx", "memory"));
    FAULTS("by FS",
           __asm__ volatile("wrfsbase %0\n\tmovq $0, %%fs:0\n\twrfsbase %1" ::"r"(at), "r"(own_fs)
                            : "memory"));
    FAULTS("by GS", __asm__ volatile("wrgsbase %0\n\tmovq $0, %%gs:0" ::"r"(at) : "memory"));
    TRY(__asm__ volatile("wrgsbase %0" ::"r"(0ull)));
    say(!leaked(good, PAGE), "what these left in memory", "no secret");
}

#define PRIVILEGED(X) \
    X("hlt", "hlt") \
    X("cli", "cli") \
    X("sti", "sti") \
    X("in al, dx", "mov $0x10, %%edx; in %%dx, %%al") \
    X("out of the system-call port", "mov $0x10, %%edx; out %%al, %%dx") \
    X("out of the trap port", "mov $0x11, %%edx; out %%al, %%dx") \
    X("out of the call port", "mov $0x13, %%edx; out %%eax, %%dx") \
    X("out imm8", "out %%al, $0x14") \
    X("rep insb", "mov %[good], %%rdi; mov $1, %%ecx; mov $0x10, %%edx; rep insb") \
    X("rep outsb", "mov %[good], %%rsi; mov $1, %%ecx; mov $0x10, %%edx; rep outsb") \
    X("rdmsr EFER", "mov $0xc0000080, %%ecx; rdmsr") \
    X("wrmsr LSTAR", "mov $0xc0000082, %%ecx; xor %%eax, %%eax; xor %%edx, %%edx; wrmsr") \
    X("mov cr0 out", "mov %%cr0, %%rax") \
    X("mov cr0 in", "xor %%eax, %%eax; mov %%rax, %%cr0") \
    X("mov cr2 out", "mov %%cr2, %%rax") \
    X("mov cr3 out", "mov %%cr3, %%rax") \
    X("mov cr3 in", "xor %%eax, %%eax; mov %%rax, %%cr3") \
    X("mov cr4 in", "xor %%eax, %%eax; mov %%rax, %%cr4") \
    X("mov cr8 in", "xor %%eax, %%eax; mov %%rax, %%cr8") \
    X("mov dr7 in", "xor %%eax, %%eax; mov %%rax, %%dr7") \
    X("lgdt", "lgdt (%[good])") \
    X("lidt", "lidt (%[good])") \
    X("lldt", "xor %%eax, %%eax; lldt %%ax") \
    X("ltr", "mov $0x28, %%eax; ltr %%ax") \
    X("swapgs", "swapgs") \
    X("clts", "clts") \
    X("lmsw", "xor %%eax, %%eax; lmsw %%ax") \
    X("invlpg", "invlpg (%[good])") \
    X("xsetbv", "xor %%ecx, %%ecx; mov $1, %%eax; xor %%edx, %%edx; xsetbv") \
    X("monitor", "mov %[good], %%rax; xor %%ecx, %%ecx; xor %%edx, %%edx; monitor") \
    X("rsm", "rsm")

#define PRIVILEGED_MORE(X) \
    X("clac", "clac") \
    X("stac", "stac") \
    X("sysretq", "mov %[good], %%rcx; sysretq") \
    X("sysexit", "sysexitq") \
    X("sysenter", "sysenter") \
    X("vmrun", "mov %[good], %%rax; vmrun %%rax") \
    X("vmload", "mov %[good], %%rax; vmload %%rax") \
    X("vmsave", "mov %[good], %%rax; vmsave %%rax") \
    X("clgi", "clgi") \
    X("stgi", "stgi") \
    X("invpcid", "xor %%eax, %%eax; invpcid (%[good]), %%rax") \
    X("iretq to ring 0", "push $0x10; push %[good]; pushfq; push $0x08; push %[good]; iretq") \
    X("iretq with VM and IOPL", "push $0x10; push %[good]; push $0x23202; push $0x08; " \
                                "push %[good]; iretq") \
    X("lretq to ring 0", "push $0x08; push %[good]; lretq") \
    X("far jump to ring 0", "ljmpl *(%[good])") \
    X("far call to ring 0", "lcalll *(%[good])") \
    X("far call to the TSS", "lcalll *16(%[good])") \
    X("mov ss, ring 0's", "mov $0x10, %%eax; mov %%eax, %%ss") \
    X("mov ds, the TSS", "mov $0x28, %%eax; mov %%eax, %%ds") \
    X("icebp", ".byte 0xf1")

static void privileged(void)
{
    static const struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) ring0 = {0x1000, 0x08}, tss = {0, 0x28};

    group = "privileged instruction";
    memset(good, 0, PAGE);
    memcpy(good, &ring0, sizeof ring0);
    memcpy(good + 16, &tss, sizeof tss);
#define ONE(name, code) \
    FAULTS(name, \
           __asm__ volatile("mov %%rsp, %%rbx\n\t" code "\n\tmov %%rbx, %%rsp" ::[good] "r"(good) \
                            : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "memory"));
    PRIVILEGED(ONE)
    PRIVILEGED_MORE(ONE)
#undef ONE
}

/* A fault on a CPU. QEMU's emulation lets them pass without an effect, and so may KVM, which takes
 * INVD and WBINVD for nothing before the privilege level is looked at. */
static void privileged_in_vain(void)
{
    MAY_PASS("invd", __asm__ volatile("invd"));
    MAY_PASS("wbinvd", __asm__ volatile("wbinvd" ::: "memory"));
    MAY_PASS("vmxon", __asm__ volatile("vmxon (%0)" ::"r"(good) : "memory", "cc"));
    MAY_PASS("xrstors", __asm__ volatile("xrstors (%0)" ::"r"(good), "a"(3), "d"(0) : "memory"));
}

/* KVM answers VMMCALL and VMCALL itself, with -EPERM for ring 3. */
static void hypercalls(void)
{
    static long result;

    group = "privileged instruction";
    TRY(__asm__ volatile("vmmcall" : "=a"(result) : "0"(1), "b"(given.target) : "memory"));
    say(caught || result < 0, "vmmcall", "%s", caught ? sigabbrev_np(caught) : "EPERM");
    result = 0;
    TRY(__asm__ volatile("vmcall" : "=a"(result) : "0"(9), "b"(given.target) : "memory"));
    say(caught || result < 0, "vmcall", "%s", caught ? sigabbrev_np(caught) : "EPERM");
}

/* int n for every n: only breakpoint and overflow may pass the gate, and both are signals. */
static void software_interrupts(void)
{
    unsigned char *code =
        mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static unsigned faulted;

    group = "privileged instruction";
    if (code == MAP_FAILED) {
        say(false, "int n", "no executable memory");
        return;
    }
    for (int n = 0; n < 256; n++) {
        memcpy(code, (unsigned char[]){0xcd, (unsigned char)n, 0xc3}, 3);
        TRY(((void (*)(void))code)());
        faulted += caught != 0;
        if (!caught)
            say(false, "int n", "int 0x%02x went through", (unsigned)n);
    }
    say(faulted == 256, "int 0 to int 255", "%u signals", faulted);
    munmap(code, PAGE);
}

/* Flags that ring 0 must not keep when it is entered: a step, an alignment check, a nested task. */
static void flags_into_ring0(void)
{
    static const struct {
        const char *name;
        uint64_t bits;
    } flags[] = {
        {"TF", 1 << 8},
        {"DF", 1 << 10},
        {"NT", 1 << 14},
        {"AC", 1 << 18},
        {"ID and all of them", 1 << 8 | 1 << 10 | 1 << 14 | 1 << 18 | 1 << 21},
    };

    group = "flags at SYSCALL";
    for (size_t n = 0; n < sizeof flags / sizeof *flags; n++) {
        static long result;

        result = 0;
        TRY(__asm__ volatile(
            "sub $128, %%rsp\n\tpushfq\n\tpop %%rbx\n\tor %[bits], %%rbx\n\t"
            "push %%rbx\n\tpopfq\n\tsyscall\n\tpushfq\n\tandq $~0x44500, (%%rsp)\n\t"
            "popfq\n\tadd $128, %%rsp"
            : "=a"(result)
            : "0"(SYS_getpid), [bits] "r"(flags[n].bits)
            : "rbx", "rcx", "r11", "memory", "cc"));
        say(code_segment() == 0x23 && (caught || result == getpid()), flags[n].name, "%s",
            caught ? sigabbrev_np(caught) : "an ordinary call");
    }
}

/* The return address behind a SYSCALL in the last bytes of user space. */
static void syscall_at_the_end(void)
{
    const uint64_t end = 0x7ffffffff000;
    void *last = mmap((void *)(end - PAGE), PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

    group = "flags at SYSCALL";
    if (last == MAP_FAILED) {
        say(true, "SYSCALL before the address space's end", "%s", strerrorname_np(errno));
        return;
    }
    memcpy((void *)(end - 2), "\x0f\x05", 2);
    FAULTS("SYSCALL before the address space's end",
           __asm__ volatile("jmp *%1" ::"a"(SYS_getpid), "r"(end - 2)
                            : "rcx", "r11", "memory"));
    munmap(last, PAGE);
}

static void direct_all(void)
{
    direct_everywhere();
    direct_by_odd_instructions();
    privileged();
    privileged_in_vain();
    hypercalls();
    software_interrupts();
    flags_into_ring0();
    syscall_at_the_end();
}

#endif
