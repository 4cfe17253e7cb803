/* What stub.S, trap.c and the library's dune_run_user() agree on. C and assembly. */
#ifndef DUNE_TRAP_H
#define DUNE_TRAP_H

/* Words of dune_vcpu.user_return: where dune_run_user() goes on, in ring 0. */
#define DUNE_RETURN_RSP    0 /* 0: it is not running */
#define DUNE_RETURN_RIP    1
#define DUNE_RETURN_RESULT 2
#define DUNE_RETURN_ENDING 3 /* bool: a handler called dune_end_user() */
#define DUNE_RETURN_STACK  4 /* cpu->stack_top before */
#define DUNE_RETURN_HOOKS  5 /* cpu->hooks before */

#define DUNE_RETURN_FLAGS 0x2 /* RFLAGS in ring 0: interrupts off, as everywhere in this guest */

#ifndef __ASSEMBLER__
struct dune_vcpu;
struct dune_tf;

/* Ring 0, from stub.S: an exception. *tf is what goes on afterwards. */
void dune_ring0_trap(struct dune_vcpu *cpu, struct dune_tf *tf);
/* Ring 0, from stub.S, where cpu->hooks is set: a system call of ring 3. *tf is what goes on,
 * perhaps in ring 0 (cs tells). */
void dune_ring0_syscall(struct dune_vcpu *cpu, struct dune_tf *tf);
#endif

#endif
