/* Numbers and base64 in commands. */
#include "apps/memcached/conn.h"

#include <stdlib.h>
#include <string.h>

static bool is_space(uint8_t ch)
{
    return ch == ' ' || (ch >= '\t' && ch <= '\r');
}

/* Digits with what C's functions let stand around them: space and a sign before, and any text after
 * a space. False: no number, or one beyond 64 bits. */
static bool magnitude(const uint8_t *p, uint32_t n, uint64_t *value, bool *negative)
{
    const uint8_t *end = p + n;
    while (p < end && is_space(*p))
        p++;
    *negative = p < end && *p == '-';
    if (p < end && (*p == '-' || *p == '+'))
        p++;
    const uint8_t *digits = p;
    uint64_t v = 0;
    for (; p < end && *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *p - '0', &v))
            return false;
    *value = v;
    return p != digits && (p == end || is_space(*p) || !*p);
}

/* What nearly all are: up to 9 digits and nothing else. */
static bool few_digits(const uint8_t *p, uint32_t n, uint32_t *value)
{
    uint32_t v = 0;
    if (!n || n > 9)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t digit = (uint32_t)p[i] - '0';
        if (digit > 9)
            return false;
        v = v * 10 + digit;
    }
    *value = v;
    return true;
}

bool ix_mc_i32(const uint8_t *p, uint32_t n, int32_t *out)
{
    uint64_t v;
    uint32_t few;
    bool negative;
    if (few_digits(p, n, &few)) {
        *out = (int32_t)few;
        return true;
    }
    *out = 0;
    if (!magnitude(p, n, &v, &negative) || v > (uint64_t)INT64_MAX + negative)
        return false;
    *out = (int32_t)(uint32_t)(negative ? -v : v); /* cut to 32 bits, as memcached does */
    return true;
}

bool ix_mc_u64(const uint8_t *p, uint32_t n, uint64_t *out)
{
    uint64_t v;
    uint32_t few;
    bool negative;
    if (few_digits(p, n, &few)) {
        *out = few;
        return true;
    }
    *out = 0;
    if (!magnitude(p, n, &v, &negative))
        return false;
    if (negative)
        v = -v;
    if (negative && (int64_t)v < 0)
        return false;
    *out = v;
    return true;
}

bool ix_mc_u32(const uint8_t *p, uint32_t n, uint32_t *out)
{
    uint64_t v;
    *out = 0;
    if (!ix_mc_u64(p, n, &v))
        return false;
    *out = (uint32_t)v;
    return true;
}

bool ix_mc_fraction(const uint8_t *p, uint32_t n, double *out)
{
    char text[64], *end;
    if (n >= sizeof text)
        return false;
    memcpy(text, p, n);
    text[n] = 0;
    *out = strtod(text, &end);
    return end != text && (!*end || is_space((uint8_t)*end));
}

/* ---- base64 (RFC 4648) -------------------------------------------------------- */

static int sextet(uint8_t ch)
{
    if (ch >= 'A' && ch <= 'Z')
        return ch - 'A';
    if (ch >= 'a' && ch <= 'z')
        return ch - 'a' + 26;
    if (ch >= '0' && ch <= '9')
        return ch - '0' + 52;
    return ch == '+' ? 62 : ch == '/' ? 63 : ch == '=' ? 0 : -1;
}

/* Characters of another alphabet are passed over, as memcached does. */
uint32_t ix_mc_base64_decode(const uint8_t *from, uint32_t n, uint8_t *to, uint32_t room)
{
    uint32_t known = 0, have = 0, bits = 0, signs = 0, pad = 0, done = 0;
    for (uint32_t i = 0; i < n; i++)
        known += sextet(from[i]) >= 0;
    if (!known || known % 4 || known / 4 * 3 > room)
        return 0;
    for (uint32_t i = 0; i < n && !pad; i++) {
        int six = sextet(from[i]);
        if (six < 0)
            continue;
        bits = bits << 6 | (uint32_t)six;
        signs += from[i] == '=';
        if (++have < 4)
            continue;
        to[done++] = (uint8_t)(bits >> 16);
        to[done++] = (uint8_t)(bits >> 8);
        to[done++] = (uint8_t)bits;
        have = bits = 0;
        pad = signs; /* ends it */
    }
    return pad > 2 ? 0 : done - pad;
}

uint32_t ix_mc_base64_encode(const uint8_t *from, uint32_t n, uint8_t *to)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t *p = to;
    for (; n; from += 3) {
        uint32_t some = n < 3 ? n : 3;
        uint32_t bits = (uint32_t)from[0] << 16 | (some > 1 ? (uint32_t)from[1] << 8 : 0) |
                        (some > 2 ? from[2] : 0);
        *p++ = (uint8_t)letters[bits >> 18];
        *p++ = (uint8_t)letters[bits >> 12 & 63];
        *p++ = some > 1 ? (uint8_t)letters[bits >> 6 & 63] : '=';
        *p++ = some > 2 ? (uint8_t)letters[bits & 63] : '=';
        n -= some;
    }
    return (uint32_t)(p - to);
}
