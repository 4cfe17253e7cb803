"""The histogram and the byte stream, compiled into a small filter and held against Python's own."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROBE = r"""
#include "bytestream.h"
#include "histogram.h"
#include <stdlib.h>

/* quantiles SHARE...: values on stdin, one a line.  fill SEED OFFSET BYTES: raw bytes to stdout. */
int main(int argc, char **argv)
{
    static struct histogram h;
    if (argv[1][0] == 'q') {
        unsigned long long value;
        while (scanf("%llu", &value) == 1)
            histogram_add(&h, value);
        for (int i = 2; i < argc; i++)
            printf("%.1f\n", histogram_quantile_ns(&h, atof(argv[i])));
        return 0;
    }
    static struct bytestream stream;
    bytestream_init(&stream);
    uint32_t at = bytestream_start(strtoull(argv[2], 0, 10), 0);
    at = bytestream_after(at, (uint32_t)strtoull(argv[3], 0, 10));
    fwrite(bytestream_at(&stream, at), 1, strtoull(argv[4], 0, 10), stdout);
    return 0;
}
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    made = tmp_path_factory.mktemp("probe")
    (made / "probe.c").write_text(PROBE)
    words = ["gcc", "-std=gnu11", "-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    command = [
        *words,
        f"-I{ROOT / 'ixnet/bench/load'}",
        str(made / "probe.c"),
        "-o",
        str(made / "probe"),
    ]
    subprocess.run(command, check=True)

    def run(*arguments: object, given: str = "") -> bytes:
        argv = [str(made / "probe"), *map(str, arguments)]
        return subprocess.run(argv, input=given.encode(), capture_output=True, check=True).stdout

    return run


def quantiles(probe: Callable[..., bytes], values: list[int], *shares: float) -> list[float]:
    out = probe("quantiles", *shares, given="\n".join(map(str, values)))
    return [float(line) for line in out.split()]


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_within_a_thousandth(probe: Callable[..., bytes], seed: int) -> None:
    source = random.Random(seed)
    values = sorted(int(2 ** source.uniform(0, 39)) for _ in range(5000))
    shares = [0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0]
    for share, got in zip(shares, quantiles(probe, values, *shares), strict=True):
        exact = values[max(round(share * len(values)), 1) - 1]
        assert got == pytest.approx(exact, rel=0.001), share


def test_every_small_value_is_exact(probe: Callable[..., bytes]) -> None:
    for value in (0, 1, 2, 127, 1023, 1024, 2047):
        assert quantiles(probe, [value], 0.5) == [value]


def test_no_samples_and_giant_samples(probe: Callable[..., bytes]) -> None:
    assert quantiles(probe, [], 0.5) == [0]
    [largest] = quantiles(probe, [2**63], 0.5)
    assert largest == pytest.approx(2**40, rel=0.01)


def test_a_slice_of_the_stream_is_the_stream(probe: Callable[..., bytes]) -> None:
    whole = probe("fill", 7, 0, 200_000)
    assert len(set(whole[:1500])) > 250
    # Over the end of the period too, which no power of two is a multiple of.
    for offset, size in ((0, 7), (1, 8), (511, 513), (65_520, 9), (65_536, 1000), (131_072, 64)):
        assert probe("fill", 7, offset, size) == whole[offset : offset + size]
    assert whole[:65_521] == whole[65_521:131_042]
    assert whole[:64] not in whole[1:65_000]
    assert probe("fill", 8, 0, 64) != whole[:64]
