/* Types and compiler helpers that every other file of the core rests on.
 *
 * The core is freestanding: the only headers it may include from outside are
 * the compiler's own (<stdint.h>, <stddef.h>, <stdbool.h>).
 */
#ifndef IX_BASE_TYPES_H
#define IX_BASE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IX_LIKELY(x)   __builtin_expect(!!(x), 1)
#define IX_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define IX_CACHE_LINE  64
#define IX_ALIGNED(n)  __attribute__((aligned(n)))
#define IX_PACKED      __attribute__((packed))
#define IX_MUST_CHECK  __attribute__((warn_unused_result))
/* For what few segments need: inlined, it would cost registers where all of them pass. */
#define IX_NOINLINE    __attribute__((noinline))
#define IX_STATIC_ASSERT(cond, why) _Static_assert(cond, why)
#define IX_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define IX_CONTAINER_OF(ptr, type, member) \
    ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

/* "No such index" for every table that links its entries by 32-bit index. */
#define IX_NONE UINT32_MAX

/* Asserts stay on in release builds. They guard against this code's own
 * mistakes; bytes from a peer or records from an application never reach one
 * unchecked. The trap keeps the three arguments in registers for a debugger. */
__attribute__((noreturn, noinline, cold)) void ix_assert_failed(const char *what, const char *file,
                                                                int line);
#define IX_ASSERT(cond)                                        \
    do {                                                       \
        if (IX_UNLIKELY(!(cond)))                              \
            ix_assert_failed(#cond, __FILE__, __LINE__);       \
    } while (0)

#define IX_MIN(a, b) ((a) < (b) ? (a) : (b))
#define IX_MAX(a, b) ((a) > (b) ? (a) : (b))

/* The byte order of the wire. x86 and arm64 as Linux runs them are little endian. */
IX_STATIC_ASSERT(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "byte swaps below assume it");
static inline uint16_t ix_swap16(uint16_t v) { return __builtin_bswap16(v); }
static inline uint32_t ix_swap32(uint32_t v) { return __builtin_bswap32(v); }

/* Unaligned big-endian loads and stores: frame headers are at any alignment. */
static inline uint16_t ix_load_be16(const void *p)
{
    uint16_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return ix_swap16(v);
}

static inline uint32_t ix_load_be32(const void *p)
{
    uint32_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return ix_swap32(v);
}

static inline void ix_store_be16(void *p, uint16_t v)
{
    v = ix_swap16(v);
    __builtin_memcpy(p, &v, sizeof v);
}

static inline void ix_store_be32(void *p, uint32_t v)
{
    v = ix_swap32(v);
    __builtin_memcpy(p, &v, sizeof v);
}

/* Error numbers used in records that cross to the application. The values are
 * Linux's, spelled out because the core sees no libc header. */
enum ix_errno {
    IX_EPERM = 1,
    IX_ENOENT = 2,
    IX_EAGAIN = 11,
    IX_ENOMEM = 12,
    IX_EEXIST = 17,
    IX_EINVAL = 22,
    IX_ENOSPC = 28,
    IX_EPIPE = 32,
    IX_EMSGSIZE = 90,
    IX_EADDRINUSE = 98,
    IX_EADDRNOTAVAIL = 99,
    IX_ENETDOWN = 100,
    IX_ENETUNREACH = 101,
    IX_ECONNABORTED = 103,
    IX_ECONNRESET = 104,
    IX_ENOBUFS = 105,
    IX_EISCONN = 106,
    IX_ENOTCONN = 107,
    IX_ETIMEDOUT = 110,
    IX_ECONNREFUSED = 111,
    IX_EHOSTUNREACH = 113,
};

#endif
