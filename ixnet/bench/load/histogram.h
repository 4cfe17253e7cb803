/* A histogram of durations whose buckets grow with the value, so that every percentile is known
 * to three significant digits from 1 ns to 18 minutes, in 250 KiB and a few instructions a sample.
 *
 * Values below 2^10 have a bucket each; above, every power of two is cut into 2^10 equal buckets.
 * Two of them are merged by adding bucket to bucket.
 */
#ifndef IX_BENCH_HISTOGRAM_H
#define IX_BENCH_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define HISTOGRAM_SUB_BITS 10u
#define HISTOGRAM_SUB      (1u << HISTOGRAM_SUB_BITS)
#define HISTOGRAM_MAX_BITS 40u
#define HISTOGRAM_BUCKETS  ((HISTOGRAM_MAX_BITS - HISTOGRAM_SUB_BITS + 1u) * HISTOGRAM_SUB)

struct histogram {
    uint64_t count;
    uint64_t sum_ns;
    uint64_t max_ns;
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

static inline uint32_t histogram_index(uint64_t value_ns)
{
    if (value_ns < HISTOGRAM_SUB)
        return (uint32_t)value_ns;
    if (value_ns >> HISTOGRAM_MAX_BITS)
        return HISTOGRAM_BUCKETS - 1;
    uint32_t top = 63u - (uint32_t)__builtin_clzll(value_ns);
    uint32_t shift = top - HISTOGRAM_SUB_BITS;
    return (shift + 1) * HISTOGRAM_SUB + (uint32_t)(value_ns >> shift) - HISTOGRAM_SUB;
}

/* Clears what was used: it was all zeroes before its first sample. */
static inline void histogram_reset(struct histogram *h)
{
    memset(h, 0, offsetof(struct histogram, buckets) +
                     (histogram_index(h->max_ns) + 1) * sizeof h->buckets[0]);
}

/* The middle of a bucket. */
static inline double histogram_value_ns(uint32_t index)
{
    if (index < HISTOGRAM_SUB)
        return index;
    uint32_t shift = index / HISTOGRAM_SUB - 1;
    uint64_t low = (uint64_t)(HISTOGRAM_SUB + index % HISTOGRAM_SUB) << shift;
    return (double)low + (double)((1ull << shift) - 1) / 2;
}

static inline void histogram_add(struct histogram *h, uint64_t value_ns)
{
    h->buckets[histogram_index(value_ns)]++;
    h->count++;
    h->sum_ns += value_ns;
    if (value_ns > h->max_ns)
        h->max_ns = value_ns;
}

/* The value that a share (0 to 1) of the samples does not exceed; 0 without samples. */
static inline double histogram_quantile_ns(const struct histogram *h, double share)
{
    uint64_t rank = (uint64_t)(share * (double)h->count + 0.5);
    if (rank == 0)
        rank = 1;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->buckets[i];
        if (h->count && seen >= rank) {
            double value = histogram_value_ns(i);
            return value < (double)h->max_ns ? value : (double)h->max_ns;
        }
    }
    return 0;
}

/* Prints the object {"p50": ..., ...} in microseconds. */
static inline void histogram_print_us(const struct histogram *h, FILE *out)
{
    static const struct {
        const char *name;
        double share;
    } marks[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}};
    fputs("{", out);
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++)
        fprintf(out, "\"%s\": %.3f, ", marks[i].name,
                histogram_quantile_ns(h, marks[i].share) / 1e3);
    fprintf(out, "\"mean\": %.3f, \"max\": %.3f}",
            h->count ? (double)h->sum_ns / (double)h->count / 1e3 : 0.0, (double)h->max_ns / 1e3);
}

/* Prints the samples as [[bucket, count], ...], empty buckets left out. */
static inline void histogram_print_buckets(const struct histogram *h, FILE *out)
{
    const char *between = "";
    fputs("[", out);
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        if (!h->buckets[i])
            continue;
        fprintf(out, "%s[%u, %llu]", between, i, (unsigned long long)h->buckets[i]);
        between = ", ";
    }
    fputs("]", out);
}

#endif
