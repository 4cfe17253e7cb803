/* Attacks by code: jumps into ring 0's, instructions that are its alone, and loops without end. */

#include "libdune_shim/shim/layout.h"

static void jump(uint64_t at)
{
    ((void (*)(void))at)();
}

static void attack_jump(struct ix_app *app)
{
    uint64_t data = kit_data(app), vault = data - GIB;
    static const uint64_t offsets[] = {0, 0x40, 0x1000, 0x1001, 0x2345, 0x8000};
    kit_expect(data != 0, "the closed range is not found");
    for (uint32_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        uint64_t module = vault + DUNE_MODULES_AT + offsets[i], shim = vault + offsets[i];
        uint64_t stub = vault + DUNE_BLOCKS_AT + offsets[i];
        kit_expect(kit_fault(jump, module) == SIGSEGV, "a jump to the dataplane's %lx", offsets[i]);
        kit_expect(kit_fault(jump, shim) == SIGSEGV, "a jump to the shim's %lx", offsets[i]);
        kit_expect(kit_fault(jump, stub) == SIGSEGV, "a jump to a stub's %lx", offsets[i]);
        kit_expect(kit_fault(jump, data + offsets[i]) == SIGSEGV, "a jump to data");
    }
    kit_expect(kit_fault(jump, (uint64_t)app->io->umem) == SIGSEGV, "a jump to payload");
}

static void privileged(uint64_t which)
{
    static uint8_t table[16];
    uint64_t word = 0;
    switch (which) {
    case 0: __asm__ volatile("hlt"); break;
    case 1: __asm__ volatile("cli"); break;
    case 2: __asm__ volatile("sti"); break;
    case 3: __asm__ volatile("mov %%cr0, %0" : "=r"(word)); break;
    case 4: __asm__ volatile("mov %%cr3, %0" : "=r"(word)); break;
    case 5: __asm__ volatile("mov %0, %%cr3" : : "r"(word)); break;
    case 6: __asm__ volatile("mov %0, %%cr4" : : "r"(word)); break;
    case 7: __asm__ volatile("mov %0, %%dr7" : : "r"(word)); break;
    case 8: __asm__ volatile("wrmsr" : : "c"(0xc0000082), "a"(0), "d"(0)); break;
    case 9: __asm__ volatile("rdmsr" : : "c"(0xc0000082) : "rax", "rdx"); break;
    case 10: __asm__ volatile("lgdt %0" : : "m"(table)); break;
    case 11: __asm__ volatile("lidt %0" : : "m"(table)); break;
    case 12: __asm__ volatile("ltr %w0" : : "r"(0x28)); break;
    case 13: __asm__ volatile("invlpg %0" : : "m"(table)); break;
    case 14: __asm__ volatile("clts"); break;
    case 15: __asm__ volatile("swapgs"); break;
    case 16: __asm__ volatile("sysretq" : : "c"(0), "r"(word)); break;
    case 17: __asm__ volatile("xsetbv" : : "c"(0), "a"(1), "d"(0)); break;
    case 18: __asm__ volatile("clac"); break;
    case 19: __asm__ volatile("out %%al, $0x80" : : "a"(0)); break;
    case 20: __asm__ volatile("out %%al, %%dx" : : "a"(0), "d"(0xd0)); break;
    case 21: __asm__ volatile("in $0x80, %%al" : : : "rax"); break;
    case 22: __asm__ volatile("int $0x0e"); break;
    case 23: __asm__ volatile("invpcid %0, %1" : : "m"(table), "r"(word)); break;
    default: break;
    }
}

enum { PRIVILEGED = 24 };

static void attack_privileged(struct ix_app *app)
{
    (void)app;
    for (uint64_t i = 0; i < PRIVILEGED; i++) {
        int number = kit_fault(privileged, i);
        kit_expect(number == SIGSEGV || number == SIGILL, "instruction %lu: signal %d", i, number);
    }
}

static void attack_spin(struct ix_app *app)
{
    (void)app;
    kit_answer("spin");
    for (;;)
        __asm__ volatile("pause");
}

/* Unhandled: the end of the application, and of nothing else. */
static void attack_die(struct ix_app *app)
{
    *(volatile uint8_t *)(kit_data(app) - GIB + DUNE_TABLES_AT) = 1;
}
