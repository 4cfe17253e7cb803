/* What the policy says. Host side. */
#include "shim/path.h"

#include <asm/errno.h>

void dune_policy_default(struct dune_policy *policy)
{
    __builtin_memset(policy, 0, sizeof(*policy));
    policy->log_fd = ~0u;
}

/* True: name is the rule's path, or lies below it. "/" is the prefix of everything. */
static bool rule_holds(const struct dune_rule *rule, const char *name, uint32_t bytes)
{
    if (rule->length == 1)
        return bytes > 0 && name[0] == '/';
    if (bytes < rule->length || __builtin_memcmp(rule->path, name, rule->length) != 0)
        return false;
    return bytes == rule->length || name[rule->length] == '/';
}

uint32_t dune_policy_access(const struct dune_policy *policy, const char *name, uint32_t bytes)
{
    uint32_t best = 0, access = 0, seen = 0;

    for (uint32_t i = 0; i < policy->n_rules && i < DUNE_POLICY_RULES; i++) {
        const struct dune_rule *rule = &policy->rule[i];

        if (rule->length >= best && rule->length > 0 && rule_holds(rule, name, bytes)) {
            best = rule->length;
            access = rule->access;
        }
    }
    /* Who may use what lies below must be able to walk there, or realpath() fails at "/". */
    if (access == 0 && dune_policy_below(policy, name, bytes))
        seen = DUNE_MAY_SEE;
    return access != 0 ? access | DUNE_MAY_SEE : seen;
}

bool dune_policy_below(const struct dune_policy *policy, const char *name, uint32_t bytes)
{
    for (uint32_t i = 0; i < policy->n_rules && i < DUNE_POLICY_RULES; i++) {
        const struct dune_rule *rule = &policy->rule[i];

        if (rule->length <= bytes || __builtin_memcmp(rule->path, name, bytes) != 0)
            continue;
        if (bytes == 1 || rule->path[bytes] == '/')
            return true;
    }
    return false;
}

long dune_policy_class(struct dune_vcpu *cpu, const struct dune_call *call, uint32_t classes)
{
    if ((cpu->vault->policy->denied & classes) == 0)
        return 0;
    return dune_refuse(cpu, call, "the policy denies this class of calls", -EPERM);
}
