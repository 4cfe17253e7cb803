"""What the load generator sends: sizes, mixes, popularity and arrival times, as published."""

from __future__ import annotations

import math
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOAD = ROOT / "ixnet/bench/load"

PROBE = r"""
#include "memcached.c"

bool transport_turn(struct load *l, uint64_t wait_ns);

void usage(const char *why)
{
    fprintf(stderr, "%s\n", why);
    exit(2);
}

/* items N WORKLOAD: key and value bytes of each.  mix N: what is asked for, item and kind.
 * text: requests and replies of the first items.  zipf S N COUNT.  gaps COUNT. */
int main(int argc, char **argv)
{
    static struct load l;
    l.opt = (struct options){.items = (uint32_t)atoi(argv[2]), .workload = argv[3], .gets = -1,
                             .zipf = 0.99, .workers = 1, .seed = 1};
    l.rng.state = 42;
    bytestream_init(&l.stream);
    if (argv[1][0] == 'z') {
        struct zipf z;
        zipf_init(&z, atof(argv[3]), (uint64_t)atoi(argv[2]));
        for (int i = atoi(argv[4]); i-- > 0;)
            printf("%llu\n", (unsigned long long)zipf_draw(&z, &l.rng));
        return 0;
    }
    if (argv[1][0] == 'g') {
        for (int i = atoi(argv[2]); i-- > 0;)
            printf("%.9g\n", exponential(rng_unit(&l.rng), 1));
        return 0;
    }
    if (memcached_init(&l))
        return 1;
    for (uint32_t i = 0; argv[1][0] == 'i' && i < l.opt.items; i++)
        printf("%u %u\n", l.memcached->items[i].key_bytes, l.memcached->items[i].value_bytes);
    for (int i = 0; argv[1][0] == 'm' && i < 100000; i++) {
        struct request r = {0};
        memcached_choose(&l, &r);
        printf("%u %u\n", r.item, r.store);
    }
    for (uint32_t i = 0; argv[1][0] == 't' && i < l.opt.items; i++) {
        for (uint32_t store = 0; store < 2; store++) {
            struct message m;
            struct request r = {.item = i, .store = store};
            make_request(&l, &r, &m);
            for (int p = 0; p < 3; p++)
                fwrite(m.parts[p].bytes, 1, m.parts[p].count, stdout);
        }
    }
    memcached_free(&l);
    return 0;
}
"""

Probe = Callable[..., bytes]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Probe:
    made = tmp_path_factory.mktemp("workload")
    (made / "probe.c").write_text(PROBE)
    words = ["gcc", "-std=gnu11", "-O1", "-g", "-D_GNU_SOURCE", "-fsanitize=address,undefined"]
    words += ["-fno-sanitize-recover=all", f"-I{LOAD}", str(made / "probe.c")]
    subprocess.run([*words, "-o", str(made / "probe"), "-lm"], check=True)

    def run(*arguments: object) -> bytes:
        argv = [str(made / "probe"), *map(str, arguments)]
        return subprocess.run(argv, capture_output=True, check=True).stdout

    return run


def pairs(probe: Probe, *arguments: object) -> list[tuple[int, int]]:
    rows = probe(*arguments).decode().splitlines()
    return [(int(a), int(b)) for a, b in (row.split() for row in rows)]


def gev_quantile(share: float) -> float:
    """Atikoglu et al., section 5: key sizes of ETC."""
    return 30.7984 + 8.20449 * ((-math.log(share)) ** -0.078688 - 1) / 0.078688


def pareto_quantile(share: float) -> float:
    """The same, value sizes beyond the table."""
    return 15 + 214.476 * ((1 - share) ** -0.348238 - 1) / 0.348238


def test_etc_keys_follow_the_published_distribution(probe: Probe) -> None:
    keys = sorted(key for key, _ in pairs(probe, "items", 100_000, "etc"))
    for share in (0.05, 0.25, 0.5, 0.75, 0.95, 0.99):
        assert keys[int(share * len(keys))] == pytest.approx(gev_quantile(share), rel=0.03, abs=1)
    assert statistics.mean(keys) == pytest.approx(35.6, abs=0.8)
    assert max(keys) <= 250


def test_etc_values_follow_the_published_distribution(probe: Probe) -> None:
    values = [value for _, value in pairs(probe, "items", 200_000, "etc")]
    small = Counter(value for value in values if value < 15)
    published = {0: 0.00536, 2: 0.17820, 3: 0.09239, 5: 0.02740, 11: 0.08989, 14: 0.01980}
    for size, share in published.items():
        assert small[size] / len(values) == pytest.approx(share, rel=0.05), size
    assert sum(small.values()) / len(values) == pytest.approx(0.44157, abs=0.004)
    large = sorted(value for value in values if value >= 15)
    for share in (0.1, 0.5, 0.9, 0.99):
        found = large[int(share * len(large))]
        assert found == pytest.approx(pareto_quantile(share), rel=0.05, abs=1.5), share


def test_etc_asks_thirty_times_for_each_store(probe: Probe) -> None:
    kinds = [store for _, store in pairs(probe, "mix", 1000, "etc")]
    assert sum(kinds) / len(kinds) == pytest.approx(1 / 31, abs=0.003)


def test_usr_is_short_keys_tiny_values_and_nearly_no_stores(probe: Probe) -> None:
    sizes = pairs(probe, "items", 10_000, "usr")
    assert {key for key, _ in sizes} == {16, 21}
    assert {value for _, value in sizes} == {2}
    kinds = [store for _, store in pairs(probe, "mix", 1000, "usr")]
    assert sum(kinds) / len(kinds) == pytest.approx(0.002, abs=0.001)


def test_fixed_sizes_are_what_was_asked_for(probe: Probe) -> None:
    assert set(pairs(probe, "items", 500, "30,200")) == {(30, 200)}
    with pytest.raises(subprocess.CalledProcessError):
        probe("items", 10, "251,1")


def test_keys_are_unique_and_printable(probe: Probe) -> None:
    text = probe("text", 3000, "1,5")
    keys = [line.split()[1] for line in text.split(b"\r\n") if line.startswith(b"get ")]
    assert len(set(keys)) == 3000
    assert all(key.isalnum() for key in keys)


@pytest.mark.parametrize("exponent", [0.5, 0.99, 1.0, 1.3])
def test_popularity_follows_zipfs_law(probe: Probe, exponent: float) -> None:
    draws = Counter(int(line) for line in probe("zipf", 1000, exponent, 200_000).split())
    weights = [rank**-exponent for rank in range(1, 1001)]
    whole = sum(weights)
    assert set(draws) <= set(range(1000))
    for rank in (1, 2, 3, 10, 50):
        assert draws[rank - 1] / 200_000 == pytest.approx(weights[rank - 1] / whole, rel=0.08)
    tail = sum(draws[i] for i in range(500, 1000)) / 200_000
    assert tail == pytest.approx(sum(weights[500:]) / whole, rel=0.05)


def test_poisson_gaps_have_the_moments_of_an_exponential(probe: Probe) -> None:
    gaps = [float(line) for line in probe("gaps", 200_000, "-").split()]
    assert statistics.mean(gaps) == pytest.approx(1, abs=0.01)
    assert statistics.stdev(gaps) == pytest.approx(1, abs=0.02)
    assert sum(gap > 3 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-3), rel=0.04)
