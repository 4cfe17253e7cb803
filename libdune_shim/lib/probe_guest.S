/* What the self-test's guest runs, in ring 0 and in ring 3. Copied; position-independent.
 *
 * R8: an address, R9: a value, R12: a count, R13: not 0: SYSCALL reports. A piece for ring 3 that
 * got through ends in UD2, because that needs no privilege to tell.
 */
#include "lib/probe_guest.h"

#define LABEL(name) .globl name; .hidden name; name

/* Vectors with which the CPU pushes an error code. */
#define ERROR_CODES 0x60227d00

    .section .rodata.probe_guest, "a", @progbits
    .balign 64
LABEL(dune_probe_text):

/* ---- ring 0 ---- */

LABEL(dune_probe_enter): /* RDI: where to, in ring 3 */
    push $PROBE_USER_DS
    push $PROBE_STACK3
    push $2
    push $PROBE_USER_CS
    push %rdi
    iretq

LABEL(dune_probe_lstar):
    test %r13, %r13
    jnz 1f
    sysretq
1:  mov %cs, %r14d
    mov PROBE_SECRET, %r15
    out %al, $PROBE_PORT_SYSCALL
    hlt

LABEL(dune_probe_tick):
    out %al, $PROBE_PORT_TICK
    jmp dune_probe_tick

LABEL(dune_probe_loop):
    dec %r12
    jnz dune_probe_loop
    out %al, $PROBE_PORT_DONE
    hlt

LABEL(dune_probe_load_cr3):
    mov %cr3, %rax
1:  mov %rax, %cr3
    dec %r12
    jnz 1b
    out %al, $PROBE_PORT_DONE
    hlt

LABEL(dune_probe_load): /* ring 3 runs it as well */
    mov (%r8), %rax
LABEL(dune_probe_load_end):
    ud2

/* ---- ring 3 ---- */

LABEL(dune_probe_syscall):
    syscall
LABEL(dune_probe_syscall_end):
    ud2

LABEL(dune_probe_switch):
    syscall
    dec %r12
    jnz dune_probe_switch
LABEL(dune_probe_switch_end):
    ud2

LABEL(dune_probe_store):
    mov %r9, (%r8)
LABEL(dune_probe_store_end):
    ud2

LABEL(dune_probe_fetch):
    jmp *%r8

LABEL(dune_probe_halt):
    hlt

LABEL(dune_probe_undefined):
    ud2

LABEL(dune_probe_fsbase): /* R14: what FS says, R9: what lies there */
    wrfsbase %r8
    rdfsbase %r14
    mov %fs:0, %r9
LABEL(dune_probe_fsbase_end):
    ud2

LABEL(dune_probe_avx):
    vpcmpeqb %xmm1, %xmm1, %xmm1
    vaddps %ymm1, %ymm1, %ymm2
LABEL(dune_probe_avx_end):
    ud2

LABEL(dune_probe_avx512):
    vpxorq %zmm1, %zmm1, %zmm1
LABEL(dune_probe_avx512_end):
    ud2

/* ---- exceptions: 32 entries of 16 bytes ---- */

trap:
    mov %cr2, %r15
    out %al, $PROBE_PORT_TRAP
    hlt

    .balign 16
LABEL(dune_probe_vectors):
    .set vector, 0
    .rept 32
    .balign 16
    .if !(1 << vector & ERROR_CODES)
    push $0
    .endif
    push $vector
    jmp trap
    .set vector, vector + 1
    .endr
LABEL(dune_probe_text_end):

    .section .note.GNU-stack, "", @progbits
