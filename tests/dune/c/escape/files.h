/* By files that lead to memory, and by KVM. */
#ifndef ESCAPE_FILES_H
#define ESCAPE_FILES_H

#include "kit.h"

#include <linux/kvm.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* Reads and writes the secret through a descriptor that should never have been. */
static void use_memory(const char *what, int fd)
{
    char got[64] = {0};
    long result = CALL(SYS_pread64, fd, got, sizeof got, given.target);

    say(false, what, "opened; pread says %ld%s", result,
        leaked(got, 64) ? ", the secret was read" : "");
    CALL(SYS_pwrite64, fd, "broken", 6, given.target);
    CALL(SYS_close, fd);
}

/* Opens by every call and in every mode; nothing may come of it. */
static void open_in_every_way(const char *path, int directory)
{
    static const struct {
        const char *name;
        int flags;
    } modes[] = {{"reading", O_RDONLY},
                 {"writing", O_WRONLY},
                 {"both", O_RDWR},
                 {"nothing (3)", 3},
                 {"truncating", O_RDWR | O_TRUNC},
                 {"a directory", O_PATH | O_NOFOLLOW}};
    struct open_how how = {.flags = O_RDWR};
    char what[256];

    for (size_t n = 0; n < sizeof modes / sizeof *modes; n++) {
        long fd = CALL(SYS_openat, directory, path, modes[n].flags);

        if (modes[n].flags & O_PATH) { /* no harm in that; opening it again must fail */
            char link[64];

            if (fd < 0)
                continue;
            snprintf(link, sizeof link, "/proc/self/fd/%ld", fd);
            CALL(SYS_close, 700);
            snprintf(what, sizeof what, "%s, again from an O_PATH descriptor", path);
            if (CALL(SYS_readlinkat, fd, "", good, 64) >
                0) { /* a symbolic link: open what it names */
                CALL(SYS_close, fd);
                continue;
            }
            long again = CALL(SYS_open, link, O_RDWR);
            if (again >= 0)
                use_memory(what, (int)again);
            else
                fails(what, again);
            CALL(SYS_close, fd);
            continue;
        }
        snprintf(what, sizeof what, "%s for %s", path, modes[n].name);
        if (fd >= 0)
            use_memory(what, (int)fd);
        else
            fails(what, fd);
    }
    snprintf(what, sizeof what, "%s by openat2", path);
    long fd = CALL(SYS_openat2, directory, path, &how, sizeof how);
    if (fd >= 0)
        use_memory(what, (int)fd);
    else
        fails(what, fd);
}

static void memory_files(void)
{
    static const char *const paths[] = {
        "/proc/self/mem",
        "/proc/%d/mem",
        "/proc/self/task/%d/mem",
        "/proc/%d/task/%d/mem",
        "/proc/thread-self/mem",
        "/proc/self/root/proc/self/mem",
        "/proc/self/cwd/proc/self/mem",
        "//proc/./self/../self//mem",
        "/proc/1/root/proc/self/mem",
        "/dev/fd/../mem",
        "/proc/self/fd/../mem",
        "/dev/mem",
        "/dev/kmem",
        "/dev/port",
        "/proc/kcore",
        "/dev/userfaultfd",
    };
    char path[128], made[64];
    int directory;

    group = "memory file";
    CALL(SYS_chdir, "/");
    for (size_t n = 0; n < sizeof paths / sizeof *paths; n++) {
        snprintf(path, sizeof path, paths[n], getpid(), getpid());
        open_in_every_way(path, AT_FDCWD);
    }
    snprintf(path, sizeof path, "/proc/%d/mem", getppid());
    open_in_every_way(path, AT_FDCWD);
    CALL(SYS_chdir, "/proc/self");
    open_in_every_way("mem", AT_FDCWD);
    open_in_every_way("../self/mem", AT_FDCWD);
    CALL(SYS_chdir, "/");
    open_in_every_way("proc/self/mem", AT_FDCWD);
    directory = (int)CALL(SYS_open, "/proc/self", O_RDONLY | O_DIRECTORY);
    if (directory >= 0)
        open_in_every_way("mem", directory);
    CALL(SYS_close, directory);
    directory = (int)CALL(SYS_open, "/proc/self/task", O_PATH);
    snprintf(path, sizeof path, "%d/mem", getpid());
    if (directory >= 0)
        open_in_every_way(path, directory);
    CALL(SYS_close, directory);
    snprintf(made, sizeof made, "/tmp/escape-%d", getpid());
    if (symlink("/proc/self/mem", made) == 0)
        open_in_every_way(made, AT_FDCWD);
    snprintf(path, sizeof path, "%s-2", made);
    if (symlink(made, path) == 0)
        open_in_every_way(path, AT_FDCWD);
    unlink(path);
    unlink(made);
    fails("link to /proc/self/mem",
          CALL(SYS_linkat, AT_FDCWD, "/proc/self/mem", AT_FDCWD, made, 0));
    fails("bind mount of it", CALL(SYS_mount, "/proc/self", "/mnt", 0, 4096, 0));
    fails("a procfs of one's own", CALL(SYS_mount, "proc", "/mnt", "proc", 0, 0));
    harmless("truncate of it", CALL(SYS_truncate, "/proc/self/mem", 0));
    fails("creat of it", CALL(SYS_creat, "/proc/self/mem", 0600));
}

/* ---- KVM ------------------------------------------------------------------------------------ */

static void kvm_at(const char *path, int directory)
{
    static const int modes[] = {O_RDWR, O_RDONLY, O_WRONLY, 3};
    struct open_how how = {.flags = O_RDWR};
    char what[160];

    for (int n = 0; n < 6; n++) {
        long fd = n < 4 ? CALL(SYS_openat, directory, path, modes[n])
                        : CALL(SYS_openat2, directory, path, &how, sizeof how);

        if (n == 5) { /* O_PATH, and again */
            char link[64];
            long place = CALL(SYS_openat, directory, path, O_PATH);

            snprintf(link, sizeof link, "/proc/self/fd/%ld", place);
            fd = place < 0 ? place : CALL(SYS_open, link, O_RDWR);
            if (place >= 0)
                CALL(SYS_close, place);
        }
        snprintf(what, sizeof what, "%s, way %d", path, n + 1);
        if (fd >= 0) {
            say(false, what, "opened; KVM_CREATE_VM says %ld",
                CALL(SYS_ioctl, fd, KVM_CREATE_VM, 0));
            CALL(SYS_close, fd);
        } else {
            fails(what, fd);
        }
    }
}

static void kvm_files(void)
{
    char made[64];
    struct stat is;
    dev_t device = makedev(10, 232);

    group = "opening KVM";
    kvm_at("/dev/kvm", AT_FDCWD);
    kvm_at("/proc/self/root/dev/kvm", AT_FDCWD);
    kvm_at("/dev/../dev//./kvm", AT_FDCWD);
    CALL(SYS_chdir, "/dev");
    kvm_at("kvm", AT_FDCWD);
    CALL(SYS_chdir, "/");
    snprintf(made, sizeof made, "/tmp/escape-kvm-%d", getpid());
    if (symlink("/dev/kvm", made) == 0)
        kvm_at(made, AT_FDCWD);
    unlink(made);
    if (stat("/dev/kvm", &is) == 0)
        device = is.st_rdev;
    long result = CALL(SYS_mknod, made, S_IFCHR | 0600, device);
    if (result < 0)
        fails("mknod of its device number", result);
    else
        kvm_at(made, AT_FDCWD);
    unlink(made);
    if (CALL(SYS_link, "/dev/kvm", "/dev/escape-kvm") == 0)
        kvm_at("/dev/escape-kvm", AT_FDCWD);
    unlink("/dev/escape-kvm");
    if (CALL(SYS_rename, "/dev/kvm", "/dev/escape-kvm") == 0) {
        kvm_at("/dev/escape-kvm", AT_FDCWD);
        CALL(SYS_rename, "/dev/escape-kvm", "/dev/kvm");
    }
}

/* The vault's mappings that are of a file (a vCPU's shared pages), by their links in procfs. */
static void map_files(void)
{
    static char names[32768];
    long fd = CALL(SYS_open, "/proc/self/map_files", O_RDONLY | O_DIRECTORY), bytes;

    if (fd < 0) {
        fails("/proc/self/map_files", fd);
        return;
    }
    while ((bytes = CALL(SYS_getdents64, fd, names, sizeof names)) > 0) {
        for (long at = 0; at < bytes; at += *(uint16_t *)(names + at + 16)) {
            const char *name = names + at + 19;
            uint64_t start = strtoull(name, NULL, 16);
            long opened;

            if (start < given.vault - GIB || start >= given.vault + 2 * GIB)
                continue;
            opened = CALL(SYS_openat, fd, name, O_RDWR);
            fails("a mapping of the vault's by /proc/self/map_files", opened);
            CALL(SYS_close, opened);
            opened = CALL(SYS_openat, fd, name, O_PATH);
            if (opened >= 0)
                fails("... and its ioctl by O_PATH", CALL(SYS_ioctl, opened, KVM_RUN, 0));
            CALL(SYS_close, opened);
        }
    }
    CALL(SYS_close, fd);
}

static void files_all(void)
{
    memory_files();
    map_files();
    kvm_files();
}

#endif
