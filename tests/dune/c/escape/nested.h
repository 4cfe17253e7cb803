/* A pointer into the vault inside of a structure that a call's pointer leads to. */
#ifndef ESCAPE_NESTED_H
#define ESCAPE_NESTED_H

#include "kit.h"

#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

static void nested_iovecs(void)
{
    struct iovec bad = {(void *)given.target, 64};
    struct iovec second[2] = {{good, 16}, {(void *)(given.target + 128), 64}};
    struct iovec edge = {(void *)(given.vault - GIB - 16), 8192};

    group = "nested pointer";
    fails("readv", CALL(SYS_readv, a_file, &bad, 1));
    fails("writev", CALL(SYS_writev, a_file, &bad, 1));
    fails("preadv", CALL(SYS_preadv, a_file, &bad, 1, 0));
    fails("pwritev", CALL(SYS_pwritev, a_file, &bad, 1, 0));
    fails("preadv2", CALL(SYS_preadv2, a_file, &bad, 1, 0, 0, 0));
    fails("pwritev2", CALL(SYS_pwritev2, a_file, &bad, 1, 0, 0, 0));
    /* The kernel may do the first part; what it did must not come from the vault. */
    harmless("writev, the second of two", CALL(SYS_writev, a_file, second, 2));
    harmless("preadv, the second of two", CALL(SYS_preadv, a_file, second, 2, 0));
    fails("readv into the guard", CALL(SYS_readv, a_file, &edge, 1));
    fails("vmsplice", CALL(SYS_vmsplice, a_pipe[1], &bad, 1, 0));
    fails("vmsplice, as a gift", CALL(SYS_vmsplice, a_pipe[1], &bad, 1, 8));
    fails("process_vm_readv", CALL(SYS_process_vm_readv, getpid(), second, 1, &bad, 1, 0));
    fails("process_vm_writev", CALL(SYS_process_vm_writev, getpid(), second, 1, &bad, 1, 0));
    fails("process_vm_writev, the other way",
          CALL(SYS_process_vm_writev, getpid(), &bad, 1, second, 1, 0));
    fails("process_madvise",
          CALL(SYS_process_madvise, CALL(SYS_pidfd_open, getpid(), 0), &bad, 1, 4, 0));
}

static void nested_messages(void)
{
    struct iovec fine = {good, 16}, bad = {(void *)given.target, 64};
    void *target = (void *)given.target;
    struct msghdr headers[] = {
        {.msg_iov = &bad, .msg_iovlen = 1},
        {.msg_iov = target, .msg_iovlen = 1},
        {.msg_iov = &fine, .msg_iovlen = 1, .msg_name = target, .msg_namelen = 16},
        {.msg_iov = &fine, .msg_iovlen = 1, .msg_control = target, .msg_controllen = 64},
    };
    static const char *const names[] = {"data", "iovec", "name", "control"};
    char what[64];

    group = "nested pointer";
    for (size_t n = 0; n < 4; n++) {
        struct mmsghdr many = {.msg_hdr = headers[n]};
        struct msghdr one = headers[n];

        snprintf(what, sizeof what, "sendmsg, %s", names[n]);
        fails(what, CALL(SYS_sendmsg, a_socket, &one, MSG_DONTWAIT));
        snprintf(what, sizeof what, "sendmmsg, %s", names[n]);
        fails(what, CALL(SYS_sendmmsg, a_socket, &many, 1, MSG_DONTWAIT));
        CALL(SYS_write, other_socket, good, 32);
        one = headers[n];
        snprintf(what, sizeof what, "recvmsg, %s", names[n]);
        /* An unnamed sender and no control data: nothing is written, as on Linux. */
        (n < 2 ? fails : harmless)(what, CALL(SYS_recvmsg, a_socket, &one, MSG_DONTWAIT));
        CALL(SYS_write, other_socket, good, 32);
        many.msg_hdr = headers[n];
        snprintf(what, sizeof what, "recvmmsg, %s", names[n]);
        (n < 2 ? fails : harmless)(what, CALL(SYS_recvmmsg, a_socket, &many, 1, MSG_DONTWAIT, 0));
    }
}

static void nested_others(void)
{
    struct ifconf interfaces = {.ifc_len = 4096, .ifc_buf = (char *)given.target};
    struct ifreq request = {.ifr_name = "lo", .ifr_data = (char *)given.target};
    struct sock_fprog filter = {.len = 1, .filter = (struct sock_filter *)given.target};
    struct {
        uint64_t sp;
        int flags;
        uint64_t size;
    } stack = {given.target, 0, 32768};
    struct {
        uint64_t set, bytes;
    } mask = {given.target, 8};
    struct iocb block = {.aio_lio_opcode = IOCB_CMD_PREAD,
                         .aio_fildes = (uint32_t)a_file,
                         .aio_buf = given.target,
                         .aio_nbytes = 64};
    struct iocb *blocks = &block;
    struct {
        uint64_t address;
        uint32_t length, hint;
        int32_t error;
        uint64_t buffer;
        int32_t bytes;
    } zerocopy = {given.target, 4096, 0, 0, given.target, 4096};
    uint32_t zerocopy_bytes = sizeof zerocopy;
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, bytes, tls;
    } clone3 = {.flags = 0x00100000, .parent_tid = given.target, .exit_signal = SIGCHLD};
    uint64_t waits[3] = {0, given.target, 2};
    char *list[] = {(char *)given.target, NULL};
    int inet = (int)CALL(SYS_socket, AF_INET, SOCK_STREAM, 0);
    uint64_t context = 0;

    group = "nested pointer";
    fails("ioctl SIOCGIFCONF", CALL(SYS_ioctl, inet, SIOCGIFCONF, &interfaces));
    fails("ioctl SIOCETHTOOL", CALL(SYS_ioctl, inet, 0x8946, &request));
    fails("SO_ATTACH_FILTER",
          CALL(SYS_setsockopt, inet, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter));
    fails("TCP_ZEROCOPY_RECEIVE",
          CALL(SYS_getsockopt, inet, IPPROTO_TCP, 35, &zerocopy, &zerocopy_bytes));
    fails("sigaltstack in it", CALL(SYS_sigaltstack, &stack, 0));
    fails("pselect6's mask", CALL(SYS_pselect6, 0, 0, 0, 0, &context, &mask));
    fails("io_setup", CALL(SYS_io_setup, 4, &context));
    fails("io_submit", CALL(SYS_io_submit, context, 1, &blocks));
    fails("clone3's parent_tid", CALL(SYS_clone3, &clone3, sizeof clone3));
    fails("futex_waitv", CALL(SYS_futex_waitv, waits, 1, 0, 0, 0));
    fails("execve's argv", CALL(SYS_execve, "/bin/true", list, NULL));
    fails("execve's envp", CALL(SYS_execve, "/bin/true", NULL, list));
    CALL(SYS_close, inet);
}

static void nested_all(void)
{
    nested_iovecs();
    nested_messages();
    nested_others();
}

#endif
