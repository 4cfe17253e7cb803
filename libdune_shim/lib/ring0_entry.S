/* Ring 3, called from ring 0, and back. */
#include "shim/layout.h"
#include "shim/trap.h"

    .text
/* long dune_ring0_run(uint64_t *user_return, struct dune_tf *tf, uint64_t become,
 *                     uint64_t *stack_top): becomes *tf, and returns when ring 0 is to go on
 * (trap.c's end_user()): its RAX is then the result. Exceptions and system calls of ring 3 run on
 * this stack, below. */
    .globl dune_ring0_run
    .hidden dune_ring0_run
dune_ring0_run:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    sub $24, %rsp /* a multiple of 16, as an exception's frame wants it */
    stmxcsr 0(%rsp)
    fnstcw 4(%rsp)
    lea 1f(%rip), %rax
    mov %rax, 8 * DUNE_RETURN_RIP(%rdi)
    mov %rsp, 8 * DUNE_RETURN_RSP(%rdi)
    mov %rsp, (%rcx)
    lea DUNE_TF_RIP(%rsi), %rsp
    jmp *%rdx
1:  cld
    fninit
    fldcw 4(%rsp)
    ldmxcsr 0(%rsp)
    add $24, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret

/* Where ring 3's entry function returns to. */
    .globl dune_ring3_ended
    .hidden dune_ring3_ended
dune_ring3_ended:
    xor %edi, %edi
/* void dune_return(long result) */
    .globl dune_return
dune_return:
    mov $DUNE_CALL_RETURN, %eax
    syscall
    ud2

    .section .note.GNU-stack, "", @progbits
