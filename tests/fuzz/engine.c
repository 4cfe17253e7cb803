/* libFuzzer's side of a target: FUZZ_TARGET is the function, FUZZ_CALLS set for the one on calls.
 *
 * The mutator works on whole records, and fills them with what a peer or an application could
 * have meant: flags that occur, numbers near the window's edges, options that parse. About one
 * mutation in four is libFuzzer's own, which knows nothing of that.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "base/hash.h"
#include "tests/fuzz/world.h"
#include "wire/tcp.h"

extern uint8_t __start___sancov_cntrs[], __stop___sancov_cntrs[];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes,
                                 uint8_t *out, size_t max, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

/* The edges that the last input reached, and how often. */
static uint8_t *edges(void)
{
    size_t bytes = (size_t)(__stop___sancov_cntrs - __start___sancov_cntrs);
    uint8_t *copy = malloc(bytes);
    memcpy(copy, __start___sancov_cntrs, bytes);
    return copy;
}

static void must_reach(const uint8_t *before, const char *when)
{
    size_t bytes = (size_t)(__stop___sancov_cntrs - __start___sancov_cntrs);
    for (size_t i = 0; i < bytes; i++)
        if (before[i] != __start___sancov_cntrs[i]) {
            fprintf(stderr, "fuzz: edge %zu of %zu was taken %u times, %s %u times\n", i, bytes,
                    before[i], when, __start___sancov_cntrs[i]);
            abort();
        }
}

/* With FUZZ_REPEAT in the environment each input is played three times, and must reach the same
 * edges as often: in whatever world it found, in one that is made, and in a copy. */
static void repeat(const uint8_t *data, size_t size)
{
    uint8_t *before = edges();
    world_forget();
    (void)FUZZ_TARGET(data, size);
    must_reach(before, "in a new world");
    (void)FUZZ_TARGET(data, size);
    must_reach(before, "in a copy of it");
    free(before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    (void)FUZZ_TARGET(data, size);
    if (getenv("FUZZ_REPEAT"))
        repeat(data, size);
    return 0;
}

static uint32_t pick(uint64_t *r, uint32_t n)
{
    return (uint32_t)(ix_random(r) % n);
}

static int32_t some_offset(uint64_t *r)
{
    static const int32_t edges[] = {0,    1,     -1,     2,      100,     150,        536,
                                    1448, 4000,  65535,  65536,  262144,  -1448,      -65536,
                                    300,  400,   700,    1000,   -262144, 0x3fffffff, -0x40000000,
                                    2896, 14480, -14480, 100000, INT32_MAX, INT32_MIN};
    if (pick(r, 4) == 0)
        return (int32_t)pick(r, 3000) - 200;
    return (int32_t)((uint32_t)edges[pick(r, IX_ARRAY_LEN(edges))] + pick(r, 3) - 1);
}

/* Options that parse, one after the other, and sometimes a byte of them that is wrong. */
static uint8_t some_options(uint64_t *r, uint8_t *out)
{
    static const struct {
        uint8_t kind, bytes;
    } kinds[] = {{0, 1}, {1, 1}, {2, 4},  {3, 3},  {4, 2},  {5, 10}, {5, 18},
                 {5, 26}, {5, 34}, {8, 10}, {19, 18}, {28, 4}, {34, 2}, {34, 10}, {254, 6}};
    uint32_t at = 0;
    memset(out, 1, 40);
    for (uint32_t n = 1 + pick(r, 4); n; n--) {
        uint32_t k = pick(r, IX_ARRAY_LEN(kinds)), bytes = kinds[k].bytes;
        if (at + bytes > 40)
            continue;
        out[at] = kinds[k].kind;
        if (bytes > 1)
            out[at + 1] = (uint8_t)bytes;
        for (uint32_t i = 2; i < bytes; i++)
            out[at + i] = pick(r, 3) ? 0 : (uint8_t)pick(r, 256);
        if (kinds[k].kind == 5) /* blocks in order, near the beginning */
            for (uint32_t i = 2, edge = 1 + pick(r, 4) * 1448; i < bytes; i += 4) {
                ix_store_be32(out + at + i, edge);
                edge += 1 + pick(r, 3) * 1448;
            }
        at += bytes;
    }
    if (pick(r, 6) == 0)
        out[pick(r, 40)] = (uint8_t)pick(r, 256);
    return pick(r, 8) ? (uint8_t)((at + 3) & ~3u) : (uint8_t)(4 * pick(r, 11));
}

static void make_event(uint64_t *r, uint8_t *record)
{
    static const uint8_t flags[] = {
        IX_TCP_ACK, IX_TCP_ACK, IX_TCP_ACK | IX_TCP_PSH, IX_TCP_ACK | IX_TCP_FIN, IX_TCP_SYN,
        IX_TCP_SYN | IX_TCP_ACK, IX_TCP_RST, IX_TCP_RST | IX_TCP_ACK, IX_TCP_FIN,
        IX_TCP_ACK | IX_TCP_ECE, IX_TCP_ACK | IX_TCP_CWR, IX_TCP_SYN | IX_TCP_ECE | IX_TCP_CWR};
    static const uint8_t usual[] = {FUZZ_SEGMENT, FUZZ_SEGMENT, FUZZ_SEGMENT, FUZZ_SEGMENT,
                                    FUZZ_TIME,    FUZZ_CALL,    FUZZ_CALL,    FUZZ_DONE,
                                    FUZZ_PACKET,  FUZZ_PACKET,  FUZZ_ICMP,    FUZZ_UPSET};
    static const uint16_t windows[] = {0, 1, 100, 1448, 8000, 65535};
    struct fuzz_record e = {.op = usual[pick(r, IX_ARRAY_LEN(usual))],
                            .flags = flags[pick(r, IX_ARRAY_LEN(flags))],
                            .seq_base = pick(r, 3) ? 0 : (uint8_t)pick(r, 5),
                            .ack_base = (uint8_t)(pick(r, 3) ? 1 : pick(r, 5)),
                            .seq = pick(r, 2) ? 0 : some_offset(r),
                            .ack = pick(r, 2) ? 0 : some_offset(r),
                            .window = windows[pick(r, IX_ARRAY_LEN(windows))],
                            .bytes = pick(r, 2) ? 0 : (uint16_t)pick(r, 1500),
                            .ts = (uint8_t)(pick(r, 4) ? 1 : pick(r, 256)),
                            .which = pick(r, 4) ? 0 : (uint8_t)pick(r, 256),
                            .more = (uint8_t)pick(r, 256)};
    if (e.op == FUZZ_TIME)
        e.seq = (int32_t)(pick(r, 2) ? pick(r, 300) : pick(r, 131072));
    if (e.op == FUZZ_CALL) {
        e.which = (uint8_t)pick(r, 256);
        e.bytes = (uint16_t)pick(r, 20000);
    }
    if (e.op == FUZZ_PACKET) { /* few identifications and offsets, so that fragments meet */
        e.flags = (uint8_t)pick(r, 4);
        e.seq = (int32_t)pick(r, 3);
        e.ack = (int32_t)(pick(r, 5) * 64);
        e.bytes = (uint16_t)(pick(r, 3) ? 512 : pick(r, 1480));
        e.window = (uint16_t)(512 * (1 + pick(r, 5)));
    }
    if (e.op == FUZZ_ICMP)
        e.bytes = 1;
    if (pick(r, 3) == 0)
        e.options_bytes = some_options(r, e.options);
    e.pad[0] = (uint8_t)(pick(r, 4) == 0);
    memcpy(record, &e, sizeof e);
}

static void make_call(uint64_t *r, uint8_t *record)
{
    static const uint32_t sizes[] = {0, 1, 100, 200, 536, 1448, 1460, 2048, 65536, 1u << 31, ~0u};
    struct ix_call call = {.op = (uint8_t)pick(r, 13),
                           .family = (uint8_t)(pick(r, 8) ? 4 : pick(r, 256)),
                           .flags = (uint16_t)pick(r, 4),
                           .result = (int32_t)(pick(r, 256) | pick(r, 6) << 8),
                           .handle = pick(r, 3) ? ix_random(r) : pick(r, 3),
                           .cookie = ix_random(r),
                           .addr = ix_random(r) >> pick(r, 60),
                           .value = ix_random(r) >> pick(r, 64),
                           .bytes = sizes[pick(r, IX_ARRAY_LEN(sizes))],
                           .peer_port = (uint16_t)pick(r, 65536),
                           .local_port = pick(r, 2) ? 0 : (uint16_t)pick(r, 65536)};
    if (pick(r, 6) == 0)
        call.result |= 255 << 8;
    if (call.op == IX_CALL_OPTION)
        call.bytes = pick(r, 12);
    memcpy(record, &call, sizeof call);
}

static void make(uint64_t *r, uint8_t *record)
{
#ifdef FUZZ_CALLS
    (void)make_event;
    make_call(r, record);
#else
    (void)make_call;
    make_event(r, record);
#endif
}

/* One field takes the value that another record would have there. */
static void tweak(uint64_t *r, uint8_t *record)
{
    uint8_t other[FUZZ_RECORD_BYTES];
    make(r, other);
    uint32_t at = pick(r, 20), bytes = 1 + pick(r, 4);
    if (pick(r, 3) == 0)
        at = 20 + pick(r, 40);
    memcpy(record + at, other + at, IX_MIN(bytes, FUZZ_RECORD_BYTES - at));
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    uint64_t state = seed, *r = &state;
    max = IX_MIN(max, (size_t)FUZZ_HEADER_BYTES + FUZZ_RECORDS_MAX * FUZZ_RECORD_BYTES);
    if (size < FUZZ_HEADER_BYTES) {
        memset(data + size, 0, FUZZ_HEADER_BYTES - size);
        size = FUZZ_HEADER_BYTES;
        ((struct fuzz_header *)(void *)data)->window = 60000;
    }
    uint32_t n = (uint32_t)((size - FUZZ_HEADER_BYTES) / FUZZ_RECORD_BYTES);
    uint32_t room = (uint32_t)((max - FUZZ_HEADER_BYTES) / FUZZ_RECORD_BYTES);
    uint8_t *first = data + FUZZ_HEADER_BYTES, *at = first + pick(r, n + 1) * FUZZ_RECORD_BYTES;
    uint8_t *end = first + (size_t)n * FUZZ_RECORD_BYTES;
    switch (pick(r, 8)) {
    case 0:
    case 1:
    case 2: /* one more */
        if (n >= room)
            break;
        memmove(at + FUZZ_RECORD_BYTES, at, (size_t)(end - at));
        make(r, at);
        return size + FUZZ_RECORD_BYTES;
    case 3: /* one less, or the same once more */
        if (at == end)
            break;
        if (n < room && pick(r, 2)) {
            memmove(at + FUZZ_RECORD_BYTES, at, (size_t)(end - at));
            return size + FUZZ_RECORD_BYTES;
        }
        memmove(at, at + FUZZ_RECORD_BYTES, (size_t)(end - at) - FUZZ_RECORD_BYTES);
        return size - FUZZ_RECORD_BYTES;
    case 4: /* another beginning */
        data[pick(r, 8)] = (uint8_t)pick(r, 256);
        return size;
    case 5:
    case 6:
        if (at == end)
            break;
        tweak(r, at);
        return size;
    default:
        break;
    }
    size_t mutated = LLVMFuzzerMutate(data, size, max);
    if (mutated < FUZZ_HEADER_BYTES)
        return mutated;
    return mutated - (mutated - FUZZ_HEADER_BYTES) % FUZZ_RECORD_BYTES;
}

size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_bytes, const uint8_t *b, size_t b_bytes,
                                 uint8_t *out, size_t max, unsigned seed)
{
    uint64_t state = seed, *r = &state;
    if (a_bytes < FUZZ_HEADER_BYTES || b_bytes < FUZZ_HEADER_BYTES)
        return 0;
    uint32_t head = pick(r, (uint32_t)((a_bytes - FUZZ_HEADER_BYTES) / FUZZ_RECORD_BYTES) + 1);
    uint32_t skip = pick(r, (uint32_t)((b_bytes - FUZZ_HEADER_BYTES) / FUZZ_RECORD_BYTES) + 1);
    size_t from_a = FUZZ_HEADER_BYTES + (size_t)head * FUZZ_RECORD_BYTES;
    size_t from_b = b_bytes - FUZZ_HEADER_BYTES - (size_t)skip * FUZZ_RECORD_BYTES;
    from_b = IX_MIN(from_b, max - from_a) / FUZZ_RECORD_BYTES * FUZZ_RECORD_BYTES;
    memcpy(out, a, from_a);
    memcpy(out + from_a, b + FUZZ_HEADER_BYTES + (size_t)skip * FUZZ_RECORD_BYTES, from_b);
    return from_a + from_b;
}
