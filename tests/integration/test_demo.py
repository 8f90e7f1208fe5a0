"""`make demo` as a stranger sees it: it keeps its promises, and cleans up, also when stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.until import until
from tools.processes import processes_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo puts everything; short, because sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


def start(folder: Path) -> subprocess.Popen[str]:
    # A shell that runs the tests in the background has it ignored, and so would the demo.
    heedful = ["env", "--default-signal=INT", sys.executable, "-m", "tools.scenarios", "demo"]
    return subprocess.Popen(
        heedful, cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def nothing_is_left(folder: Path) -> None:
    until(lambda: not processes_of(folder), "every process of the demo is gone")
    assert list(folder.iterdir()) == []


def test_the_demo_does_everything_once_and_leaves_nothing(folder: Path) -> None:
    with start(folder) as demo:
        output, _ = demo.communicate(timeout=170)
    assert demo.returncode == 0, output
    table = dict(re.findall(r"^(\S.*?) {2,}([0-9.]+)$", output, re.MULTILINE))
    assert int(table["tasks"]) >= 59
    assert table["succeeded"] == table["tasks"]
    assert table["artifacts equal byte for byte"] >= "59"
    assert table["duplicates"] == "0"
    assert int(table["handed back for the owner"]) >= 1
    assert table["nodes lost"] == "1"
    assert float(table["seconds"]) < 120
    nothing_is_left(folder)


def test_a_demo_whose_reader_goes_away_leaves_neither_process_nor_folder(folder: Path) -> None:
    with start(folder) as demo:
        assert demo.stdout is not None
        demo.stdout.readline()  # as `make demo 2>&1 | head -1` does
        demo.stdout.close()
        demo.wait(60)
    assert demo.returncode == 141
    nothing_is_left(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_demo_that_is_stopped_in_the_middle_leaves_no_process(
    folder: Path, number: signal.Signals
) -> None:
    with start(folder) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "its owner comes back" in line:
                break
        demo.send_signal(number)
        demo.communicate(timeout=30)
    assert demo.returncode != 0
    until(lambda: not processes_of(folder), "every process of the demo is gone", 20)
    if number is not signal.SIGKILL:
        assert list(folder.iterdir()) == []
