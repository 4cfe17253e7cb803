/* The flags of meta commands.
 */
#ifndef IX_MC_FLAGS_H
#define IX_MC_FLAGS_H

#include "apps/memcached/conn.h"

/* What the flags say. */
struct ix_mc_flags {
    bool no_update, vivify, value, stale, quiet, has_cas, has_ttl, binary_key, has_new_cas;
    uint8_t mode;
    uint32_t exptime, vivify_exptime, recache, client_flags;
    uint64_t cas, delta, initial, new_cas;
    const struct ix_mc_words *w;
    uint32_t first;                 /* the word of the first flag */
    const uint8_t *key;
    uint32_t nkey;
    uint8_t decoded[IX_MC_KEY_MAX]; /* a key that came in base64 */
    const char *wrong;              /* NULL: all is well */
};

/* Reads the words from number `first` on. False: f->wrong says what to answer. */
bool ix_mc_flags_parse(const struct ix_mc_use *use, struct ix_mc_flags *f,
                       const struct ix_mc_words *w, uint32_t first);
/* The key was given in base64. */
void ix_mc_flags_key(struct ix_mc_flags *f);

#endif
