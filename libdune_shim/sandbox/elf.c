/* Reads, checks and maps an ELF file as the kernel's execve() does. The file is not trusted: what
 * it says is checked once, in sandbox_elf_read(), against overflow and against the file's size. */
#include "sandbox/sandbox.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE        4096ull
#define USER_END    0x7ffffffff000ull /* no user mapping lies at or above it (4-level paging) */
#define HEADERS_MAX 65536ull          /* of all program headers: the kernel's limit */
/* Where the kernel starts looking for a place for position-independent programs: two thirds of the
 * address space; and how far it moves them at random (28 bits of pages). */
#define DYN_BASE         (USER_END / 3 * 2 & ~(PAGE - 1))
#define DYN_RANDOM_PAGES (1ull << 28)
#define ALIGN_MAX        (1ull << 30)

static uint64_t page_down(uint64_t value)
{
    return value & ~(PAGE - 1);
}

static uint64_t page_up(uint64_t value)
{
    return page_down(value + PAGE - 1);
}

static bool read_all(int fd, void *to, uint64_t bytes, uint64_t offset)
{
    ssize_t got = pread(fd, to, bytes, (off_t)offset);

    return got >= 0 && (uint64_t)got == bytes;
}

static const char *check_header(const Elf64_Ehdr *head)
{
    if (memcmp(head->e_ident, ELFMAG, SELFMAG) != 0)
        return "it is neither an ELF file nor a script that begins with #!";
    if (head->e_ident[EI_CLASS] != ELFCLASS64 || head->e_machine != EM_X86_64)
        return "it is not for x86-64 in 64 bits, and nothing else can run here";
    if (head->e_ident[EI_DATA] != ELFDATA2LSB)
        return "its byte order is not this machine's";
    if (head->e_type != ET_EXEC && head->e_type != ET_DYN)
        return "this ELF file is no program (neither ET_EXEC nor ET_DYN)";
    if (head->e_phentsize != sizeof(Elf64_Phdr))
        return "its program headers have a wrong size";
    if (head->e_phnum == 0 || head->e_phnum * sizeof(Elf64_Phdr) > HEADERS_MAX)
        return "its number of program headers is wrong";
    return NULL;
}

static const char *check_segment(const Elf64_Phdr *phdr, uint64_t file_bytes)
{
    uint64_t end;

    if (phdr->p_filesz > phdr->p_memsz)
        return "a segment is larger in the file than in memory";
    if (__builtin_add_overflow(phdr->p_vaddr, phdr->p_memsz, &end) || end > USER_END - PAGE)
        return "a segment lies outside the address space";
    if (__builtin_add_overflow(phdr->p_offset, phdr->p_filesz, &end) || end > file_bytes)
        return "the file is cut short: a segment lies behind its end";
    if ((phdr->p_offset ^ phdr->p_vaddr) & (PAGE - 1))
        return "a segment's place in the file doesn't fit its address";
    if (phdr->p_align & (phdr->p_align - 1))
        return "a segment's alignment is no power of two";
    return NULL;
}

static const char *add_segment(struct sandbox_elf *elf, const Elf64_Phdr *phdr, uint64_t file_bytes)
{
    const char *wrong = check_segment(phdr, file_bytes);
    struct sandbox_segment *segment, *before;

    if (wrong)
        return wrong;
    if (elf->n_segments == SANDBOX_SEGMENTS)
        return "it has too many segments";
    segment = &elf->segment[elf->n_segments];
    before = segment - 1;
    if (elf->n_segments && phdr->p_vaddr < before->vaddr + before->mem_bytes)
        return "its segments overlap or are out of order";
    if (phdr->p_align > ALIGN_MAX)
        return "a segment's alignment is too large";
    if (phdr->p_memsz == 0)
        return NULL;
    *segment = (struct sandbox_segment){
        .vaddr = phdr->p_vaddr,
        .mem_bytes = phdr->p_memsz,
        .offset = phdr->p_offset,
        .file_bytes = phdr->p_filesz,
        .prot = (phdr->p_flags & PF_R ? PROT_READ : 0) | (phdr->p_flags & PF_W ? PROT_WRITE : 0) |
                (phdr->p_flags & PF_X ? PROT_EXEC : 0),
    };
    if (!elf->n_segments)
        elf->low = page_down(segment->vaddr);
    elf->high = page_up(segment->vaddr + segment->mem_bytes);
    if (phdr->p_align > elf->align)
        elf->align = phdr->p_align;
    elf->n_segments++;
    return NULL;
}

static const char *read_interpreter(int fd, const Elf64_Phdr *phdr, struct sandbox_elf *elf)
{
    if (elf->interpreter[0])
        return NULL; /* the kernel, too, takes the first */
    if (phdr->p_filesz < 2 || phdr->p_filesz > sizeof elf->interpreter)
        return "the name of its interpreter has a wrong length";
    if (!read_all(fd, elf->interpreter, phdr->p_filesz, phdr->p_offset))
        return "the name of its interpreter can't be read";
    if (elf->interpreter[phdr->p_filesz - 1] != '\0' || elf->interpreter[0] == '\0')
        return "the name of its interpreter is no string";
    return NULL;
}

/* AT_PHDR: the address at which the segments map the program headers. */
static uint64_t find_headers(const struct sandbox_elf *elf, uint64_t offset)
{
    for (unsigned n = 0; n < elf->n_segments; n++) {
        const struct sandbox_segment *segment = &elf->segment[n];

        if (segment->offset <= offset && offset - segment->offset < segment->file_bytes)
            return offset - segment->offset + segment->vaddr;
    }
    return 0;
}

static const char *read_headers(int fd, const Elf64_Ehdr *head, const Elf64_Phdr *phdr,
                                uint64_t file_bytes, struct sandbox_elf *elf)
{
    const char *wrong = NULL;

    for (unsigned n = 0; n < head->e_phnum && !wrong; n++) {
        if (phdr[n].p_type == PT_LOAD)
            wrong = add_segment(elf, &phdr[n], file_bytes);
        else if (phdr[n].p_type == PT_INTERP)
            wrong = read_interpreter(fd, &phdr[n], elf);
        else if (phdr[n].p_type == PT_GNU_STACK)
            elf->exec_stack = phdr[n].p_flags & PF_X;
    }
    if (!wrong && !elf->n_segments)
        wrong = "it has nothing to load";
    if (!wrong && head->e_entry >= USER_END)
        wrong = "its entry point lies outside the address space";
    return wrong;
}

const char *sandbox_elf_read(int fd, struct sandbox_elf *elf)
{
    Elf64_Ehdr head;
    Elf64_Phdr *phdr;
    struct stat is;
    const char *wrong;
    uint64_t bytes, end;

    memset(elf, 0, sizeof *elf);
    elf->align = PAGE;
    if (fstat(fd, &is) != 0)
        return strerror(errno);
    if (!read_all(fd, &head, sizeof head, 0))
        return "it is neither an ELF file nor a script that begins with #!";
    wrong = check_header(&head);
    if (wrong)
        return wrong;
    bytes = head.e_phnum * sizeof *phdr;
    if (__builtin_add_overflow(head.e_phoff, bytes, &end) || end > (uint64_t)is.st_size)
        return "the file is cut short: its program headers are missing";
    phdr = malloc(bytes);
    if (!phdr)
        return "there is no memory";
    wrong = read_all(fd, phdr, bytes, head.e_phoff) ? NULL : "its program headers can't be read";
    if (!wrong)
        wrong = read_headers(fd, &head, phdr, (uint64_t)is.st_size, elf);
    free(phdr);
    if (wrong)
        return wrong;
    elf->fixed = head.e_type == ET_EXEC;
    elf->entry = head.e_entry;
    elf->phdr = find_headers(elf, head.e_phoff);
    elf->phdr_bytes = sizeof *phdr;
    elf->phdr_count = head.e_phnum;
    return NULL;
}

/* ---- mapping -------------------------------------------------------------------------------- */

static uint64_t random_below(uint64_t limit)
{
    uint64_t value = 0;

    if (personality(0xffffffff) & ADDR_NO_RANDOMIZE)
        return 0;
    if (getrandom(&value, sizeof value, 0) != (ssize_t)sizeof value)
        return 0;
    return value % limit;
}

/* Reserves bytes at an address that nothing uses; 0: there is something. */
static uint64_t reserve_at(uint64_t address, uint64_t bytes)
{
    void *got = mmap((void *)address, bytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

    if (got == MAP_FAILED)
        return 0;
    if ((uint64_t)got != address) { /* a kernel before 4.17 takes it as a hint */
        munmap(got, bytes);
        return 0;
    }
    return address;
}

/* Reserves a place for a position-independent file: its lowest address, 0: none. */
static uint64_t reserve(const struct sandbox_elf *elf, enum sandbox_place place)
{
    uint64_t bytes = elf->high - elf->low, more = bytes + elf->align - PAGE, at;
    void *got;

    for (int tries = 0; place == SANDBOX_PLACE_PROGRAM && tries < 16; tries++) {
        at = DYN_BASE + random_below(DYN_RANDOM_PAGES) * PAGE;
        at = reserve_at((at & ~(elf->align - 1)) + (elf->low & (elf->align - 1)), bytes);
        if (at)
            return at;
    }
    got = mmap(NULL, more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED)
        return 0;
    at = (uint64_t)got + ((elf->low - (uint64_t)got) & (elf->align - 1));
    if (at != (uint64_t)got)
        munmap(got, at - (uint64_t)got);
    if (at + bytes != (uint64_t)got + more)
        munmap((void *)(at + bytes), (uint64_t)got + more - at - bytes);
    return at;
}

static bool map_anonymous(uint64_t from, uint64_t to, int prot)
{
    return from >= to || mmap((void *)from, to - from, prot,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
}

static bool map_segment(int fd, const struct sandbox_segment *segment, uint64_t base)
{
    uint64_t start = segment->vaddr + base;
    uint64_t file_end = start + segment->file_bytes, end = start + segment->mem_bytes;
    uint64_t skew = start & (PAGE - 1), rest = page_down(start);

    if (segment->file_bytes) {
        rest = page_up(file_end);
        if (mmap((void *)(start - skew), segment->file_bytes + skew, segment->prot,
                 MAP_PRIVATE | MAP_FIXED, fd, (off_t)(segment->offset - skew)) == MAP_FAILED)
            return false;
        /* What the last page holds of the file behind the segment is no zeros yet. Where it can't
         * be written, it stays, as under the kernel. */
        if (segment->mem_bytes > segment->file_bytes && segment->prot & PROT_WRITE)
            memset((void *)file_end, 0, rest - file_end);
    }
    return map_anonymous(rest, page_up(end), PROT_READ | PROT_WRITE | (segment->prot & PROT_EXEC));
}

const char *sandbox_elf_map(int fd, const struct sandbox_elf *elf, enum sandbox_place place,
                            uint64_t *base)
{
    uint64_t at, unused;

    at = elf->fixed ? reserve_at(elf->low, elf->high - elf->low) : reserve(elf, place);
    if (!at)
        return elf->fixed ? "its fixed addresses are in use or forbidden here (vm.mmap_min_addr)"
                          : "there is no room for it in the address space";
    *base = at - elf->low; /* may wrap: vaddr + base is right anyway */
    unused = elf->low;
    for (unsigned n = 0; n < elf->n_segments; n++) {
        const struct sandbox_segment *segment = &elf->segment[n];

        /* As under the kernel, what lies between segments is not mapped at all. */
        if (page_down(segment->vaddr) > unused)
            munmap((void *)(unused + *base), page_down(segment->vaddr) - unused);
        unused = page_up(segment->vaddr + segment->mem_bytes);
        if (!map_segment(fd, segment, *base))
            return strerror(errno);
    }
    return NULL;
}
