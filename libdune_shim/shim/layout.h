/* Where everything lies in the vault and in a vCPU's block: what C and assembly both use.
 *
 * The vault is one window of 1 GiB, aligned to 1 GiB. Data windows may follow it, and a window of
 * nothing lies on both sides. Ring 3 can name no address of all that (dune_range_is_free() says so
 * for every pointer).
 *
 *   offset in the vault
 *   0x00000000  image: the shim's text and constants, then its (empty) data    1 MiB
 *   0x00100000  struct dune_vault                                              1 MiB
 *   0x00200000  pages for page tables                                         62 MiB
 *   0x04000000  a module: its image, its FPU area, its stack                 192 MiB
 *   0x10000000  vCPU blocks, 128 KiB each                                    256 MiB
 *   0x20000000  scratch, 128 KiB a vCPU: copies of what a forwarded call's
 *               pointers lead to. The only part that the host kernel may read
 *               during a forwarded call, so the only one without the
 *               protection key.                                              256 MiB
 *   0x30000000  exec areas, 8 MiB each: lists of arguments too long for scratch 256 MiB
 *
 * Pages are touched on demand: a vault costs what is used of it.
 */
#ifndef DUNE_LAYOUT_H
#define DUNE_LAYOUT_H

#define DUNE_PAGE 4096
#define DUNE_WINDOW_SHIFT 30
#define DUNE_WINDOW (1 << DUNE_WINDOW_SHIFT)

#define DUNE_IMAGE_AT 0x00000000
#define DUNE_IMAGE_BYTES 0x00100000
#define DUNE_VAULT_AT 0x00100000
#define DUNE_TABLES_AT 0x00200000
#define DUNE_TABLES_BYTES 0x03e00000
#define DUNE_MODULES_AT 0x04000000
#define DUNE_MODULE_BYTES 0x04000000  /* the image's most */
#define DUNE_MODULE_FPU_AT 0x08000000 /* ring 3's, 16 KiB */
#define DUNE_MODULE_STACK_AT 0x08010000 /* the page below is not there */
#define DUNE_MODULE_STACK_BYTES 0x00010000
#define DUNE_BLOCKS_AT 0x10000000
#define DUNE_SCRATCH_AT 0x20000000
#define DUNE_EXEC_AT 0x30000000   /* mapped only while one is in use: exec.c */
#define DUNE_EXEC_AREA 0x00800000 /* 32 of them */
#define DUNE_KEYED_BYTES 0x20000000 /* what the protection key covers, from the vault's start */

#define DUNE_MAX_VCPUS 2048
#define DUNE_BLOCK_SHIFT 17
#define DUNE_BLOCK (1 << DUNE_BLOCK_SHIFT)
#define DUNE_SCRATCH (1 << DUNE_BLOCK_SHIFT)

/* In a vCPU's block. Each vCPU has its own copy of the stubs, so they find their data at a
 * fixed distance from RIP, and GS and FS stay ring 3's own. */
#define DUNE_BLOCK_STUB 0x0000   /* entry stubs: text */
#define DUNE_BLOCK_VCPU 0x1000   /* struct dune_vcpu */
#define DUNE_BLOCK_GDT 0x2e00    /* 7 descriptors */
#define DUNE_BLOCK_TSS 0x2e80
#define DUNE_BLOCK_IDT 0x3000    /* 256 gates */
#define DUNE_BLOCK_IST1 0x4000   /* every exception; its top is the next line's address */
#define DUNE_BLOCK_IST2 0x5000   /* double fault */
#define DUNE_BLOCK_IST3 0x6000   /* NMI */
#define DUNE_BLOCK_IST4 0x7000   /* machine check */
#define DUNE_BLOCK_STACK 0x8000  /* ring 0's stack, 16 KiB */
#define DUNE_BLOCK_RUN 0xc000    /* struct kvm_run and what follows it, 16 KiB */
#define DUNE_BLOCK_XSAVE 0x10000 /* FPU state on its way, 16 KiB */
#define DUNE_BLOCK_HOST 0x14000  /* the host side's stack, 48 KiB */
#define DUNE_BLOCK_TOP 0x20000

/* Segment selectors. SYSRET's order: user data, user code. */
#define DUNE_KERNEL_CS 0x08
#define DUNE_KERNEL_DS 0x10
#define DUNE_USER_DS 0x1b
#define DUNE_USER_CS 0x23
#define DUNE_TSS 0x28

/* Ports: what ring 0 wants of the host side. An `out` from ring 3 is a #GP. */
#define DUNE_PORT_SYSCALL 0x10 /* forward the call in the registers */
#define DUNE_PORT_TRAP 0x11    /* RDI: a struct dune_tf that nobody in ring 0 handles */
#define DUNE_PORT_RETURN 0x12  /* on the way back to what was interrupted, attention was set */
#define DUNE_PORT_CALL 0x13    /* RAX: an enum dune_hypercall; RDI, RSI, RDX: its arguments */
#define DUNE_PORT_PANIC 0x14   /* RDI: a struct dune_tf: the shim itself is at fault */
#define DUNE_PORT_RETURN_TF 0x15 /* as RETURN, on the way back to RDI: a struct dune_tf */
#define DUNE_PORT_FORWARD 0x16 /* RDI: a struct dune_tf of ring 3's system call: forward that */
#define DUNE_PORT_KICK 0x17    /* dune_module_kick(): EDI, ESI: its arguments; RAX: its result */

/* System calls of libdune's own, which Linux never had. Open only; dune.h has the sealed one. */
#define DUNE_CALL_LEAVE 0xd000 /* this thread becomes an ordinary one */
#define DUNE_CALL_USER 0xd001  /* ring 0: goes on in ring 3 */
#define DUNE_CALL_RETURN 0xd002 /* ring 3: ends dune_run_user(); RDI: its result */
#define DUNE_CALL_WINDOW 0xd003 /* ring 0: opens the window of the address in RDI */
#define DUNE_CALL_EXITS 0xd004 /* ring 0: KVM's own count of all exits */
#define DUNE_CALL_FLUSH 0xd005 /* ring 0: flushes all vCPUs' TLBs */
#define DUNE_CALL_MODULE_FIRST 0xd100 /* dune.h's DUNE_CALL_MODULE */
#define DUNE_CALL_MODULE_LAST 0xd1ff

/* struct dune_vcpu as the stubs see it (checked in vcpu.c). */
#define DUNE_VCPU_MODE 0x00      /* u8: the ring whose system call or code is under way, 3 or 0 */
#define DUNE_VCPU_ATTENTION 0x01 /* u8 of DUNE_ATTENTION_* */
#define DUNE_VCPU_HOOKS 0x02     /* u8: system calls go to dune_ring0_syscall() first */
#define DUNE_VCPU_USER_RSP 0x08
#define DUNE_VCPU_SAVED 0x10     /* two words that a stub may use as it likes */
#define DUNE_VCPU_STACK_TOP 0x20 /* ring 0's */
#define DUNE_VCPU_SYSCALL 0x28   /* address of dune_ring0_syscall(), or of dune_ring0_module() */
#define DUNE_VCPU_TRAP 0x30      /* address of dune_ring0_trap() */
#define DUNE_VCPU_SELF 0x38      /* address of struct dune_vcpu */
#define DUNE_VCPU_MODULE_STACK 0x40 /* the top of the module's stack, for who may call it */
#define DUNE_VCPU_TF 0x48        /* struct dune_tf: what to become when FULL is set */

#define DUNE_VCPU_RECORDED 0x100 /* u32: cpu->pending.recorded */
#define DUNE_VCPU_KEYED 0x108    /* u32: bool, PKRU is to be changed around forwarded calls */
#define DUNE_VCPU_PKRU_OPEN 0x10c
#define DUNE_VCPU_PKRU_CLOSED 0x110

#define DUNE_HOOK_HANDLER 1  /* the program has a handler for system calls */
#define DUNE_HOOK_RUN_USER 2 /* dune_run_user() waits for DUNE_CALL_RETURN */
#define DUNE_HOOK_MODULE 4   /* this vCPU may call the module; the only hook when sealed */

#define DUNE_ATTENTION_FULL 1    /* leave by IRETQ with all of vcpu->tf */
#define DUNE_ATTENTION_PENDING 2 /* a signal waits: go through DUNE_PORT_RETURN first */

/* struct dune_tf: offsets of its words. */
#define DUNE_TF_CR2 0x78
#define DUNE_TF_VECTOR 0x80
#define DUNE_TF_ERROR 0x88
#define DUNE_TF_RIP 0x90
#define DUNE_TF_CS 0x98
#define DUNE_TF_RFLAGS 0xa0
#define DUNE_TF_RSP 0xa8
#define DUNE_TF_SS 0xb0
#define DUNE_TF_BYTES 0xb8

#endif
