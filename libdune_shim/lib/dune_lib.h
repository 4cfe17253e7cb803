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

/* The ring by CS; -1 outside. */
int dune_ring(void);

#endif
