"""A module in ring 0: called, kicked, counted, attacked, and what is seen of its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.dune import kit

Run = Callable[..., kit.Result]

USED = ("adds", "stores", "kicks")


@pytest.mark.parametrize("pkey", [True, False], ids=["pkey", "no-pkey"])
@pytest.mark.parametrize("case", USED)
def test_module(run_program: Run, case: str, pkey: bool) -> None:
    run_program("module", case, env={} if pkey else {"DUNE_TEST_NO_PKEY": "1"})
