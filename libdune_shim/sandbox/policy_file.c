/* The policy file: one rule a line. Everything that no line allows is refused. */
#include "sandbox/sandbox.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const char sandbox_policy_help[] =
    "A policy is a file of lines, or one of the names `strict` and `permissive`.\n"
    "Everything that no line allows is refused. # begins a comment; a path may stand in \"\".\n"
    "\n"
    "  read PATH...     may be read: the path, and all below it\n"
    "  write PATH...    may be written; below it also made, removed, renamed (not: read)\n"
    "  exec PATH...     may be executed\n"
    "  deny PATH...     what the lines for the directories above it allow doesn't hold here\n"
    "  paths any        no check of paths at all, whatever the lines above say\n"
    "  exec no          no program may be executed (this is so if no line says exec)\n"
    "  exec sandboxed   what is executed stays under the same policy (so if exec has paths)\n"
    "  exec yes         what is executed LEAVES the sandbox: only for programs that are trusted\n"
    "  fork yes|no      new processes (threads are always allowed)\n"
    "  network yes|no   sockets other than pairs of AF_UNIX\n"
    "  signal yes|no    signals to other processes\n"
    "  ipc yes|no       System V and POSIX shared memory, semaphores, queues\n"
    "  admin yes|no     what needs privileges: mount, chroot, clock, modules, namespaces\n"
    "  memory SIZE      address space of each process: a number of bytes, or with K, M, G\n"
    "  log stderr       refused calls, one a line (so if no line says log)\n"
    "  log none         ... are not logged\n"
    "  log PATH         ... are appended to this file\n"
    "\n"
    "Who is root and may write anywhere (`permissive`) can have others run programs outside, such\n"
    "as cron, or the kernel (/proc/sys/kernel/core_pattern): give untrusted programs paths, or "
    "run\n"
    "them as another user.\n"
    "\n"
    "Paths are absolute and must exist; a symbolic link stands for where it leads. The program\n"
    "named on the command line may be read and executed without a line for it.\n";

/* Enough for the dynamic loader, libraries and interpreters, and for nothing of one's own. */
static const char strict_text[] =
    "read /usr /lib /lib64 /bin /sbin /etc/ld.so.cache /etc/localtime /etc/alternatives\n"
    "read /dev/null /dev/zero /dev/full /dev/random /dev/urandom\n"
    "write /dev/null /dev/zero /dev/full\n"
    "exec no\n"
    "log stderr\n";

/* What protects the vault, and no more. What it refuses isn't logged: programs try what is new
 * (rseq, clone3) and go on without. */
static const char permissive_text[] = "paths any\n"
                                      "exec sandboxed\n"
                                      "fork yes\n"
                                      "network yes\n"
                                      "signal yes\n"
                                      "ipc yes\n"
                                      "log none\n";

const char *sandbox_policy_builtin(const char *name)
{
    if (strcmp(name, "strict") == 0)
        return strict_text;
    return strcmp(name, "permissive") == 0 ? permissive_text : NULL;
}

enum exec_mode { EXEC_UNSAID, EXEC_NO, EXEC_SANDBOXED, EXEC_OUTSIDE };

struct parser {
    const char *at, *end; /* the rest of the text */
    const char *name;     /* of the file */
    unsigned line;
    bool missing_ok;
    struct sandbox_policy *out;
    uint32_t denied_paths[DUNE_POLICY_RULES]; /* bool for each rule: a `deny` */
    uint32_t said;                            /* bit for each setting that was given */
    enum exec_mode exec;
    bool exec_paths;
    char *error;
    size_t error_bytes;
    char word[DUNE_POLICY_PATH]; /* the one read last */
};

__attribute__((format(printf, 2, 3))) static bool wrong(struct parser *parser, const char *format,
                                                        ...)
{
    va_list list;
    int used = snprintf(parser->error, parser->error_bytes, "%s:%u: ", parser->name, parser->line);

    va_start(list, format);
    if (used >= 0 && (size_t)used < parser->error_bytes)
        vsnprintf(parser->error + used, parser->error_bytes - (size_t)used, format, list);
    va_end(list);
    return false;
}

/* The line's next word into parser->word. 1: there is one, 0: the line ends, -1: error. */
static int next_word(struct parser *parser)
{
    size_t length = 0;
    bool quoted;

    while (parser->at < parser->end && strchr(" \t\r", *parser->at) && *parser->at)
        parser->at++;
    if (parser->at == parser->end || *parser->at == '\n' || *parser->at == '#')
        return 0;
    quoted = *parser->at == '"';
    parser->at += quoted;
    while (parser->at < parser->end && *parser->at != '\n' &&
           (quoted ? *parser->at != '"' : !strchr(" \t\r#\"", *parser->at) || !*parser->at)) {
        if ((unsigned char)*parser->at < ' ')
            return wrong(parser, "a control character (0x%02x)", *parser->at) - 1;
        if (length == sizeof parser->word - 1)
            return wrong(parser, "a word is too long") - 1;
        parser->word[length++] = *parser->at++;
    }
    parser->word[length] = '\0';
    if (quoted) {
        if (parser->at == parser->end || *parser->at != '"')
            return wrong(parser, "a \" has no partner in its line") - 1;
        parser->at++;
    }
    return 1;
}

/* ---- paths ---------------------------------------------------------------------------------- */

static struct dune_rule *find_rule(struct dune_policy *policy, const char *path)
{
    for (unsigned n = 0; n < policy->n_rules; n++)
        if (strcmp(policy->rule[n].path, path) == 0)
            return &policy->rule[n];
    return NULL;
}

static struct dune_rule *add_rule(struct dune_policy *policy, const char *path)
{
    struct dune_rule *rule = find_rule(policy, path);

    if (rule || policy->n_rules == DUNE_POLICY_RULES || strlen(path) >= sizeof rule->path)
        return rule;
    rule = &policy->rule[policy->n_rules++];
    memset(rule, 0, sizeof *rule);
    rule->length = (uint32_t)strlen(path);
    memcpy(rule->path, path, rule->length + 1);
    return rule;
}

static bool holds(const struct dune_rule *rule, const char *path)
{
    if (rule->length == 1) /* "/" */
        return true;
    return strncmp(path, rule->path, rule->length) == 0 &&
           (path[rule->length] == '/' || path[rule->length] == '\0');
}

/* The longest rule that holds path, other than `not`. */
static const struct dune_rule *longest(const struct dune_policy *policy, const char *path,
                                       const struct dune_rule * not )
{
    const struct dune_rule *best = NULL;

    for (unsigned n = 0; n < policy->n_rules; n++) {
        const struct dune_rule *rule = &policy->rule[n];

        if (rule != not &&holds(rule, path) && (!best || rule->length > best->length))
            best = rule;
    }
    return best;
}

uint32_t sandbox_policy_access(const struct dune_policy *policy, const char *path)
{
    const struct dune_rule *rule = longest(policy, path, NULL);

    if (!policy->check_paths)
        return DUNE_MAY_READ | DUNE_MAY_WRITE | DUNE_MAY_EXEC;
    return rule ? rule->access : 0;
}

bool sandbox_policy_grant(struct dune_policy *policy, const char *path, uint32_t access)
{
    uint32_t before = sandbox_policy_access(policy, path);
    struct dune_rule *rule;

    if ((before & access) == access)
        return true;
    rule = add_rule(policy, path);
    if (!rule)
        return false;
    rule->access = before | access;
    return true;
}

/* Rules are written each for itself, but the longest alone counts: give each what those above it
 * have, the shortest first. A `deny` cuts that off. */
static void inherit_access(struct parser *parser)
{
    struct dune_policy *policy = &parser->out->policy;

    for (uint32_t length = 1; length < sizeof policy->rule[0].path; length++) {
        for (unsigned n = 0; n < policy->n_rules; n++) {
            struct dune_rule *rule = &policy->rule[n];
            const struct dune_rule *above;

            if (rule->length != length || parser->denied_paths[n])
                continue;
            above = longest(policy, rule->path, rule);
            rule->access |= above ? above->access : 0;
        }
    }
}

/* Rules that say what the one above them says anyway. */
static void drop_redundant(struct dune_policy *policy)
{
    for (unsigned n = 0; n < policy->n_rules;) {
        const struct dune_rule *above = longest(policy, policy->rule[n].path, &policy->rule[n]);

        if (above ? above->access == policy->rule[n].access : !policy->rule[n].access)
            policy->rule[n] = policy->rule[--policy->n_rules];
        else
            n++;
    }
    memset(&policy->rule[policy->n_rules], 0,
           (DUNE_POLICY_RULES - policy->n_rules) * sizeof *policy->rule);
}

/* parser->word as a canonical path. False: error, or *left_out. */
static bool canonical_word(struct parser *parser, char path[PATH_MAX], bool *left_out)
{
    *left_out = false;
    if (parser->word[0] != '/')
        return wrong(parser, "%s is no absolute path", parser->word);
    if (strncmp(parser->word, "/proc/self", 10) == 0 ||
        strncmp(parser->word, "/proc/thread-self", 17) == 0)
        return wrong(parser, "%s is another directory in each process: give /proc", parser->word);
    if (realpath(parser->word, path))
        return true;
    *left_out = parser->missing_ok && errno == ENOENT;
    return *left_out ? false : wrong(parser, "%s: %s", parser->word, strerror(errno));
}

static bool path_rule(struct parser *parser, uint32_t access)
{
    struct dune_policy *policy = &parser->out->policy;
    char path[PATH_MAX];
    struct dune_rule *rule;
    bool left_out;

    if (!canonical_word(parser, path, &left_out))
        return left_out;
    if (strlen(path) >= sizeof rule->path)
        return wrong(parser, "%s is longer than %zu bytes", path, sizeof rule->path - 1);
    rule = add_rule(policy, path);
    if (!rule)
        return wrong(parser, "more than %d paths", DUNE_POLICY_RULES);
    if (rule->access ? !access : access && parser->denied_paths[rule - policy->rule])
        return wrong(parser, "%s is both allowed and denied", path);
    rule->access |= access;
    parser->denied_paths[rule - policy->rule] = !access;
    return true;
}

static bool path_rules(struct parser *parser, const char *what, uint32_t access)
{
    int got, any = 0;

    for (; (got = next_word(parser)) > 0; any = 1)
        if (!path_rule(parser, access))
            return false;
    return got < 0 ? false : any || wrong(parser, "%s needs a path", what);
}

/* ---- settings ------------------------------------------------------------------------------- */

static bool once(struct parser *parser, const char *what, unsigned bit)
{
    if (parser->said & 1u << bit)
        return wrong(parser, "%s is given a second time", what);
    parser->said |= 1u << bit;
    return true;
}

/* The one word that a setting has, in parser->word. */
static bool one_word(struct parser *parser, const char *what, const char *choices)
{
    int got = next_word(parser);

    if (got < 0)
        return false;
    return got ? true : wrong(parser, "%s needs %s", what, choices);
}

static bool line_end(struct parser *parser, const char *what)
{
    int got = next_word(parser);

    return got > 0 ? wrong(parser, "%s: %s is too much", what, parser->word) : got == 0;
}

struct class
{
    const char *name;
    uint32_t bit;
};

static const struct class classes[] = {
    {"network", DUNE_CLASS_NET}, {"fork", DUNE_CLASS_FORK},   {"signal", DUNE_CLASS_SIGNAL},
    {"ipc", DUNE_CLASS_IPC},     {"admin", DUNE_CLASS_ADMIN},
};
#define CLASSES (sizeof classes / sizeof *classes)
enum { SAID_EXEC = CLASSES, SAID_MEMORY, SAID_LOG, SAID_PATHS };

static bool class_line(struct parser *parser, unsigned n)
{
    const struct class *class = &classes[n];

    if (!once(parser, class->name, n) || !one_word(parser, class->name, "yes or no"))
        return false;
    if (strcmp(parser->word, "yes") == 0)
        parser->out->policy.denied &= ~class->bit;
    else if (strcmp(parser->word, "no") != 0)
        return wrong(parser, "%s: %s is neither yes nor no", class->name, parser->word);
    return line_end(parser, class->name);
}

static bool exec_line(struct parser *parser)
{
    static const char *const modes[] = {"no", "sandboxed", "yes"};

    if (!one_word(parser, "exec", "yes, no, sandboxed or a path"))
        return false;
    for (int n = 0; n < 3; n++) {
        if (strcmp(parser->word, modes[n]) != 0)
            continue;
        parser->exec = EXEC_NO + n;
        return once(parser, "exec yes, no or sandboxed", SAID_EXEC) && line_end(parser, "exec");
    }
    if (parser->word[0] != '/')
        return wrong(parser, "exec: %s is neither yes, no, sandboxed nor an absolute path",
                     parser->word);
    parser->exec_paths = true;
    do {
        if (!path_rule(parser, DUNE_MAY_EXEC))
            return false;
    } while (next_word(parser) > 0);
    return parser->error[0] == '\0';
}

static bool memory_line(struct parser *parser)
{
    static const char units[] = "KMG";
    unsigned long long value;
    const char *unit;
    char *end;
    int shift = 0;

    if (!once(parser, "memory", SAID_MEMORY) || !one_word(parser, "memory", "a size"))
        return false;
    errno = 0;
    value = strtoull(parser->word, &end, 10);
    unit = *end ? strchr(units, *end) : NULL;
    if (unit) {
        shift = (int)(unit - units + 1) * 10;
        end++;
    }
    if (errno || end == parser->word || *end || parser->word[0] < '0' || parser->word[0] > '9' ||
        value > UINT64_MAX >> shift)
        return wrong(parser, "memory: %s is no size (such as 512M)", parser->word);
    value <<= shift;
    if (value < 1 << 20)
        return wrong(parser, "memory: less than 1M is too little for any program");
    parser->out->policy.memory_bytes = value;
    return line_end(parser, "memory");
}

static bool log_line(struct parser *parser)
{
    if (!once(parser, "log", SAID_LOG) || !one_word(parser, "log", "stderr, none or a path"))
        return false;
    if (strcmp(parser->word, "none") == 0)
        parser->out->log_none = true;
    else if (parser->word[0] == '/')
        memcpy(parser->out->log_file, parser->word, sizeof parser->out->log_file);
    else if (strcmp(parser->word, "stderr") != 0)
        return wrong(parser, "log: %s is neither stderr, none nor an absolute path", parser->word);
    return line_end(parser, "log");
}

static bool paths_line(struct parser *parser)
{
    if (!once(parser, "paths", SAID_PATHS) || !one_word(parser, "paths", "any"))
        return false;
    if (strcmp(parser->word, "any") != 0)
        return wrong(parser, "paths: %s is not `any`", parser->word);
    parser->out->policy.check_paths = false;
    return line_end(parser, "paths");
}

static bool parse_line(struct parser *parser)
{
    int got = next_word(parser);

    if (got <= 0)
        return got == 0;
    for (unsigned n = 0; n < CLASSES; n++)
        if (strcmp(parser->word, classes[n].name) == 0)
            return class_line(parser, n);
    if (strcmp(parser->word, "read") == 0)
        return path_rules(parser, "read", DUNE_MAY_READ);
    if (strcmp(parser->word, "write") == 0)
        return path_rules(parser, "write", DUNE_MAY_WRITE);
    if (strcmp(parser->word, "deny") == 0)
        return path_rules(parser, "deny", 0);
    if (strcmp(parser->word, "exec") == 0)
        return exec_line(parser);
    if (strcmp(parser->word, "memory") == 0)
        return memory_line(parser);
    if (strcmp(parser->word, "log") == 0)
        return log_line(parser);
    if (strcmp(parser->word, "paths") == 0)
        return paths_line(parser);
    return wrong(parser, "%s is no word of a policy (see dune-sandbox --help)", parser->word);
}

static bool finish(struct parser *parser)
{
    struct dune_policy *policy = &parser->out->policy;

    if (parser->exec_paths && parser->exec == EXEC_NO)
        return wrong(parser, "`exec no`, and yet paths that may be executed");
    if (parser->exec == EXEC_UNSAID && parser->exec_paths)
        parser->exec = EXEC_SANDBOXED;
    if (parser->exec >= EXEC_SANDBOXED)
        policy->denied &= ~DUNE_CLASS_EXEC;
    parser->out->exec_outside = parser->exec == EXEC_OUTSIDE;
    inherit_access(parser);
    drop_redundant(policy);
    return true;
}

bool sandbox_policy_parse(const char *text, size_t bytes, const char *name, bool missing_ok,
                          struct sandbox_policy *policy, char *error, size_t error_bytes)
{
    struct parser parser = {
        .at = text,
        .end = text + bytes,
        .name = name,
        .missing_ok = missing_ok,
        .out = policy,
        .error = error,
        .error_bytes = error_bytes,
    };

    memset(policy, 0, sizeof *policy);
    error[0] = '\0';
    policy->policy.check_paths = true;
    policy->policy.log_fd = SANDBOX_LOG_NONE;
    policy->policy.denied = DUNE_CLASS_NET | DUNE_CLASS_EXEC | DUNE_CLASS_FORK | DUNE_CLASS_ADMIN |
                            DUNE_CLASS_SIGNAL | DUNE_CLASS_IPC;
    while (parser.at < parser.end) {
        parser.line++;
        if (!parse_line(&parser))
            return false;
        while (parser.at < parser.end && *parser.at != '\n')
            parser.at++;
        parser.at += parser.at < parser.end;
    }
    return finish(&parser);
}

void sandbox_policy_print(const struct sandbox_policy *policy, FILE *to)
{
    const struct dune_policy *rules = &policy->policy;

    for (unsigned n = 0; n < rules->n_rules; n++)
        fprintf(to, "path \"%s\" %s%s%s\n", rules->rule[n].path,
                rules->rule[n].access & DUNE_MAY_READ ? "r" : "-",
                rules->rule[n].access & DUNE_MAY_WRITE ? "w" : "-",
                rules->rule[n].access & DUNE_MAY_EXEC ? "x" : "-");
    fprintf(to, "paths %s\n", rules->check_paths ? "checked" : "any");
    fprintf(to, "exec %s\n",
            rules->denied & DUNE_CLASS_EXEC ? "no"
            : policy->exec_outside          ? "yes"
                                            : "sandboxed");
    for (unsigned n = 0; n < CLASSES; n++)
        fprintf(to, "%s %s\n", classes[n].name, rules->denied & classes[n].bit ? "no" : "yes");
    fprintf(to, "memory %llu\n", (unsigned long long)rules->memory_bytes);
    fprintf(to, "log %s\n",
            policy->log_none      ? "none"
            : policy->log_file[0] ? policy->log_file
                                  : "stderr");
}
