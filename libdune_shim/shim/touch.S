/* dune_touch()'s access. RDI: the address. ESI: 0 reads, else writes. RDX: the signal mask in which
 * the access may fault. EAX: 0, or 1 when it did: signal.c leads to dune_touch_fixup then, from anywhere
 * between begin and end. The mask is set in here so that a signal which was only waiting for it
 * is met in here too. */
#include <asm/unistd.h>

#define LABEL(name) .globl name; .hidden name; name

    .text
LABEL(dune_touch_memory):
    mov %rdi, %r8
    mov %esi, %r9d
    mov $2, %edi /* SIG_SETMASK */
    mov %rdx, %rsi
    xor %edx, %edx
    mov $8, %r10d
    mov $__NR_rt_sigprocmask, %eax
LABEL(dune_touch_begin):
    syscall
    test %r9d, %r9d
    jnz 1f
    movb (%r8), %al
    jmp 2f
1:  lock orb $0, (%r8) /* a write that changes nothing, whoever else writes */
2:  xor %eax, %eax
LABEL(dune_touch_end):
    ret
LABEL(dune_touch_fixup):
    mov $1, %eax
    ret

    .section .note.GNU-stack, "", @progbits
