"""What tables are shown with."""

from __future__ import annotations

import sys

from rich.console import Console

# Wider than any table: who reads from a pipe wants a row to be a line.
PIPE_WIDTH = 1000


def make_console() -> Console:
    """On standard output. No text is markup: labels, names and addresses come from users, and
    [fd00::1]:7 is not a style. As wide as the terminal; into a pipe or a file as wide as is asked.
    """
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, markup=False, emoji=False)
