/* What the files of libdune itself share. */
#ifndef DUNE_LIB_H
#define DUNE_LIB_H

#include "shim/image.h"

/* The process's; NULL before dune_init(). */
extern struct dune_vault *dune_the_vault;

/* Keeps the words for dune_error() and returns error. printf's format. */
int dune_fail(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* dune_probe() without what an exit and a ring switch cost. */
int dune_probe_fitness(struct dune_report *report);

/* place.c. A given place is taken; the vault gets its memory; back to nothing. */
int dune_place_check(const struct dune_place *place);
int dune_place_open(const struct dune_place *place);
void dune_place_close(const struct dune_place *place);
/* What is mapped in the data windows gets the vault's key, and its files are remembered. */
int dune_place_take(struct dune_vault *vault, const struct dune_place *place);
/* -EBUSY: ring 3 would have a descriptor of such a file, or another one of the module's. */
int dune_place_check_descriptors(const struct dune_vault *vault, const struct dune_module *module);

/* module.c. Before anything is made; behind the VM; last, for it can't be undone. */
int dune_module_check(const struct dune_config *config);
int dune_module_load(struct dune_vault *vault, const struct dune_module *module);
int dune_module_take_descriptors(struct dune_vault *vault, const struct dune_module *module);

/* The ring by CS; -1 outside. */
int dune_ring(void);

#endif
