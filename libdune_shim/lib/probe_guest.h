/* The self-test's guest: where things lie in it, and how it tells. C and assembly. */
#ifndef DUNE_PROBE_GUEST_H
#define DUNE_PROBE_GUEST_H

#define PROBE_BYTES 0x20000 /* of guest memory; guest-virtual = guest-physical */

/* Pages of it. Page 0 is not mapped. */
#define PROBE_PML4   0x1000
#define PROBE_PDPT   0x2000
#define PROBE_PD     0x3000
#define PROBE_PT     0x4000
#define PROBE_GDT    0x5000
#define PROBE_TSS    0x5100
#define PROBE_IDT    0x6000
#define PROBE_TEXT0  0x8000 /* a copy of the guest's text, supervisor */
#define PROBE_TEXT3  0x9000 /* and one for ring 3, read-only */
#define PROBE_STACK0 0xb000 /* stacks end where they are named */
#define PROBE_IST    0xd000
#define PROBE_STACK3 0xf000
#define PROBE_SECRET 0x10000 /* supervisor, writable */
#define PROBE_OPEN   0x11000 /* ring 3's, writable, no text */
#define PROBE_ABSENT 0x1f000 /* not mapped */

#define PROBE_KERNEL_CS 0x08
#define PROBE_KERNEL_DS 0x10
#define PROBE_USER_DS   0x1b
#define PROBE_USER_CS   0x23
#define PROBE_TR        0x28

#define PROBE_PORT_TRAP 0x20 /* RSP: vector, error, RIP, CS, RFLAGS, RSP, SS; R15: CR2 */
#define PROBE_PORT_SYSCALL \
    0x21 /* SYSCALL arrived; R14: CS there; R15: what the secret page holds */
#define PROBE_PORT_TICK 0x22
#define PROBE_PORT_DONE 0x23

#endif
