"""Builds ixnet's compiled parts with the Makefile, and puts them into the package.

The parts: libixnet.so (the C core and its helpers), _core.abi3.so (its cffi module), the XDP
objects, the texts that bcc compiles, libdune.so with _dune.abi3.so, dune-sandbox, ring0.bin,
ring0.sym, dune_shim.sym and the load generator. Everything else about the package stands in
pyproject.toml.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# ring0.sym: the names of ring0.bin's functions, for the report of a crash.
PROGRAMS = (
    "dune-sandbox",
    "ring0.bin",
    "ring0.sym",
    "dune_shim.sym",
    "bench/ixload",
    "bench/ixping",
)
APPS = ("bench/ixload.so", "bench/ixping.so")
CURE = (
    "building ixnet needs these Debian packages: make gcc libc6-dev linux-libc-dev clang "
    "libbpf-dev libxdp-dev python3-dev (apt-get install them, or run `make setup`)"
)


class MakeExtension(build_ext):
    """Runs `make lib` in place of a compiler call."""

    def run(self) -> None:
        root = Path(__file__).resolve().parent
        # The environment that pip builds in has cffi; .venv may not even exist.
        command = ["make", "lib-locked", f"PYTHON={sys.executable}", "IX_PARTIAL="]
        try:
            subprocess.run(command, cwd=root, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"{error}\n{CURE}") from error
        if self.inplace:
            return
        package = root / "ixnet"
        parts = [*package.glob("*.so"), *(package / "xdp_objects").glob("*.[och]")]
        parts += [package / name for name in (*PROGRAMS, *APPS)]
        for part in parts:
            target = Path(self.build_lib) / part.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(part, target)

    def get_outputs(self) -> list[str]:
        built = Path(self.build_lib, "ixnet")
        texts = (built / "xdp_objects").glob("*.[ch]")
        programs = (built / name for name in PROGRAMS)
        return [str(p) for p in [*built.rglob("*.[so]*"), *texts, *programs]]


setup(
    ext_modules=[Extension("ixnet._core", sources=[])],
    cmdclass={"build_ext": MakeExtension},
)
