/* What the flags of a meta command say: a letter each, some with a value behind it. */
#include "apps/memcached/flags.h"

#include <string.h>

static const char bad_line[] = "CLIENT_ERROR bad command line format";
static const char bad_token[] = "CLIENT_ERROR bad token in command line format";

static bool expiry(const struct ix_mc_use *use, const struct ix_mc_token *t, uint32_t *at)
{
    int32_t seconds;
    bool good = ix_mc_i32(t->at + 1, t->n - 1, &seconds);
    *at = ix_mc_expiry(use, seconds);
    return good;
}

/* A flag with a value. False: the value is none. */
static bool valued(const struct ix_mc_use *use, struct ix_mc_flags *f, const struct ix_mc_token *t)
{
    const uint8_t *text = t->at + 1;
    uint32_t n = t->n - 1;
    const char *wrong = bad_token;
    bool good = true;
    switch (t->at[0]) {
    case 'N':
        f->vivify = true;
        good = expiry(use, t, &f->vivify_exptime);
        break;
    case 'T':
        good = f->has_ttl = expiry(use, t, &f->exptime);
        break;
    case 'R':
        good = expiry(use, t, &f->recache);
        break;
    case 'F':
        wrong = f->wrong ? f->wrong : bad_line;
        good = ix_mc_u32(text, n, &f->client_flags);
        break;
    case 'C':
        good = f->has_cas = ix_mc_u64(text, n, &f->cas);
        break;
    case 'E':
        good = f->has_new_cas = ix_mc_u64(text, n, &f->new_cas);
        break;
    case 'M':
        wrong = "CLIENT_ERROR incorrect length for M token";
        good = n == 1;
        f->mode = n == 1 ? *text : 0;
        break;
    case 'J':
        wrong = "CLIENT_ERROR invalid numeric initial value";
        good = ix_mc_u64(text, n, &f->initial);
        break;
    case 'D':
        wrong = "CLIENT_ERROR invalid numeric delta value";
        good = ix_mc_u64(text, n, &f->delta);
        break;
    default:
        return false;
    }
    if (!good)
        f->wrong = wrong;
    return true;
}

void ix_mc_flags_key(struct ix_mc_flags *f)
{
    f->nkey = ix_mc_base64_decode(f->key, f->nkey, f->decoded, sizeof f->decoded);
    f->key = f->decoded;
    f->binary_key = true;
    if (!f->nkey)
        f->wrong = "CLIENT_ERROR error decoding key";
}

bool ix_mc_flags_parse(const struct ix_mc_use *use, struct ix_mc_flags *f,
                       const struct ix_mc_words *w, uint32_t first)
{
    uint64_t seen[2] = {0, 0};
    *f = (struct ix_mc_flags){.delta = 1, .w = w, .first = first, .key = w->word[1].at,
                        .nkey = w->word[1].n};
    for (uint32_t i = first; i < w->count; i++) {
        uint8_t letter = w->word[i].at[0];
        if (letter >= 127 || seen[letter / 64] >> letter % 64 & 1) {
            f->wrong = "CLIENT_ERROR duplicate flag";
            return false;
        }
        seen[letter / 64] |= 1ull << letter % 64;
        if (letter == 'b')
            ix_mc_flags_key(f);
        else if (letter == 'v')
            f->value = true;
        else if (letter == 'u')
            f->no_update = true;
        else if (letter == 'q')
            f->quiet = true;
        else if (letter == 'I')
            f->stale = true;
        else if (!strchr("lOPLkstcfh", letter) && !valued(use, f, &w->word[i])) {
            f->wrong = "CLIENT_ERROR invalid flag";
            return false;
        }
    }
    return !f->wrong;
}
