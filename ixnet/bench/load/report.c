/* A worker's report: one JSON object. */
#include "load.h"

static const char *const failure_names[FAILURES] = {"refused", "reset",    "closed_early",
                                                    "timeout", "mismatch", "other"};

static void print_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte == '"' || byte == '\\')
            fputc('\\', out);
        fputc(byte < 0x20 || byte > 0x7e ? ' ' : byte, out);
    }
    fputc('"', out);
}

static void print_group(const struct group *g, double elapsed_s, FILE *out)
{
    fprintf(out, "\"completed\": %llu, \"per_second\": %.1f, \"late\": %llu, \"us\": ",
            (unsigned long long)g->completed, (double)g->completed / elapsed_s,
            (unsigned long long)g->late);
    histogram_print_us(&g->latency, out);
    fputs(", \"histogram\": ", out);
    histogram_print_buckets(&g->latency, out);
    fputs(", \"slice_p99_us\": [", out);
    for (uint32_t i = 0; i < g->slices; i++)
        fprintf(out, "%s%u", i ? ", " : "", g->slice_p99_us[i]);
    fputs("]", out);
}

void load_report(const struct load *l, FILE *out)
{
    const struct options *o = &l->opt;
    double elapsed_s = l->elapsed_s > 0 ? l->elapsed_s : 1e-9;
    fprintf(out, "{\"mode\": \"%s\", \"target\": ", mode_names[o->mode]);
    print_string(out, o->target_text);
    fprintf(out, ", \"connections\": %u, \"open\": %u, \"opened\": %u, \"message_bytes\": %u, ",
            l->groups[GROUP_LOAD].conn_count, l->open, l->opened, o->message_bytes);
    fprintf(out, "\"seconds\": %.6f, \"cpu_seconds\": %.6f, ", l->elapsed_s, l->cpu_s);
    print_group(&l->groups[GROUP_LOAD], elapsed_s, out);
    fprintf(out, ", \"bytes\": %llu, \"verified_bytes\": %llu, ",
            (unsigned long long)l->window_bytes, (unsigned long long)l->verified_bytes);
    memcached_report(l, out);
    if (o->probes) {
        fputs("\"probes\": {", out);
        print_group(&l->groups[GROUP_PROBE], elapsed_s, out);
        fputs("}, ", out);
    }
    fprintf(out, "\"port_waits\": %llu, \"errors\": {", (unsigned long long)l->port_waits);
    for (int i = 0; i < FAILURES; i++)
        fprintf(out, "%s\"%s\": %llu", i ? ", " : "", failure_names[i],
                (unsigned long long)l->failures[i]);
    fprintf(out, "}, \"ok\": %s, \"first_error\": ", load_failed(l) ? "false" : "true");
    if (l->first_error[0])
        print_string(out, l->first_error);
    else
        fputs("null", out);
    fputs("}\n", out);
}
