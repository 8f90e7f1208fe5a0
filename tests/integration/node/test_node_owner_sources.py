"""Who is there: logind's sessions and terminals (B2). Unknown means present."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rae_node.guard.sources.tty import TtySource
from rae_node.host import processes
from tests.until import until


class Later:
    """Clocks so many seconds ahead; `wall` may be set beside."""

    ahead = 0.0
    step = 0.0

    def wall(self) -> float:
        return time.time() + self.ahead + self.step

    def boot(self) -> float:
        return self.wall()

    def monotonic(self) -> float:
        return 1e6 + time.monotonic() + self.ahead


Terminals = tuple[Path, Later, str]


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    """A /dev with one real pseudo terminal in it, and the terminal's name."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    (tmp_path / "pts").mkdir()
    (tmp_path / "pts" / "0").symlink_to(name)
    (tmp_path / "pts" / "ptmx").touch()
    yield tmp_path, Later(), name
    os.close(master)
    os.close(slave)


def source(
    terminals: Terminals,
    ours: Callable[[int], bool] = lambda _: False,
    held: Callable[[int], bool] = lambda _: False,
) -> TtySource:
    folder, clock, _ = terminals
    return TtySource(
        lambda: 600, clock, ours=ours, held=held, consoles=folder / "active", folder=folder,
        monotonic=clock.monotonic,
    )  # fmt: skip


def look(
    terminals: Terminals,
    ours: Callable[[int], bool] = lambda _: False,
    held: Callable[[int], bool] = lambda _: False,
) -> bool | None:
    return source(terminals, ours, held).read().present


def test_a_terminal_counts_until_it_was_idle_for_long_enough(terminals: Terminals) -> None:
    """Contract: B2."""
    _, clock, name = terminals
    stamp = Path(name).stat().st_atime
    clock.ahead = stamp - time.time() + 590
    assert look(terminals)
    clock.ahead = stamp - time.time() + 610
    assert look(terminals) is False
    clock.ahead = -3600
    assert look(terminals), "a stamp of the future is no proof of idleness"


def test_a_user_who_types_is_seen_by_the_next_look_and_named(terminals: Terminals) -> None:
    """Contract: B2."""
    folder, clock, name = terminals
    looking = source(terminals)
    clock.ahead = 700
    looking.read()
    clock.ahead = 1400
    assert not looking.read().present
    os.utime(name, (time.time() + 60, 0))  # as the kernel does at a key, with its own clock
    seen = looking.read()
    assert (seen.present, seen.code) == (True, "tty_active")
    assert [one.who for one in seen.holders] == [f"terminal {folder}/pts/0: used 0 s ago"]
    clock.ahead = 2000.5
    assert not looking.read().present


def test_a_clock_that_is_set_neither_hides_nor_makes_a_use(terminals: Terminals) -> None:
    _, clock, _ = terminals
    looking = source(terminals)
    for clock.ahead in (0, 10, 20):
        assert looking.read().present
    clock.ahead, clock.step = 300, 3600
    assert looking.read().present, "no quiet time has passed but five minutes"
    clock.ahead = 630
    assert not looking.read().present
    clock.step = -3600
    assert not looking.read().present


@pytest.mark.parametrize(
    "console", ["tty3", "ttyS0", "ttyAMA0", "ttyUSB1", "ttyACM0", "hvc0", "xvc0"]
)
def test_a_virtual_or_serial_console_counts_too(terminals: Terminals, console: str) -> None:
    """Contract: B2."""
    folder, clock, _ = terminals
    clock.ahead = 10_000
    (folder / console).touch()
    assert look(terminals, held=lambda _: True) is False
    os.utime(folder / console, (clock.wall() - 60, 0))
    assert look(terminals, held=lambda _: True)


def test_a_serial_line_that_a_program_reads_does_not_count(terminals: Terminals) -> None:
    folder, clock, _ = terminals
    line, asked, held = folder / "ttyUSB0", list[float](), [False]
    line.touch()

    def is_held(_: int) -> bool:
        asked.append(clock.ahead)
        return held[0]

    looking = source(terminals, held=is_held)
    clock.ahead = 10_000
    for clock.ahead in range(10_000, 10_100):
        os.utime(line, (clock.wall() // 8 * 8, 0))
        assert not looking.read().present
    assert len(asked) <= 15, "all processes are looked at with each stamp, not each second"
    held[0] = True  # a getty
    os.utime(line, (clock.wall() + 9, 0))
    assert looking.read().present


def test_a_console_of_the_kernel_counts(terminals: Terminals) -> None:
    folder, clock, _ = terminals
    clock.ahead = 10_000
    (folder / "active").write_text("tty0 ttyS0\n")
    for name in ("ttyS0", "ttyS1"):
        (folder / name).touch()
    os.utime(folder / "ttyS1", (clock.wall() - 60, 0))
    assert not look(terminals)
    os.utime(folder / "ttyS0", (clock.wall() - 60, 0))
    assert look(terminals)


def test_the_controlling_terminal_of_a_process_is_found_until_that_ends() -> None:
    program = "import pty; pty.spawn(['sleep', '600'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.DEVNULL) as made:
        try:
            child = until(lambda: processes.children(made.pid), "the terminal's user")[0]
            name = until(lambda: _terminal(child), "the child's terminal")
            device = name.stat().st_rdev
            until(lambda: processes.controls_some(device), "its process")
        finally:
            made.kill()
    until(lambda: not processes.controls_some(device), "its end")


@pytest.mark.parametrize("other", ["tty", "ttyS", "ttyprintk", "vcs1", "console", "hvcs0x"])
def test_what_is_no_terminal_of_its_own_does_not_count(terminals: Terminals, other: str) -> None:
    folder, clock, _ = terminals
    clock.ahead = 10_000
    (folder / other).touch()
    os.utime(folder / other, (clock.wall() - 60, 0))
    assert look(terminals) is False


def test_where_there_are_no_terminals_to_look_at_the_source_is_blind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="pts"):
        TtySource(lambda: 600, Later(), ours=lambda _: False, folder=tmp_path).read()


def test_a_terminal_that_only_our_own_work_uses_is_left_out(terminals: Terminals) -> None:
    folder = terminals[0]
    program = "import pty; pty.spawn(['sleep', '600'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.DEVNULL) as made:
        try:
            child = until(lambda: processes.children(made.pid), "the terminal's user")[0]
            name = until(lambda: _terminal(child), "the child's terminal")
            (folder / "pts" / "0").unlink()
            (folder / "pts" / "1").symlink_to(name)
            assert look(terminals)
            assert not look(terminals, lambda device: processes.only_on_terminal({child}, device))
            assert look(terminals, lambda device: processes.only_on_terminal(set(), device))
        finally:
            made.kill()


def _terminal(pid: int) -> Path | None:
    found = Path(f"/proc/{pid}/fd/0").readlink()
    return found if found.parent == Path("/dev/pts") else None
