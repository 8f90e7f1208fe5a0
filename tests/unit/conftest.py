"""A unit test starts no process: one that does belongs to tests/integration."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest

STARTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.system"}
_started: list[str] = []


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event in STARTS:
        _started.append(f"{event} {args[:1]}")


sys.addaudithook(_note)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    _started.clear()
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    yield
    if _started:
        pytest.fail(f"this unit test started {_started}: move it to tests/integration")
