/* What an object is, and whether to open it could lead to the vault. Host side.
 *
 * By what it is, not by its name: device files by their numbers, files of procfs and sysfs by their
 * file system. There only the name that the kernel itself gives tells the files apart; a single
 * file that is bind-mounted to another name is refused therefore.
 *
 * Most of these need privileges. What else a privileged ring 3 could do (raw disks, usermode
 * helpers of the kernel) is the policy's to deny; ioctl() is denied by default, which is the second
 * wall before devices.
 */
#include "shim/path_priv.h"

#include <linux/magic.h>

#define MAJOR_MEMORY 1
#define MAJOR_MISC 10
#define MAJOR_PTS_FIRST 136
#define MAJOR_PTS_LAST 143
#define MAJOR_MSR 202

#define DEVICES_READ 512

struct kernel_statfs { /* struct statfs of x86-64: only its beginning matters */
    int64_t type;
    int64_t rest[14];
};

long dune_path_look(struct dune_resolved *object)
{
    struct statx what;
    long error = dune_sys6(__NR_statx, object->fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &what, 0);

    if (error != 0)
        return error;
    object->mode = what.stx_mode;
    object->links = what.stx_nlink;
    object->major = what.stx_rdev_major;
    object->minor = what.stx_rdev_minor;
    object->device = (uint64_t)what.stx_dev_major << 32 | what.stx_dev_minor;
    object->inode = what.stx_ino;
    object->mount_root = (what.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
    return 0;
}

static bool begins(const char *text, const char *with)
{
    uint32_t n = dune_text_bytes(with);

    for (uint32_t i = 0; i < n; i++) {
        if (text[i] != with[i])
            return false;
    }
    return true;
}

/* Drivers whose devices the kernel lets write to a process's memory, or to all of it. */
static bool bad_driver(const char *name)
{
    return begins(name, "kvm") || begins(name, "userfaultfd") || begins(name, "vhost") ||
           begins(name, "vfio") || begins(name, "iommu") || begins(name, "snapshot") ||
           begins(name, "infiniband") || begins(name, "uio") || begins(name, "cpu/msr");
}

/* A line of /proc/misc or /proc/devices: " 232 kvm". True: it has this number, and a bad name. */
static bool bad_line(const char *line, uint32_t number)
{
    uint32_t value = 0;

    while (*line == ' ')
        line++;
    if (*line < '0' || *line > '9')
        return false;
    while (*line >= '0' && *line <= '9')
        value = value * 10 + (uint32_t)(*line++ - '0');
    while (*line == ' ')
        line++;
    return value == number && bad_driver(line);
}

/* Drivers come and go, so the list is read each time; by pread(), as threads share the descriptor.
 * A list that can't be read condemns. */
static bool bad_number(int list, uint32_t number)
{
    char part[DEVICES_READ], line[64];
    uint32_t filled = 0;
    uint64_t at = 0;
    long bytes;

    while ((bytes = dune_sys4(__NR_pread64, list, part, sizeof(part), at)) > 0) {
        for (long i = 0; i < bytes; i++) {
            if (part[i] != '\n') {
                if (filled < sizeof(line) - 1)
                    line[filled++] = part[i];
                continue;
            }
            line[filled] = '\0';
            filled = 0;
            if (bad_line(line, number))
                return true;
        }
        at += (uint64_t)bytes;
    }
    return bytes < 0;
}

static const char *bad_device(const struct dune_vault *vault, const struct dune_resolved *object)
{
    uint32_t major = object->major, minor = object->minor;

    if (major == MAJOR_MEMORY)
        return minor == 1 || minor == 2 || minor == 4 || minor == 12 ? "a device of all memory"
                                                                      : NULL;
    if (major == MAJOR_MSR)
        return "the processor's model-specific registers";
    if (major == MAJOR_MISC)
        return minor == 232 ? "KVM"
               : minor == 238 || minor == 241 || bad_number(vault->misc_fd, minor)
                   ? "a device that writes to the process's memory"
                   : NULL;
    if (major == 4 || major == 5 || (major >= MAJOR_PTS_FIRST && major <= MAJOR_PTS_LAST))
        return NULL; /* terminals */
    return bad_number(vault->devices_fd, major) ? "a device that writes to the process's memory"
                                                : NULL;
}

/* The last component of a canonical name, what the kernel adds for a removed file left out. */
static const char *base_name(char *name, uint32_t *bytes)
{
    static const char mark[] = " (deleted)";
    uint32_t start = *bytes, n = sizeof(mark) - 1;

    if (*bytes > n && __builtin_memcmp(name + *bytes - n, mark, n) == 0)
        *bytes -= n;
    start = *bytes;
    while (start > 0 && name[start - 1] != '/')
        start--;
    *bytes -= start;
    return name + start;
}

static bool has(const char *text, uint32_t bytes, const char *part)
{
    for (uint32_t i = 0; i < bytes; i++) {
        if (begins(text + i, part))
            return true;
    }
    return false;
}

static const char *bad_proc(const struct dune_resolved *object)
{
    uint32_t bytes = object->name_bytes;
    const char *base = base_name(object->name, &bytes);

    if (object->mount_root)
        return "a file of procfs under another name";
    if (bytes == 3 && begins(base, "mem"))
        return "a process's memory";
    if (bytes == 5 && begins(base, "kcore"))
        return "the kernel's memory";
    return has(object->name, object->name_bytes, "/bus/pci/") ? "a PCI device's registers" : NULL;
}

/* Only to write: lspci reads the configuration. */
static const char *bad_sys(const struct dune_resolved *object)
{
    uint32_t bytes = object->name_bytes;
    const char *base = base_name(object->name, &bytes);

    if (object->mount_root)
        return "a file of sysfs under another name";
    return (begins(base, "resource") && bytes > 8) || (bytes == 6 && begins(base, "config"))
               ? "a PCI device's registers"
               : NULL;
}

/* By /proc/PID/fd or map_files of whoever made it, say. */
static bool is_data(const struct dune_vault *vault, const struct dune_resolved *object)
{
    for (uint32_t i = 0; i < vault->n_data_objects; i++) {
        const struct dune_object *data = &vault->data_object[i];

        if (data->device == object->device && data->inode == object->inode)
            return true;
    }
    return false;
}

const char *dune_path_danger(struct dune_vcpu *cpu, struct dune_resolved *object, uint32_t access)
{
    struct kernel_statfs where;

    if (is_data(cpu->vault, object))
        return "memory of the data windows";
    if (dune_is_type(object, S_IFCHR))
        return bad_device(cpu->vault, object);
    /* procfs and sysfs have device numbers without a driver, major 0 */
    if (!dune_is_type(object, S_IFREG) || object->device >> 32 != 0)
        return NULL;
    if (dune_sys2(__NR_fstatfs, object->fd, &where) != 0)
        return "its file system is unknown";
    if (where.type == PROC_SUPER_MAGIC)
        return dune_path_want_name(cpu, object) != 0 ? "its name is unknown" : bad_proc(object);
    if (where.type == SYSFS_MAGIC && (access & DUNE_MAY_WRITE) != 0)
        return dune_path_want_name(cpu, object) != 0 ? "its name is unknown" : bad_sys(object);
    return NULL;
}

long dune_proc_self(struct dune_vcpu *cpu, char text[16])
{
    long bytes = dune_sys4(__NR_readlinkat, cpu->vault->proc_fd, "self", text, 15);

    if (bytes > 0)
        text[bytes] = '\0';
    return bytes;
}

/* Behind "/proc/SELF": "", "/fd", "/task/N" or "/task/N/fd". */
static enum dune_proc_place place_of(const char *rest)
{
    if (begins(rest, "/task/")) {
        rest += 6;
        while (*rest >= '0' && *rest <= '9')
            rest++;
    }
    if (*rest == '\0')
        return DUNE_PROC_SELF;
    return begins(rest, "/fd") && rest[3] == '\0' ? DUNE_PROC_SELF_FD : DUNE_PROC_ELSE;
}

enum dune_proc_place dune_proc_place(struct dune_vcpu *cpu, int fd)
{
    struct kernel_statfs where;
    char self[16], *name;
    long bytes;

    if (dune_sys2(__NR_fstatfs, fd, &where) != 0 || where.type != PROC_SUPER_MAGIC)
        return DUNE_PROC_NONE;
    name = dune_scratch(cpu, DUNE_PATH_MAX);
    bytes = dune_proc_self(cpu, self);
    if (name == NULL || bytes <= 0 || dune_path_name(cpu, fd, name) < 0)
        return DUNE_PROC_ELSE;
    if (!begins(name, "/proc/") || !begins(name + 6, self))
        return DUNE_PROC_ELSE;
    return place_of(name + 6 + bytes);
}

int dune_path_init(struct dune_vault *vault)
{
    struct kernel_statfs where;
    long fd = dune_fd_raise(vault, dune_sys3(__NR_openat, AT_FDCWD, "/proc",
                                             O_PATH | O_DIRECTORY | O_CLOEXEC));

    if (fd < 0)
        return (int)fd;
    vault->proc_fd = (int32_t)fd;
    if (dune_sys2(__NR_fstatfs, fd, &where) != 0 || where.type != PROC_SUPER_MAGIC)
        return -ENOENT;
    fd = dune_sys3(__NR_openat, vault->proc_fd, "misc", O_RDONLY | O_CLOEXEC);
    vault->misc_fd = (int32_t)dune_fd_raise(vault, fd);
    fd = dune_sys3(__NR_openat, vault->proc_fd, "devices", O_RDONLY | O_CLOEXEC);
    vault->devices_fd = (int32_t)dune_fd_raise(vault, fd);
    if (vault->misc_fd < 0 || vault->devices_fd < 0)
        return -ENOENT;
    vault->fd_soft = vault->fd_hard = (uint32_t)vault->first_fd;
    if (vault->nofile[0] != 0 && vault->nofile[0] < vault->fd_soft)
        vault->fd_soft = (uint32_t)vault->nofile[0];
    if (vault->nofile[1] != 0 && vault->nofile[1] < vault->fd_hard)
        vault->fd_hard = (uint32_t)vault->nofile[1];
    return 0;
}
