/* The path broker's feet: paths in two, links of procfs, symbolic links by hand. */
#include "shim/path_priv.h"

long dune_path_lookup(struct dune_vcpu *cpu, int dirfd, const char *path, uint32_t oflags,
                      uint64_t resolve)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC | oflags, .resolve = resolve};
    long fd;

    if (resolve == 0)
        fd = dune_sys3(__NR_openat, dirfd, path, how.flags);
    else
        fd = dune_sys4(__NR_openat2, dirfd, path, &how, sizeof(how));
    return dune_fd_raise(cpu->vault, fd);
}

void dune_resolved_close(struct dune_resolved *object)
{
    if (object->fd >= 0)
        dune_sys1(__NR_close, object->fd);
    object->fd = -1;
}

uint32_t dune_text_bytes(const char *text)
{
    uint32_t n = 0;

    while (text[n] != '\0')
        n++;
    return n;
}

int64_t dune_path_number(const char *text)
{
    int64_t number = 0;

    for (uint32_t i = 0; text[i] != '\0'; i++) {
        if (text[i] < '0' || text[i] > '9' || i >= 10)
            return -1;
        number = number * 10 + (text[i] - '0');
    }
    return text[0] != '\0' ? number : -1;
}

long dune_path_copy(struct dune_vcpu *cpu, uint64_t path, uint32_t flags, char **copy)
{
    char *buffer;
    long bytes;

    if ((flags & DUNE_PATH_HERE) != 0) {
        *copy = (char *)path;
        return 0;
    }
    buffer = dune_scratch(cpu, DUNE_PATH_MAX);
    if (buffer == NULL)
        return -ENOMEM;
    bytes = dune_copy_string(cpu, buffer, path, DUNE_PATH_MAX);
    *copy = buffer;
    return bytes < 0 ? bytes : 0;
}

uint32_t dune_path_component(const char *last)
{
    uint32_t n = dune_text_bytes(last);

    while (n > 1 && last[n - 1] == '/')
        n--;
    return n;
}

char *dune_path_split(char *path, const char **parent)
{
    uint32_t start = dune_path_component(path);

    while (start > 0 && path[start - 1] != '/')
        start--;
    if (path[start] == '\0' || start == 0) {
        /* "/" (its component is the slash itself), or a name alone */
        *parent = path[0] == '/' ? "/" : ".";
        return path;
    }
    if (start == 1) {
        *parent = "/";
        return path + 1;
    }
    path[start - 1] = '\0';
    *parent = path;
    return path + start;
}

char *dune_path_link(struct dune_vcpu *cpu, int fd, const char *suffix, bool absolute)
{
    static const char whole[] = "/proc/thread-self/fd/";
    const char *prefix = absolute ? whole : whole + 6;
    uint32_t m = suffix != NULL ? dune_text_bytes(suffix) + 1 : 0;
    uint32_t n = dune_text_bytes(prefix), digits = 1;
    char *text = dune_scratch(cpu, DUNE_LINK_BYTES + m);

    if (text == NULL)
        return NULL;
    __builtin_memcpy(text, prefix, n);
    for (uint32_t rest = (uint32_t)fd / 10; rest != 0; rest /= 10)
        digits++;
    for (uint32_t i = digits, rest = (uint32_t)fd; i > 0; i--, rest /= 10)
        text[n + i - 1] = (char)('0' + rest % 10);
    n += digits;
    if (m != 0) {
        text[n++] = '/';
        __builtin_memcpy(text + n, suffix, m - 1);
        n += m - 1;
    }
    text[n] = '\0';
    return text;
}

long dune_path_name(struct dune_vcpu *cpu, int fd, char *name)
{
    char *link = dune_path_link(cpu, fd, NULL, false);
    long bytes;

    if (link == NULL)
        return -ENOMEM;
    bytes = dune_sys4(__NR_readlinkat, cpu->vault->proc_fd, link, name, DUNE_PATH_MAX - 1);
    if (bytes < 0)
        return bytes;
    if (bytes >= DUNE_PATH_MAX - 1)
        return -ENAMETOOLONG; /* cut off: not to be compared with anything */
    name[bytes] = '\0';
    return bytes;
}

long dune_path_child(struct dune_vcpu *cpu, struct dune_resolved *out)
{
    uint32_t bytes = dune_path_component(out->last);
    long error = dune_path_want_name(cpu, out);
    char *name;

    if (error != 0)
        return error;
    if (out->last[0] == '/' || (out->last[0] == '.' && bytes <= 2 && out->last[bytes - 1] == '.'))
        return 0; /* "/", "." and "..": no call makes or removes them; the kernel says so */
    name = dune_scratch(cpu, out->name_bytes + bytes + 2);
    if (name == NULL)
        return -ENOMEM;
    __builtin_memcpy(name, out->name, out->name_bytes);
    if (out->name_bytes > 1)
        name[out->name_bytes++] = '/';
    __builtin_memcpy(name + out->name_bytes, out->last, bytes);
    out->name = name;
    out->name_bytes += bytes;
    name[out->name_bytes] = '\0';
    return 0;
}

/* readlinkat() of what `last` names, for the next round: 0, -EINVAL when it is no link. The
 * slashes that were behind the link belong behind its target. */
static long next_target(int parent, const char *last, bool slash, char *target)
{
    long bytes = dune_sys4(__NR_readlinkat, parent, last, target, DUNE_PATH_MAX - 2);

    if (bytes < 0)
        return bytes;
    if (bytes >= DUNE_PATH_MAX - 2)
        return -ENAMETOOLONG;
    if (bytes == 0)
        return -ENOENT;
    if (slash)
        target[bytes++] = '/';
    target[bytes] = '\0';
    return 0;
}

long dune_path_chase(struct dune_vcpu *cpu, int dirfd, const char *path, uint64_t resolve,
                     struct dune_last *last)
{
    char *buffer[2] = {dune_scratch(cpu, DUNE_PATH_MAX), dune_scratch(cpu, DUNE_PATH_MAX)};
    int from = dirfd;
    long error = -ELOOP, fd;

    if (buffer[0] == NULL || buffer[1] == NULL)
        return -ENOMEM;
    __builtin_memcpy(buffer[0], path, dune_text_bytes(path) + 1);
    for (unsigned i = 0; i < DUNE_LINKS_MAX; i++) {
        char *now = buffer[i & 1], *target = buffer[(i + 1) & 1];
        const char *parent;

        last->name = dune_path_split(now, &parent);
        last->slash = last->name[dune_path_component(last->name)] != '\0';
        last->name[dune_path_component(last->name)] = '\0';
        fd = dune_path_lookup(cpu, from, parent, O_DIRECTORY, resolve);
        if (from != dirfd)
            dune_sys1(__NR_close, from);
        if (fd < 0)
            return fd;
        from = last->parent = (int32_t)fd;
        error = next_target(from, last->name, last->slash, target);
        last->kind = error == -ENOENT ? DUNE_LAST_MISSING : DUNE_LAST_FOUND;
        if (error == -EINVAL || error == -ENOENT)
            return 0;
        if (error == 0 && (resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT)) != 0)
            error = -EXDEV; /* its target is to be seen from the first directory; not done here */
        if (error != 0)
            break;
        if (dune_proc_place(cpu, from) != DUNE_PROC_NONE) {
            /* procfs's plain links (self, mounts, net) lead to no magic one */
            fd = dune_path_lookup(cpu, from, last->name, 0, RESOLVE_NO_MAGICLINKS);
            if (fd >= 0)
                dune_sys1(__NR_close, fd);
            last->kind = DUNE_LAST_MAGIC;
            if (fd == -ELOOP)
                return 0;
        }
        error = -ELOOP;
    }
    dune_sys1(__NR_close, from);
    return error;
}
