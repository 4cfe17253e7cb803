/* A worker that does nothing but change a memcached store, to be killed in the middle of it.
 */
#ifndef IX_TESTS_MC_CHURN_H
#define IX_TESTS_MC_CHURN_H

#include "apps/memcached/store.h"

/* Stores, reads, holds, replaces and deletes items of 400 keys, at random, until it is killed or
 * `operations` are done (0: no end). A value says whose it is; one that is torn ends the process by
 * a trap. */
void ix_mc_churn(struct ix_mc *mc, uint32_t worker, uint64_t seed, uint64_t operations);

#endif
