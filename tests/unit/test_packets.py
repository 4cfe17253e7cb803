"""The shared helpers themselves: a buffer that doesn't catch an overrun would hide every bug."""

from __future__ import annotations

from tests.unit.packets import checksum, exact, is_poisoned, is_unwritten, unwritten


def test_exact_buffer_byte_after_end_is_watched() -> None:
    for size in [0, 1, 7, 8, 20, 40, 60, 1460]:
        buffer = exact(bytes(size))
        assert not any(is_poisoned(buffer + i) for i in range(size))
        # malloc(0) is one byte to the sanitizer.
        assert is_poisoned(buffer + max(size, 1))
        assert is_poisoned(buffer - 1)


def test_misaligned_buffer_byte_after_end_is_watched() -> None:
    for misalign in range(1, 8):
        assert is_poisoned(exact(bytes(20), misalign) + 20)


def test_plain_checksum_rfc1071_example_matches() -> None:
    # RFC 1071 section 3: the sum of these is ddf2 in big-endian words.
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum(data).to_bytes(2, "little") == (0xDDF2 ^ 0xFFFF).to_bytes(2, "big")


def test_unwritten_one_byte_stored_shows() -> None:
    arp = unwritten("struct ix_arp")
    assert is_unwritten(arp)
    arp.op = 1
    assert not is_unwritten(arp)
