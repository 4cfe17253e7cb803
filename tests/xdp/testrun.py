"""BPF_PROG_TEST_RUN with a context, which says where a frame came in."""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute, netns

from ixnet._core import lib
from ixnet.control.namespaces import in_netns
from ixnet.control.xdp import EXPRESS_PATH, Steering

LO = 1
_numbers = itertools.count()
_SYS_BPF = 321  # x86-64
_TEST_RUN = 10
_MD = struct.Struct("6I")  # struct xdp_md: data, data_end, data_meta, interface, queue, egress
_ATTR = struct.Struct("4I2Q4I2Q3I4x")  # union bpf_attr.test


def run_frame(
    steering: Steering, frame: bytes, ifindex: int, room: int = 4096
) -> tuple[int, bytes]:
    """Runs the program over a frame that came in by this interface of the namespace; the action
    and the frame then."""
    libc = ctypes.CDLL(None, use_errno=True)
    data_in = ctypes.create_string_buffer(frame, len(frame))
    data_out = ctypes.create_string_buffer(room)
    context = ctypes.create_string_buffer(_MD.pack(0, len(frame), 0, ifindex, 0, 0), _MD.size)
    attr = ctypes.create_string_buffer(
        _ATTR.pack(
            lib.ix_steer_prog_fd(steering.raw), 0, len(frame), room,
            ctypes.addressof(data_in), ctypes.addressof(data_out),
            1, 0, _MD.size, 0, ctypes.addressof(context), 0, 0, 0, 0,
        ),
        _ATTR.size,
    )  # fmt: skip
    if libc.syscall(_SYS_BPF, _TEST_RUN, attr, _ATTR.size):
        raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
    _, action, _, length, *_ = _ATTR.unpack(attr.raw)
    return action, data_out.raw[:length]


class _SteeringByVeth(Steering):
    """Its test frames come in by a veth: by default it is lo, whose frames are blanks."""

    ifindex_in = 0

    def _test_run(self, frame: bytes, times: int) -> tuple[int, int]:
        assert times == 1
        return run_frame(self, frame, self.ifindex_in)[0], 0


@contextmanager
def veth() -> Iterator[int]:
    """The index of a veth in a namespace where this thread is then."""
    name = f"ixtr{os.getpid()}-{next(_numbers)}"
    netns.create(name)
    try:
        with in_netns(name), IPRoute() as ipr:
            ipr.link("add", ifname="in0", kind="veth", peer="in1")
            yield ipr.link_lookup(ifname="in0")[0]
    finally:
        netns.remove(name)


def opened(path: Path, ifindex: int) -> Steering:
    """A steering program, whose test_run() takes frames for those of a wire, of the veth."""
    if path != EXPRESS_PATH:
        return Steering.open(path)
    steering = _SteeringByVeth.open(path)
    steering.ifindex_in = ifindex
    return steering
