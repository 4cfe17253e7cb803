/* The steering program that also writes down when a frame arrived (ixnet run --timestamps): for
 * measuring, not for serving. */
#define IX_STEER_STAMPS 1
#include "steer.bpf.c"
