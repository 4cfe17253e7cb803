/* Random numbers and the distributions that load is made of. */
#ifndef IX_BENCH_RANDOM_H
#define IX_BENCH_RANDOM_H

#include <math.h>
#include <stdint.h>

#include "bytestream.h"

struct rng {
    uint64_t state;
};

/* SplitMix64. */
static inline uint64_t rng_next(struct rng *r)
{
    r->state += 0x9e3779b97f4a7c15ull;
    return bytestream_mix(r->state);
}

/* In (0, 1): never 0, so that its logarithm is finite. */
static inline double rng_unit(struct rng *r)
{
    return ((double)(rng_next(r) >> 11) + 0.5) * 0x1p-53;
}

static inline double exponential(double u, double mean)
{
    return -log(u) * mean;
}

/* Generalized extreme value, k != 0. */
static inline double extreme_value(double u, double location, double scale, double k)
{
    return location + scale * (pow(-log(u), -k) - 1) / k;
}

/* Generalized Pareto from 0, k != 0. */
static inline double pareto(double u, double scale, double k)
{
    return scale * (pow(u, -k) - 1) / k;
}

/* Zipf's law over ranks 1..n, P(rank) ~ rank^-s, s > 0, by rejection from the inverted integral of
 * the density (Hörmann, Derflinger: "Rejection-inversion to generate variates from monotone
 * discrete distributions", ACM TOMACS 6(3), 1996). */
struct zipf {
    double s, n;
    double low, high; /* integral at 3/2, less the first rank's weight, and at n + 1/2 */
    double sure;      /* below that distance every draw is accepted */
};

/* Integral of x^-s. */
static inline double zipf_integral(const struct zipf *z, double x)
{
    double log_x = log(x), a = (1 - z->s) * log_x;
    return fabs(a) < 1e-8 ? log_x * (1 + a / 2) : expm1(a) / (1 - z->s);
}

static inline double zipf_inverse(const struct zipf *z, double y)
{
    double a = y * (1 - z->s);
    if (a < -1)
        a = -1; /* rounding at the far end */
    return fabs(a) < 1e-8 ? exp(y * (1 - a / 2)) : exp(log1p(a) / (1 - z->s));
}

static inline void zipf_init(struct zipf *z, double s, uint64_t n)
{
    z->s = s;
    z->n = (double)n;
    z->low = zipf_integral(z, 1.5) - 1;
    z->high = zipf_integral(z, z->n + 0.5);
    z->sure = 2 - zipf_inverse(z, zipf_integral(z, 2.5) - pow(2, -s));
}

/* A rank from 0 to n - 1, the most popular first. */
static inline uint64_t zipf_draw(const struct zipf *z, struct rng *r)
{
    for (;;) {
        double y = z->high + rng_unit(r) * (z->low - z->high);
        double x = zipf_inverse(z, y);
        double k = floor(x + 0.5);
        if (k < 1)
            k = 1;
        if (k > z->n)
            k = z->n;
        if (k - x <= z->sure || y >= zipf_integral(z, k + 0.5) - pow(k, -z->s))
            return (uint64_t)k - 1;
    }
}

#endif
