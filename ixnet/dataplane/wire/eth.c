#include "wire/eth.h"

enum { SRC_AT = 6, TYPE_AT = 12 };

inline enum ix_parse ix_eth_parse(const uint8_t *frame, size_t bytes, struct ix_eth *out)
{
    if (bytes < IX_ETH_BYTES)
        return IX_PARSE_SHORT;
    IX_STATIC_ASSERT(offsetof(struct ix_eth, src) == SRC_AT, "both addresses in one copy");
    __builtin_memcpy(out, frame, SRC_AT + sizeof out->src.b);
    out->type = ix_load_be16(frame + TYPE_AT);
    return IX_PARSE_OK;
}

void ix_eth_emit(uint8_t *frame, const struct ix_eth *eth)
{
    ix_eth_put(frame, &eth->dst, &eth->src, eth->type);
}
