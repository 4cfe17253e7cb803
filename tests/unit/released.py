"""The leaf functions of the core as they ship: optimised, without sanitizers.

Code that is written for the optimiser (vectors, string instructions) is tested in both builds:
the sanitized one catches accesses out of bounds, this one what the compiler made of it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]


def load_library(cdef: str) -> Any:
    """Opens ixnet/libixnet.so for the functions in `cdef`; skips where it is not built."""
    library = ROOT / "ixnet/libixnet.so"
    if not library.exists():
        pytest.skip("ixnet/libixnet.so is not built: run `make build`")
    ffi = FFI()
    ffi.cdef(cdef)
    return ffi.dlopen(str(library))


def load_object(source: str, wrapper: str, cdef: str, tmp_path: Path) -> Any:
    """Links the shipped object of `source` with a `wrapper` that makes hidden functions visible."""
    shipped = (ROOT / "build/core" / source).with_suffix(".o")
    if not shipped.exists():
        pytest.skip(f"{shipped.name} is not built: run `make build`")
    code = tmp_path / "wrapper.c"
    code.write_text(wrapper)
    library = tmp_path / "wrapper.so"
    include = f"-I{ROOT / 'ixnet/dataplane'}"
    flags = ["-O2", "-fPIC", "-ffreestanding", "-shared", "-nostdlib", include]
    subprocess.run(["gcc", *flags, "-o", str(library), str(code), str(shipped)], check=True)
    ffi = FFI()
    ffi.cdef(cdef)
    return ffi.dlopen(str(library))
