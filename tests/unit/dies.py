"""Whether a call trips an assertion of the core, found out in a child process."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable


def dies(call: Callable[[], object]) -> bool:
    """True if `call` ends in ix_assert_failed()'s trap; False if it returns.

    Anything else that ends the child (a sanitizer's report, an exception) is an error of the test.
    """
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for trap in (signal.SIGILL, signal.SIGTRAP):
            signal.signal(trap, signal.SIG_DFL)
        try:
            call()
        except BaseException:
            os._exit(2)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGILL, signal.SIGTRAP):
        return True
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, f"child ended with {status:#x}"
    return False
