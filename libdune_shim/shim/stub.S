/* Ring 0's entries and exits. Every vCPU has its own copy of this page in front of its struct
 * dune_vcpu, so that it finds it at a fixed distance from RIP: no swapgs, and FS and GS stay
 * whatever ring 3 made of them.
 *
 * A signal can stop the guest between any two instructions here. What must not be interrupted is
 * made so that it can be begun again: between a *_check label and its SYSRET, IRETQ or JMP nothing
 * is consumed, and loop.c (settle()) sets RIP back to the label, where DUNE_ATTENTION_PENDING then
 * leads to the host side instead.
 */
#include "shim/layout.h"

#define CPU(offset) (dune_stub_start + DUNE_BLOCK_VCPU + (offset))(%rip)
#define LABEL(name) .globl name; .hidden name; name

    .section .text.stub, "ax", @progbits
    .balign DUNE_PAGE
LABEL(dune_stub_start):

/* SYSCALL leads here: RCX is where to return to, R11 the flags, RSP still the caller's. MSR FMASK
 * has cleared IF, TF, DF, AC and NT. Nothing may touch the stack: it is the caller's. */
LABEL(dune_stub_syscall):
    cmpb $3, CPU(DUNE_VCPU_MODE)
    jne from_ring0
    cmpb $0, CPU(DUNE_VCPU_HOOKS)
    jne hooked
forward:
    out %al, $DUNE_PORT_SYSCALL
return_user:
    testb $DUNE_ATTENTION_FULL, CPU(DUNE_VCPU_ATTENTION)
    jnz load_full
LABEL(dune_stub_user_check):
    testb $DUNE_ATTENTION_PENDING, CPU(DUNE_VCPU_ATTENTION)
    jnz 1f
LABEL(dune_stub_user_end):
    sysretq
1:  out %al, $DUNE_PORT_RETURN
    jmp return_user

/* A system call of ring 0's own code. Its red zone is below RSP. */
from_ring0:
    out %al, $DUNE_PORT_SYSCALL
return_ring0:
    testb $DUNE_ATTENTION_FULL, CPU(DUNE_VCPU_ATTENTION)
    jnz load_full
LABEL(dune_stub_ring0_check):
    testb $DUNE_ATTENTION_PENDING, CPU(DUNE_VCPU_ATTENTION)
    jnz 2f
    mov %rsp, CPU(DUNE_VCPU_SAVED)
    mov %r11, CPU(DUNE_VCPU_SAVED + 8)
    lea CPU(DUNE_VCPU_SAVED + 8), %rsp
LABEL(dune_stub_ring0_borrowed): /* until the next label RSP is not the caller's */
    popfq
    mov CPU(DUNE_VCPU_SAVED), %rsp
LABEL(dune_stub_ring0_end):
    jmp *%rcx
2:  out %al, $DUNE_PORT_RETURN
    jmp return_ring0

hooked:
    testb $DUNE_HOOK_MODULE, CPU(DUNE_VCPU_HOOKS)
    jz handler
    sub $DUNE_CALL_MODULE_FIRST, %rax
    cmp $(DUNE_CALL_MODULE_LAST - DUNE_CALL_MODULE_FIRST), %rax
    ja 1f
    mov %rsp, CPU(DUNE_VCPU_USER_RSP)
    mov CPU(DUNE_VCPU_MODULE_STACK), %rsp
    push %rcx
    push %r11
    push %r9
    push %r8 /* from here on the arguments, in order */
    push %r10
    push %rdx
    push %rsi
    push %rdi
    mov CPU(DUNE_VCPU_SELF), %rdi
    mov %rax, %rsi
    mov %rsp, %rdx
    call *CPU(DUNE_VCPU_SYSCALL) /* keeps RBX, RBP, R12 to R15 */
    pop %rdi
    pop %rsi
    pop %rdx
    pop %r10
    pop %r8
    pop %r9
    pop %r11
    pop %rcx
    mov CPU(DUNE_VCPU_USER_RSP), %rsp
    jmp return_user
1:  add $DUNE_CALL_MODULE_FIRST, %rax
    jmp forward

/* Ring 3's system call for the program's handler in ring 0. */
handler:
    mov %rsp, CPU(DUNE_VCPU_USER_RSP)
    mov CPU(DUNE_VCPU_STACK_TOP), %rsp
    sub $8, %rsp /* so that the frame of 23 words leaves RSP on a multiple of 16 */
    push $DUNE_USER_DS
    push CPU(DUNE_VCPU_USER_RSP)
    push %r11
    push $DUNE_USER_CS
    push %rcx
    push $0
    push $0x100 /* DUNE_VECTOR_SYSCALL */
    push $0
    call save_registers
    mov CPU(DUNE_VCPU_SYSCALL), %rax
    jmp call_ring0

/* Pushes what struct dune_tf begins with; RSP is then the frame's address. */
save_registers:
    xchg %rdi, (%rsp) /* the return address makes room for RDI */
    push %rsi
    push %rdx
    push %rcx
    push %rax
    push %r8
    push %r9
    push %r10
    push %r11
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    jmp *%rdi

/* RAX: the function; RSP: its frame, aligned to 16. */
call_ring0:
    movb $0, CPU(DUNE_VCPU_MODE)
    mov CPU(DUNE_VCPU_SELF), %rdi
    mov %rsp, %rsi
    call *%rax
    add $DUNE_TF_RIP, %rsp

/* Becomes the frame that RSP points into (at its RIP). RSP doesn't change until IRETQ. Ring 0's own
 * code comes here too, to go on in ring 3 (dune_run_user()). */
LABEL(dune_stub_become):
return_frame:
    mov DUNE_TF_CS - DUNE_TF_RIP(%rsp), %eax
    and $3, %al
    mov %al, CPU(DUNE_VCPU_MODE)
LABEL(dune_stub_frame_check):
    testb $DUNE_ATTENTION_PENDING, CPU(DUNE_VCPU_ATTENTION)
    jnz 3f
    mov 0x00 - DUNE_TF_RIP(%rsp), %r15
    mov 0x08 - DUNE_TF_RIP(%rsp), %r14
    mov 0x10 - DUNE_TF_RIP(%rsp), %r13
    mov 0x18 - DUNE_TF_RIP(%rsp), %r12
    mov 0x20 - DUNE_TF_RIP(%rsp), %rbp
    mov 0x28 - DUNE_TF_RIP(%rsp), %rbx
    mov 0x30 - DUNE_TF_RIP(%rsp), %r11
    mov 0x38 - DUNE_TF_RIP(%rsp), %r10
    mov 0x40 - DUNE_TF_RIP(%rsp), %r9
    mov 0x48 - DUNE_TF_RIP(%rsp), %r8
    mov 0x50 - DUNE_TF_RIP(%rsp), %rax
    mov 0x58 - DUNE_TF_RIP(%rsp), %rcx
    mov 0x60 - DUNE_TF_RIP(%rsp), %rdx
    mov 0x68 - DUNE_TF_RIP(%rsp), %rsi
    mov 0x70 - DUNE_TF_RIP(%rsp), %rdi
LABEL(dune_stub_frame_end):
    iretq
3:  lea -DUNE_TF_RIP(%rsp), %rdi
    out %al, $DUNE_PORT_RETURN_TF
    jmp return_frame

/* The host side put a whole state into the vCPU: a signal's handler, or what sigreturn restored. */
load_full:
    andb $~DUNE_ATTENTION_FULL, CPU(DUNE_VCPU_ATTENTION)
    lea CPU(DUNE_VCPU_TF + DUNE_TF_RIP), %rsp
    jmp return_frame

/* Exceptions, on IST 1. The frame is moved off it at once, so that the next one finds it free: to
 * ring 0's stack, or below the interrupted stack's red zone when ring 0 was interrupted. */
exception:
    push $0
    call save_registers
    mov %cr2, %rax
    mov %rax, DUNE_TF_CR2(%rsp)
    mov %rsp, %rsi
    mov CPU(DUNE_VCPU_STACK_TOP), %rdi
    testb $3, DUNE_TF_CS(%rsp)
    jnz 1f
    mov DUNE_TF_RIP(%rsp), %rdi
    lea dune_stub_start(%rip), %rax
    xor %rdi, %rax
    shr $DUNE_WINDOW_SHIFT, %rax
    jz panic /* the vault's own code is at fault; copying may well be what it failed at */
    mov %rdi, CPU(DUNE_VCPU_SAVED) /* for the panic's words then */
    mov DUNE_TF_RSP(%rsp), %rdi
    mov %rdi, CPU(DUNE_VCPU_SAVED + 8)
    sub $128, %rdi
    and $-16, %rdi
1:  sub $(DUNE_TF_BYTES + 8), %rdi
    mov %rdi, %rax
    mov $(DUNE_TF_BYTES / 8), %ecx
LABEL(dune_stub_copy):
    rep movsq
    mov %rax, %rsp
    mov CPU(DUNE_VCPU_TRAP), %rax
    jmp call_ring0

panic:
    mov %rsp, %rdi
    out %al, $DUNE_PORT_PANIC
    hlt

/* Double fault and machine check: on stacks of their own. */
fatal:
    push $0
    call save_registers
    mov %cr2, %rax
    mov %rax, DUNE_TF_CR2(%rsp)
    jmp panic

/* The 32 exceptions' entries, 16 bytes each: the error code where the CPU gives none, the vector. */
    .balign 16
LABEL(dune_stub_vectors):
    .set vector, 0
    .rept 32
    .balign 16
    .if vector == 2
    iretq /* an NMI is not for us */
    .else
    .if vector != 8 && vector != 10 && vector != 11 && vector != 12 && vector != 13 && vector != 14 && vector != 17 && vector != 21 && vector != 29 && vector != 30
    push $0
    .endif
    push $vector
    .if vector == 8 || vector == 18
    jmp fatal
    .else
    jmp exception
    .endif
    .endif
    .set vector, vector + 1
    .endr
    .org dune_stub_start + DUNE_PAGE /* fails when they don't fit */

    .section .note.GNU-stack, "", @progbits
