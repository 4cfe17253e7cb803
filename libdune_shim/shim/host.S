/* The host side's assembly: entering the loop, leaving it, forwarded calls, signals, clone. */
#include "shim/layout.h"

#define LABEL(name) .globl name; .hidden name; name

    .text

/* void dune_host_enter(struct dune_vcpu *cpu): onto the block's host stack, into the loop. */
LABEL(dune_host_enter):
    lea DUNE_BLOCK_TOP - DUNE_BLOCK_VCPU(%rdi), %rsp
    xor %ebp, %ebp
    call dune_loop
    ud2

/* void dune_host_resume(const struct dune_regs *regs): becomes that, outside of the guest. The
 * word below its red zone serves as scratch. */
LABEL(dune_host_resume):
    mov 0x30(%rdi), %rax         /* rsp */
    lea -128 - 24(%rax), %rax
    mov 0x80(%rdi), %rcx         /* rip */
    mov %rcx, 16(%rax)
    mov 0x88(%rdi), %rcx         /* rflags */
    mov %rcx, 8(%rax)
    mov 0x28(%rdi), %rcx         /* rdi */
    mov %rcx, 0(%rax)
    mov %rax, %rsp
    mov 0x00(%rdi), %rax
    mov 0x08(%rdi), %rbx
    mov 0x10(%rdi), %rcx
    mov 0x18(%rdi), %rdx
    mov 0x20(%rdi), %rsi
    mov 0x38(%rdi), %rbp
    mov 0x40(%rdi), %r8
    mov 0x48(%rdi), %r9
    mov 0x50(%rdi), %r10
    mov 0x58(%rdi), %r11
    mov 0x60(%rdi), %r12
    mov 0x68(%rdi), %r13
    mov 0x70(%rdi), %r14
    mov 0x78(%rdi), %r15
    pop %rdi
    popfq
    ret $128 /* pops RIP and steps over the red zone */

/* long dune_forward_raw(struct dune_vcpu *cpu, uint64_t nr, const uint64_t arg[6])
 *
 * With the key closed neither the stack nor anything else in the vault can be read here, so all is
 * in registers. A signal before SYSCALL ran (or when the kernel backed up to restart it)
 * leaves RIP in [check, syscall]: dune_host_signal() then moves it to the restart label. */
LABEL(dune_forward_raw):
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rdi, %rbx
    mov %rsi, %r12               /* nr */
    mov 0x10(%rdx), %r13         /* becomes RDX */
    mov DUNE_VCPU_KEYED(%rbx), %r15d
    mov DUNE_VCPU_PKRU_OPEN(%rbx), %r14d
    mov DUNE_VCPU_PKRU_CLOSED(%rbx), %ebp
    mov 0x00(%rdx), %rdi
    mov 0x08(%rdx), %rsi
    mov 0x18(%rdx), %r10
    mov 0x20(%rdx), %r8
    mov 0x28(%rdx), %r9
LABEL(dune_forward_check):
    cmpl $0, DUNE_VCPU_RECORDED(%rbx)
    jne dune_forward_restart
    test %r15d, %r15d
    jz 1f
    mov %ebp, %eax
    xor %ecx, %ecx
    xor %edx, %edx
    wrpkru
1:  mov %r13, %rdx
    mov %r12, %rax
LABEL(dune_forward_syscall):
    syscall
    mov %rax, %r12
2:  test %r15d, %r15d
    jz 3f
    mov %r14d, %eax
    xor %ecx, %ecx
    xor %edx, %edx
    wrpkru
3:  mov %r12, %rax
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
LABEL(dune_forward_restart):
    mov $-512, %r12
    jmp 2b

/* Signals. The kernel calls with all keys but 0 closed. */
LABEL(dune_host_signal_entry_keyed):
    mov %rdx, %r8
    xor %eax, %eax
    xor %ecx, %ecx
    xor %edx, %edx
    wrpkru
    mov %r8, %rdx
LABEL(dune_host_signal_entry):
    cld
    jmp dune_host_signal /* returns to the restorer, which the kernel pushed */

LABEL(dune_host_restorer):
    mov $15, %eax
    syscall
    ud2

/* long dune_host_clone(flags, stack, parent_tid, child_tid, tls, entry, child): the child calls
 * entry(child) on its stack; with stack 0 (fork) it returns 0 here, on its copy of this one. */
LABEL(dune_host_clone):
    test %rsi, %rsi
    jz 1f
    mov 8(%rsp), %rax
    sub $16, %rsi
    mov %r9, 0(%rsi)
    mov %rax, 8(%rsi)
1:  mov %rcx, %r10
    mov $56, %eax
    mov %rsi, %r9
    syscall
    test %rax, %rax
    jnz 2f
    test %r9, %r9
    jz 2f
    xor %ebp, %ebp
    pop %rax
    pop %rdi
    call *%rax
    ud2
2:  ret

    .section .note.GNU-stack, "", @progbits
