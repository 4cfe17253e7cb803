/* A thread's way into the guest and out of it. */
#include "shim/layout.h"

    .text
/* int dune_enter(void), int dune_enter_user(void): what has to survive a call is put down as struct
 * dune_regs; the guest begins with that, at the return address, with RAX 0. */
    .globl dune_enter, dune_enter_user, dune_leave_guest, dune_user_from_ring0
    .hidden dune_leave_guest, dune_user_from_ring0
dune_enter:
    xor %edi, %edi
    jmp 1f
dune_enter_user:
    mov $3, %edi
1:  mov (%rsp), %rax
    lea 8(%rsp), %rdx
    pushfq
    pop %rcx
    sub $152, %rsp
    movq $0, 0x00(%rsp)
    mov %rbx, 0x08(%rsp)
    movq $0, 0x10(%rsp)
    movq $0, 0x18(%rsp)
    movq $0, 0x20(%rsp)
    movq $0, 0x28(%rsp)
    mov %rdx, 0x30(%rsp)
    mov %rbp, 0x38(%rsp)
    movq $0, 0x40(%rsp)
    movq $0, 0x48(%rsp)
    movq $0, 0x50(%rsp)
    movq $0, 0x58(%rsp)
    mov %r12, 0x60(%rsp)
    mov %r13, 0x68(%rsp)
    mov %r14, 0x70(%rsp)
    mov %r15, 0x78(%rsp)
    mov %rax, 0x80(%rsp)
    mov %rcx, 0x88(%rsp)
    mov %rsp, %rsi
    call dune_enter_ring
    add $152, %rsp
    ret

/* Calls that Linux doesn't have; the stubs and the loop know them. */
dune_leave_guest:
    mov $DUNE_CALL_LEAVE, %eax
    syscall
    ret
dune_user_from_ring0:
    mov $DUNE_CALL_USER, %eax
    syscall
    ret

    .section .note.GNU-stack, "", @progbits
