"""What all tests share.

C under test
    ``from tests.unit.san import ffi, lib`` gives every function that a header of the core
    (``ixnet/dataplane/**.h``), of ``ixnet/native/`` or of ``tests/native/`` declares, static inline
    ones and integer macros included, compiled with ``-fsanitize=address,undefined``. It is made by
    ``make build-san``; ``ixnet/_build_core.py`` says how. A function becomes visible to tests by
    being declared in a header; test helpers in C (loops that would be slow in Python) go to
    ``tests/native/NAME.c`` with ``NAME.h``. Buffers of ``ffi.new()`` have redzones, so reading
    past one ends the run with a report. Struct layouts are the compiler's.

How to run
    ``make test``; a part of it with ``make test PYTEST_ARGS='tests/unit/test_tcp_seq.py -k wrap'``.
    pytest by hand skips what needs the sanitizers. A report of a sanitizer ends pytest at once;
    ``make test`` prints it after the Python traceback.

Child processes
    are to run without the sanitizers' runtime: it is taken out of the environment here.

Examples of hypothesis
    are the same in every run, and take the time that they take.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

for _name in ("LD_PRELOAD", "PYTHONMALLOC", "ASAN_OPTIONS", "UBSAN_OPTIONS"):
    os.environ.pop(_name, None)

settings.register_profile(
    "ixnet",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ixnet")
