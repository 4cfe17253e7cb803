/* Attacks on memory: what ring 3 can't reach, what it may only read, and what it shares. */

static void attack_nothing(struct ix_app *app)
{
    (void)app;
    kit_expect(true, "nothing");
}

static struct place closed[PLACES_MAX];

/* Page tables, shim and module, gate, rings, frame metadata, connection state, frames. */
static void attack_closed_memory(struct ix_app *app)
{
    uint32_t n = kit_closed(app, closed);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t middle = closed[i].from + (closed[i].to - closed[i].from) / 2;
        uint64_t at[] = {closed[i].from, middle, closed[i].to - 8};
        for (int k = 0; k < 3; k++) {
            kit_expect(kit_fault(kit_write, at[k]) == SIGSEGV, "a write at %lx (%s)", at[k],
                       closed[i].name);
            kit_expect(kit_fault(kit_read, at[k]) == SIGSEGV, "a read at %lx (%s)", at[k],
                       closed[i].name);
        }
    }
}

static void try_calls(int pipe_to, int pipe_from, const struct place *p)
{
    void *at = (void *)p->from;
    size_t bytes = p->to - p->from;
    kit_expect(write(pipe_to, at, 16) < 0, "write() read %lx", p->from);
    kit_expect(write(pipe_to, "0123456789abcdef", 16) == 16, "a pipe");
    kit_expect(read(pipe_from, at, 16) < 0, "read() wrote to %lx", p->from);
    char rest[16];
    (void)!read(pipe_from, rest, sizeof rest);
    kit_expect(mprotect(at, bytes, PROT_READ | PROT_WRITE) < 0, "mprotect(%lx)", p->from);
    kit_expect(munmap(at, bytes) < 0, "munmap(%lx)", p->from);
    kit_expect(mremap(at, bytes, bytes, MREMAP_MAYMOVE) == MAP_FAILED, "mremap(%lx)", p->from);
    kit_expect(mremap(at, 0, bytes, MREMAP_MAYMOVE) == MAP_FAILED, "mremap(%lx, 0)", p->from);
    kit_expect(madvise(at, bytes, MADV_DONTNEED) < 0, "MADV_DONTNEED at %lx", p->from);
    kit_expect(madvise(at, bytes, MADV_REMOVE) < 0, "MADV_REMOVE at %lx", p->from);
    kit_expect(mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1,
                    0) == MAP_FAILED,
               "mmap() over %lx", p->from);
    struct iovec {
        void *base;
        size_t bytes;
    } here = {rest, sizeof rest}, there = {at, sizeof rest};
    kit_expect(syscall(SYS_process_vm_writev, getpid(), &here, 1ul, &there, 1ul, 0ul) < 0,
               "process_vm_writev(%lx)", p->from);
}

/* The same by Linux's hand. */
static void attack_closed_calls(struct ix_app *app)
{
    int ends[2], mem;
    uint32_t n = kit_closed(app, closed);
    if (pipe(ends))
        return kit_expect(false, "no pipe");
    for (uint32_t i = 0; i < n; i++)
        try_calls(ends[1], ends[0], &closed[i]);
    close(ends[0]);
    close(ends[1]);
    mem = open("/proc/self/mem", O_RDWR);
    kit_expect(mem < 0, "/proc/self/mem can be opened");
}

/* Payload that was received: read-only, whatever is done about it. */
static void attack_payload(struct ix_app *app)
{
    uint64_t pool = (uint64_t)app->io->umem;
    uint64_t bytes = (uint64_t)app->io->arena_frame << app->io->frame_shift;
    void *at = (void *)pool;
    for (uint64_t i = 0; i < bytes; i += bytes / 64 & ~(PAGE - 1))
        kit_expect(kit_fault(kit_write, pool + i) == SIGSEGV, "a write at %lx", pool + i);
    kit_expect(mprotect(at, bytes, PROT_READ | PROT_WRITE) < 0, "mprotect() opens it");
    kit_expect(mprotect(at, PAGE, PROT_WRITE) < 0, "mprotect() opens a page");
    kit_expect(pkey_mprotect(at, bytes, PROT_READ | PROT_WRITE, -1) < 0, "pkey_mprotect()");
    kit_expect(madvise(at, bytes, MADV_REMOVE) < 0, "MADV_REMOVE");
    void *copy = mremap(at, 0, bytes, MREMAP_MAYMOVE); /* a second mapping of the same */
    if (copy != MAP_FAILED) {
        kit_expect(mprotect(copy, bytes, PROT_READ | PROT_WRITE) < 0, "mprotect() of a copy");
        kit_expect(kit_fault(kit_write, (uint64_t)copy) == SIGSEGV, "a write to a copy");
        munmap(copy, bytes);
    }
}

static void try_map_file(const char *process, const struct place *p)
{
    static const int ways[] = {O_RDWR, O_RDONLY};
    char path[128];
    snprintf(path, sizeof path, "/proc/%s/map_files/%lx-%lx", process, p->from, p->to);
    for (int i = 0; i < 2; i++) {
        int fd = open(path, ways[i]);
        kit_expect(fd < 0, "%s can be opened (%s)", path, p->name);
        if (fd >= 0)
            close(fd);
    }
}

static bool is_memory(const struct place *p)
{
    return !strncmp(p->name, "/memfd:", 7) || !strncmp(p->name, "/dev/zero", 9);
}

/* The files behind mappings, by Linux's names for them: this process's, and its parent's, which has
 * the other worker's too. */
static void attack_map_files(struct ix_app *app)
{
    char parent[16];
    uint32_t n = kit_closed(app, closed), shared = 0;
    for (uint32_t i = 0; i < n; i++)
        if (is_memory(&closed[i]))
            try_map_file("self", &closed[i]);
    snprintf(parent, sizeof parent, "%d", getppid());
    n = kit_places_of(parent, closed);
    for (uint32_t i = 0; i < n; i++)
        if (is_memory(&closed[i])) {
            try_map_file(parent, &closed[i]);
            shared++;
        }
    kit_expect(shared > 8, "only %u mappings of the parent's are seen", shared);
    struct place pool = {.from = (uint64_t)app->io->umem};
    pool.to = pool.from + ((uint64_t)app->io->arena_frame << app->io->frame_shift);
    try_map_file("self", &pool);
}

/* Takes memory away from under the dataplane: of the shared arrays what they hold is ring 3's. */
static void attack_holes(struct ix_app *app)
{
    struct ix_io *io = app->io, kept = *io;
    uint64_t arena = (uint64_t)io->arena_frame << io->frame_shift;
    uint8_t *frames = io->umem + arena;
    size_t bytes = ((uint64_t)io->arena_frames << io->frame_shift) & ~(PAGE - 1);
    (void)madvise(frames, bytes, MADV_DONTNEED);
    (void)madvise(frames, bytes, MADV_PAGEOUT);
    kit_expect(madvise(frames, bytes, MADV_REMOVE) < 0, "MADV_REMOVE of the arena");
    void *page = (void *)((uint64_t)io & ~(PAGE - 1));
    (void)madvise(page, PAGE, MADV_REMOVE);
    *io = kept;
    kit_expect(kit_call(0, 0, 0, 0, 0) >= 0, "a cycle after MADV_REMOVE of the arrays");
    *io = kept;
}

/* The shared arrays are gone while the dataplane writes to them; then back. */
static void attack_io_pages(struct ix_app *app)
{
    uint64_t from = (uint64_t)app->io & ~(PAGE - 1);
    static struct place places[PLACES_MAX];
    uint32_t n = kit_places(places), i = 0;
    while (i < n && !(places[i].from <= from && from < places[i].to))
        i++;
    size_t bytes = places[i].to - places[i].from;
    void *away = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *home = (void *)places[i].from;
    kit_expect(mremap(home, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, away) == away,
               "the arrays can't be moved");
    for (int k = 0; k < 8; k++)
        kit_expect(kit_call(0, 0, 0, 0, 0) >= 0, "a cycle without the arrays");
    if (mremap(away, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, home) != home)
        abort();
    kit_expect(mprotect(home, bytes, PROT_NONE) == 0, "mprotect() of the arrays");
    for (int k = 0; k < 8; k++)
        kit_expect(kit_call(0, 0, 0, 0, 0) >= 0, "a cycle with the arrays closed");
    if (mprotect(home, bytes, PROT_READ | PROT_WRITE))
        abort();
    app->io->n_calls = 0;
}
