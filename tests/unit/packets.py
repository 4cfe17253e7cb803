"""What the tests of the wire layer share: exact buffers, addresses, a plain checksum."""

from __future__ import annotations

import socket
from typing import Any

from cffi import FFI

from tests.unit.san import ffi, lib

_libc_ffi = FFI()
_libc_ffi.cdef(
    "void *malloc(size_t); void free(void *);void *__asan_region_is_poisoned(void *, size_t);"
)
_libc: Any = _libc_ffi.dlopen(None)

SRC = "10.1.2.3"
DST = "192.0.2.77"
OK, SHORT, VERSION, HEADER, CSUM = (
    lib.IX_PARSE_OK,
    lib.IX_PARSE_SHORT,
    lib.IX_PARSE_VERSION,
    lib.IX_PARSE_HEADER,
    lib.IX_PARSE_CSUM,
)


def exact(data: bytes | bytearray | int, misalign: int = 0) -> Any:
    """Returns a `uint8_t *` to a malloc'ed copy of `data` (or that many 0xee bytes).

    The allocation ends with the data, so that the sanitizer sees a read or write of one byte
    beyond; it starts `misalign` bytes before. Freed with the returned object.
    """
    data = b"\xee" * data if isinstance(data, int) else bytes(data)
    block = int(_libc_ffi.cast("uintptr_t", _libc.malloc(len(data) + misalign)))
    address = block + misalign
    buffer = ffi.gc(
        ffi.cast("uint8_t *", address), lambda _: _libc.free(_libc_ffi.cast("void *", block))
    )
    ffi.memmove(buffer, data, len(data))
    return buffer


def is_poisoned(pointer: Any) -> bool:
    """True where the sanitizer would report an access to the byte at `pointer`."""
    at = _libc_ffi.cast("void *", int(ffi.cast("uintptr_t", pointer)))
    return bool(_libc.__asan_region_is_poisoned(at, 1) != _libc_ffi.NULL)


def raw_ip(dotted: str) -> int:
    """An IPv4 address as it lies in memory, which is how the core holds it."""
    return int.from_bytes(socket.inet_aton(dotted), "little")


def words_sum(data: bytes) -> int:
    """The plain model: 16-bit little-endian words, the last padded, added modulo 65535."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[i : i + 2], "little") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    """The checksum field over `data` as it lies in memory (little-endian reading)."""
    return words_sum(data) ^ 0xFFFF


def pseudo_bytes(src: str, dst: str, proto: int, size: int) -> bytes:
    """The IPv4 pseudo header."""
    addresses = socket.inet_aton(src) + socket.inet_aton(dst)
    return addresses + bytes([0, proto]) + size.to_bytes(2, "big")


def with_csum(segment: bytes, at: int, proto: int, src: str = SRC, dst: str = DST) -> bytes:
    """`segment` with the right checksum over pseudo header and data at offset `at`."""
    blank = segment[:at] + b"\0\0" + segment[at + 2 :]
    value = checksum(pseudo_bytes(src, dst, proto, len(segment)) + blank)
    return blank[:at] + value.to_bytes(2, "little") + blank[at + 2 :]


def unwritten(struct: Any) -> Any:
    """A new `struct *` filled with a pattern, for is_unwritten()."""
    pointer = ffi.new(f"{struct} *")
    ffi.memmove(pointer, b"\xa5" * ffi.sizeof(struct), ffi.sizeof(struct))
    return pointer


def is_unwritten(pointer: Any) -> bool:
    """True if nothing was stored into what unwritten() gave: a failed parse must not."""
    return set(bytes(ffi.buffer(pointer))) == {0xA5}


def ipv4_csum(header: bytes) -> bytes:
    """`header` with the right IPv4 header checksum."""
    blank = header[:10] + b"\0\0" + header[12:]
    return blank[:10] + checksum(blank).to_bytes(2, "little") + blank[12:]
