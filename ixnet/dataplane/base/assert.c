#include "base/types.h"

void ix_assert_failed(const char *what, const char *file, int line)
{
    /* An empty statement that takes the arguments: without it they would be dead here, and the
     * compiler would not even load them in the callers. They stand in the registers of the
     * calling convention (rdi, rsi, edx on x86-64) when the trap is taken. */
    __asm__ volatile("" : : "r"(what), "r"(file), "r"(line));
    __builtin_trap();
}
