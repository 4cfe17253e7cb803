/* What ring 3 may do beyond what protects the vault. Copied into the vault at dune_init(). */
#ifndef DUNE_POLICY_H
#define DUNE_POLICY_H

#ifndef DUNE_CDEF
#include <stdint.h>
#endif

#define DUNE_POLICY_RULES 64
#define DUNE_POLICY_PATH 4096

#define DUNE_MAY_READ 1u
#define DUNE_MAY_WRITE 2u /* and make, remove, rename what is below it */
#define DUNE_MAY_EXEC 4u

/* Classes of system calls (syscalls.toml gives each call's). A policy denies whole classes. */
#define DUNE_CLASS_NET 1u     /* sockets other than AF_UNIX pairs */
#define DUNE_CLASS_EXEC 2u    /* execve, execveat */
#define DUNE_CLASS_FORK 4u    /* fork, vfork, clone of a process */
#define DUNE_CLASS_ADMIN 8u   /* what needs privileges: mount, modules, clock, namespaces ... */
#define DUNE_CLASS_SIGNAL 16u /* kill and the like of other processes */
#define DUNE_CLASS_IPC 32u    /* System V and POSIX shared memory, semaphores, queues */

struct dune_rule {
    char path[256];  /* absolute, canonical, no trailing slash ("/" alone excepted) */
    uint32_t length; /* of path */
    uint32_t access; /* DUNE_MAY_* for the path and all below; the longest match counts */
};

struct dune_policy {
    uint32_t denied;     /* DUNE_CLASS_* */
    uint32_t check_paths; /* bool: rules apply; else every path that is no danger to the vault */
    uint32_t n_rules;
    uint32_t log_fd;     /* where refused calls are logged; the shim moves it up; ~0: nowhere */
    uint64_t memory_bytes; /* of address space (RLIMIT_AS); 0: no limit */
    struct dune_rule rule[DUNE_POLICY_RULES];
    uint64_t nofile[2];  /* RLIMIT_NOFILE as ring 3 is to see it, soft and hard; 0, 0: as it is */
    char self[DUNE_POLICY_PATH];     /* what ring 3 sees as /proc/self/exe; "": the truth */
    char sandbox[DUNE_POLICY_PATH];  /* execve(P, ...) becomes execve(this, this, "--inherit", FD,
                                      * "--", P, ...); "": P itself, outside of Dune */
};

#endif
