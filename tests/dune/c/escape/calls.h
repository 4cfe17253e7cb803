/* By calls that have no business in a guest. */
#ifndef ESCAPE_CALLS_H
#define ESCAPE_CALLS_H

#include "kit.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define RSEQ_SIGNATURE 0x53053053

static void calls_denied(void)
{
    struct sock_filter allow = {BPF_RET | BPF_K, 0, 0, 0x7fff0000};
    struct sock_fprog filter = {1, &allow};
    struct {
        uint32_t type, size;
        uint64_t config, more[14];
    } event = {1, 128, 0, {0}};

    group = "denied call";
    memset(good, 0, PAGE);
    fails("ptrace TRACEME", CALL(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0));
    fails("ptrace of the parent", CALL(SYS_ptrace, PTRACE_SEIZE, getppid(), 0, 0));
    fails("ptrace of itself", CALL(SYS_ptrace, PTRACE_ATTACH, getpid(), 0, 0));
    fails("io_uring_setup", CALL(SYS_io_uring_setup, 4, good));
    fails("io_uring_enter", CALL(SYS_io_uring_enter, 3, 1, 0, 0, 0, 0));
    fails("io_uring_register", CALL(SYS_io_uring_register, -1, 0, good, 0));
    fails("userfaultfd", CALL(SYS_userfaultfd, O_CLOEXEC));
    fails("userfaultfd, user mode only", CALL(SYS_userfaultfd, O_CLOEXEC | 1));
    fails("perf_event_open", CALL(SYS_perf_event_open, &event, 0, -1, -1, 0));
    fails("bpf PROG_LOAD", CALL(SYS_bpf, 5, good, 128));
    fails("bpf MAP_CREATE", CALL(SYS_bpf, 0, good, 128));
    fails("kcmp VM", CALL(SYS_kcmp, getpid(), getppid(), 1, 0, 0));
    fails("process_madvise", CALL(SYS_process_madvise, 0, good, 1, 4, 0));
    fails("process_mrelease", CALL(SYS_process_mrelease, 0, 0));
    fails("open_by_handle_at", CALL(SYS_open_by_handle_at, AT_FDCWD, good, O_RDWR));
    fails("seccomp filter", CALL(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter));
    fails("seccomp listener", CALL(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 8, &filter));
    fails("prctl PR_SET_SECCOMP filter", CALL(SYS_prctl, PR_SET_SECCOMP, 2, &filter, 0, 0));
    fails("prctl PR_SET_SECCOMP strict", CALL(SYS_prctl, PR_SET_SECCOMP, 1, 0, 0, 0));
    fails("syscall user dispatch", CALL(SYS_prctl, 59, 1, 0, 0, good));
    fails("prctl PR_SET_TSC", CALL(SYS_prctl, PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0));
    fails("prctl PR_SET_MDWE", CALL(SYS_prctl, 65, 1, 0, 0, 0));
    fails("arch_prctl CPUID faulting", CALL(SYS_arch_prctl, 0x1012, 0));
    fails("arch_prctl address tags", CALL(SYS_arch_prctl, 0x4002, 6));
    fails("arch_prctl shadow stack", CALL(SYS_arch_prctl, 0x5001, 1));
    fails("arch_prctl vDSO", CALL(SYS_arch_prctl, 0x2003, given.target));
    fails("iopl", CALL(SYS_iopl, 3));
    fails("ioperm", CALL(SYS_ioperm, 0, 1024, 1));
    fails("modify_ldt", CALL(SYS_modify_ldt, 1, good, 16));
    fails("rseq", CALL(SYS_rseq, good, 32, 0, RSEQ_SIGNATURE));
    fails("kexec_file_load", CALL(SYS_kexec_file_load, a_file, a_file, 0, 0, 0));
    fails("finit_module", CALL(SYS_finit_module, a_file, good, 0));
    fails("unshare of the address space's users", CALL(SYS_unshare, 0x10000000));
    fails("setns", CALL(SYS_setns, a_file, 0));
    fails("pivot_root", CALL(SYS_pivot_root, "/", "/"));
    fails("chroot", CALL(SYS_chroot, "/tmp"));
    fails("call number 512 (x32)", CALL(512, 0));
    fails("call number with the x32 bit", CALL(0x40000000 | SYS_getpid));
    fails("call number -1", CALL(-1));
    fails("call number 100000", CALL(100000));
    fails("call number with high bits", CALL(0x7fffffff00000000 | SYS_read, 0, given.target, 1));
}

/* One that can be opened must be something that this process could have opened by its name. */
static void parents_descriptor(const char *path)
{
    char what[128], name[128] = "";
    long fd = CALL(SYS_open, path, O_RDWR);

    CALL(SYS_readlink, path, name, sizeof name - 1);
    snprintf(what, sizeof what, "its parent's descriptor %s", name);
    if (strncmp(name, "/proc/", 6) == 0 && !strstr(name, "mem"))
        harmless(what, fd);
    else
        fails(what, fd);
    CALL(SYS_close, fd);
}

/* A child: another process that has what its parent has, and no more. */
static void from_a_child(void)
{
    pid_t parent = getpid(), child = fork();
    struct iovec mine = {good, 64}, theirs = {(void *)given.target, 64};
    char path[64];

    group = "from a child";
    if (child < 0) {
        say(false, "fork", "%s", strerrorname_np(errno));
        return;
    }
    if (child == 0) {
        fails("ptrace ATTACH of its parent", CALL(SYS_ptrace, PTRACE_ATTACH, parent, 0, 0));
        fails("ptrace SEIZE of its parent", CALL(SYS_ptrace, PTRACE_SEIZE, parent, 0, 0));
        fails("process_vm_readv of its parent",
              CALL(SYS_process_vm_readv, parent, &mine, 1, &theirs, 1, 0));
        fails("process_vm_writev of its parent",
              CALL(SYS_process_vm_writev, parent, &mine, 1, &theirs, 1, 0));
        snprintf(path, sizeof path, "/proc/%d/mem", parent);
        fails("its parent's memory file", CALL(SYS_open, path, O_RDWR));
        snprintf(path, sizeof path, "/proc/%d/task/%d/mem", parent, parent);
        fails("its parent's memory file, by the thread", CALL(SYS_open, path, O_RDWR));
        for (int n = 0; n < 12; n++) {
            snprintf(path, sizeof path, "/proc/%d/fd/%d", parent, given.first_fd + n);
            parents_descriptor(path);
        }
        fails("pidfd_getfd",
              CALL(SYS_pidfd_getfd, CALL(SYS_pidfd_open, parent, 0), given.first_fd, 0));
        fails("ioctl of the VM", CALL(SYS_ioctl, given.first_fd, 0xae01, 0));
        fails("write to its copy of the vault", CALL(SYS_read, a_file, given.target, 64));
        FAULTS("load of its copy of the vault", *(volatile char *)given.target);
        fails("TRACEME", CALL(SYS_ptrace, PTRACE_TRACEME, 0, 0, 0));
        CALL(SYS_exit_group, broken != 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    say(status == 0, "all of these", "the child's status is %d", status);
}

/* Processes that would share with this one what the shim takes for its own. */
static void clone_flags(void)
{
    static const struct {
        const char *what;
        uint64_t flags;
    } kinds[] = {
        {"VM alone", 0x100 | SIGCHLD},
        {"FILES alone", 0x400 | SIGCHLD},
        {"FILES and VFORK", 0x4400 | SIGCHLD},
        {"SIGHAND alone", 0x800 | SIGCHLD},
        {"THREAD without SIGHAND", 0x10100 | SIGCHLD},
        {"VM and FILES", 0x500 | SIGCHLD},
        {"VM, SIGHAND, not THREAD", 0x900 | SIGCHLD},
        {"NEWUSER", 0x10000000 | SIGCHLD},
        {"NEWNS", 0x20000 | SIGCHLD},
        {"NEWPID", 0x20000000 | SIGCHLD},
        {"PTRACE", 0x2000 | SIGCHLD},
    };

    for (size_t n = 0; n < sizeof kinds / sizeof *kinds; n++) {
        char what[64];
        long result = CALL(SYS_clone, kinds[n].flags, 0, 0, 0, 0);

        if (result == 0)
            CALL(SYS_exit, 0);
        snprintf(what, sizeof what, "clone with %s", kinds[n].what);
        fails(what, result);
    }
    fails("unshare FILES", CALL(SYS_unshare, 0x400));
    fails("unshare VM", CALL(SYS_unshare, 0x100));
    while (waitpid(-1, NULL, 0) > 0)
        ;
}

static void calls_all(void)
{
    calls_denied();
    clone_flags();
    from_a_child();
}

#endif
