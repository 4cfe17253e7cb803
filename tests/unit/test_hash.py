"""base/hash: SipHash-2-4 against the paper, a plain model; the flow hash and splitmix64."""

from __future__ import annotations

import random

import pytest

from tests.unit.packets import exact
from tests.unit.san import ffi, lib

MASK = (1 << 64) - 1
PAPER_KEY = bytes(range(16))


def rotate(v: int, bits: int) -> int:
    return (v << bits | v >> (64 - bits)) & MASK


def model_siphash(key: bytes, data: bytes) -> int:
    """SipHash-2-4 written down from section 2 of the paper."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    words = b"somepseudorandomlygeneratedbytes"
    v = [
        int.from_bytes(words[i : i + 8], "big") ^ k
        for i, k in ((0, k0), (8, k1), (16, k0), (24, k1))
    ]

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & MASK
            v[1] = rotate(v[1], 13) ^ v[0]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[3]) & MASK
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & MASK
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & MASK
            v[1] = rotate(v[1], 17) ^ v[2]
            v[2] = rotate(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def siphash(key: bytes, data: bytes, misalign: int = 0) -> int:
    struct = ffi.new("struct ix_key *")
    ffi.memmove(struct, key, 16)
    return int(lib.ix_siphash(struct, exact(data, misalign), len(data)))


def test_siphash_vector_of_the_paper_matches() -> None:
    # Appendix A: key 00..0f, message 00..0e.
    assert siphash(PAPER_KEY, bytes(range(15))) == 0xA129CA6149BE45E5


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, 0x726FDB47DD0E0E31), (1, 0x74F839C593DC67FD), (8, 0x93F5F5799A932462)],
)
def test_siphash_vectors_of_the_reference_match(size: int, expected: int) -> None:
    assert siphash(PAPER_KEY, bytes(range(size))) == expected


def test_siphash_every_size_matches_model() -> None:
    for size in [*range(0, 66), 255, 256, 257, 1000]:
        rng = random.Random(size)
        key, data = rng.randbytes(16), rng.randbytes(size)
        expected = model_siphash(key, data)
        for misalign in (0, 1, 4, 7):
            assert siphash(key, data, misalign) == expected


def words_hash(key: tuple[int, int], a: int, b: int, c: int) -> int:
    return int(lib.ix_hash_words(ffi.new("struct ix_key *", {"k": list(key)}), a, b, c))


def test_words_hash_matches_its_definition() -> None:
    def fold(a: int, b: int) -> int:
        return (a * b & MASK) ^ (a * b >> 64)

    rng = random.Random(1)
    for _ in range(200):
        k0, k1, a, b, c = (rng.getrandbits(64) for _ in range(5))
        h = fold(a ^ k0, b ^ k1)
        expected = fold(h ^ k1, c ^ k0 ^ 0x9E3779B97F4A7C15)
        assert words_hash((k0, k1), a, b, c) == expected


def test_words_hash_consecutive_flows_spread_over_buckets() -> None:
    # What a load generator does: one pair of hosts, consecutive ports. 4096 flows in 1024 buckets
    # are Poisson with mean 4: 20 in one has a probability near 1e-5 over all buckets.
    rng = random.Random(2)
    for _ in range(8):
        key = (rng.getrandbits(64), rng.getrandbits(64))
        buckets = [0] * 1024
        for port in range(4096):
            buckets[words_hash(key, 0x0A000001, 0x0A000002, port << 16 | 80) & 1023] += 1
        assert max(buckets) < 20
        assert buckets.count(0) < 60


def test_words_hash_other_key_gives_other_order() -> None:
    values = [[words_hash((k, ~k & MASK), 1, 2, n) for n in range(64)] for k in (3, 4)]
    assert not set(values[0]) & set(values[1])


def test_random_published_seed_gives_published_numbers() -> None:
    # The sequence of splitmix64 for seed 1234567, as its author's code prints it.
    state = ffi.new("uint64_t *", 1234567)
    assert [lib.ix_random(state) for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
