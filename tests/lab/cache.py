"""What takes minutes to make is made once, and kept: one lock and one name for each."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.lab.preflight import LabError

Say = Callable[[str], None]


def folder() -> Path:
    """Where it is kept: RAE_LAB_CACHE, else the user's cache."""
    own = os.environ.get("RAE_LAB_CACHE")
    return Path(own) if own else Path.home() / ".cache" / "rae-mesh" / "lab"


def cached(name: str, say: Say, how_long: str, make: Callable[[Path, int], None]) -> Path:
    """A file or folder of that name, made if it is not there. Raises LabError.

    `make` gets where to put it, and the lock's descriptor for its children: should we be killed,
    they go on, and who comes next waits for them.
    """
    target = folder() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second finds it made
        if not target.exists():
            partial = target.with_name(f"part-{name}")  # the format may follow the ending
            _remove(partial)
            started = time.monotonic()
            say(f"{name}: making it ({how_long})")
            make(partial, lock.fileno())
            partial.replace(target)
            say(f"{name}: made in {time.monotonic() - started:.0f} s")
        os.utime(target)  # for `keep_newest`
    return target


def keep_newest(count: int, pattern: str) -> None:
    """Of what matches, keep what was used last; the rest can be made again."""
    files = sorted(folder().glob(pattern), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files[count:]:
        file.unlink(missing_ok=True)


def do(
    argv: Sequence[str], lock: int, *, cwd: Path | None = None, timeout_s: float = 900,
    **env: str,
) -> str:  # fmt: skip
    """Run a step of making something; what it printed. Raises LabError with what it said."""
    variables: Mapping[str, str] = {**os.environ, **env}
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=variables, capture_output=True, text=True, errors="replace",
            timeout=timeout_s, check=False, stdin=subprocess.DEVNULL, pass_fds=[lock],
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(argv)}` did not end within {timeout_s:g} s") from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-3000:]
        raise LabError(f"`{' '.join(argv)}` ended with {done.returncode}; it said:\n{said}")
    return done.stdout


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
