"""The box of a task: what bubblewrap lets it see of the machine, and which system calls it may use.

Options are those of bubblewrap 0.6.1 (Ubuntu 22.04) and newer. Inside, everything is read-only but
`/workdir/work`, `/workdir/output`, `/tmp` and `/dev/shm`, which all lie in the workspace, so that
one watch over that folder is the whole quota; a tmpfs would take memory that no limit counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rae_node.errors import NodeError
from rae_node.isolation.bubblewrap_view import NOTHING, PROBE_ENV, View
from rae_node.isolation.seccomp import compiled
from rae_node.package import DATA
from rae_node.runners.base import PATH
from rae_node.workspace.box_paths import ETC, ROOTS, mount_points
from rae_node.workspace.workspace import CALL, FOLDERS, INSIDE, NOTE, Workspace

_PEOPLE = DATA / "box"
_PROBE_S = 10.0
_GPU_SHARED = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")


@dataclass(frozen=True, slots=True)
class Box:
    """bubblewrap as it works here. `seccomp`: a compiled filter, in hex."""

    program: str
    system: tuple[str, ...]
    seccomp: str

    def order(
        self, workspace: Path, shown: Sequence[Path], devices: Sequence[Path]
    ) -> dict[str, object]:
        """What a supervisor needs to make it."""
        words = self.arguments(workspace, shown, devices)
        return {"argv": [self.program, *words], "seccomp": self.seccomp}

    def arguments(
        self, workspace: Path, shown: Sequence[Path] = (), devices: Sequence[Path] = ()
    ) -> tuple[str, ...]:
        """bubblewrap's, without the program's. `shown`: more to read; `devices`: to use."""
        words = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        words += ["--unshare-net", "--unshare-cgroup-try", "--hostname", "task"]
        words += ["--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"]
        words += ["--die-with-parent", "--new-session", *self.system]
        words += ["--proc", "/proc", "--dev", "/dev"]
        for name in ("passwd", "group"):
            words += ["--ro-bind", str(_PEOPLE / name), f"/etc/{name}"]
        for path in devices:
            words += ["--dev-bind", str(path), str(path)]
        there = Workspace(workspace)
        words += ["--ro-bind", str(there.input), f"{INSIDE}/input"]
        words += ["--bind", str(there.work), f"{INSIDE}/work"]
        words += ["--bind", str(there.output), f"{INSIDE}/output"]
        words += ["--bind", str(workspace / "tmp"), "/tmp"]  # noqa: S108 - the task's own
        words += ["--bind", str(workspace / "shm"), "/dev/shm"]  # noqa: S108 - the task's own
        # After the task's own /tmp and /dev/shm, which would hide what lies there. The folders that
        # bubblewrap makes for it in them are wiped with the workspace.
        for path in mount_points(shown):
            words += ["--ro-bind", str(path), str(path)]
        words += ["--ro-bind-try", str(workspace / CALL), f"{INSIDE}/{CALL}"]
        words += ["--bind-try", str(workspace / NOTE), f"{INSIDE}/{NOTE}"]
        words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", f"{INSIDE}/work"]
        return tuple(words)


def prepared(path: str = PATH) -> Box:
    """The box, not tried yet. Raises NodeError `no_box` saying what is missing."""
    program = shutil.which("bwrap", path=path)
    if program is None:
        raise NodeError("no_box", "bubblewrap is not installed; `apt install bubblewrap`")
    try:
        seccomp = compiled()
    except (OSError, RuntimeError, ImportError) as error:
        text = f"libseccomp cannot be used ({error}); `apt install libseccomp2`"
        raise NodeError("no_box", text) from error
    return Box(program, system(), seccomp.hex())


def tried(box: Box, below: Path | None = None, view: View = NOTHING) -> Box:
    """After `true` and the view's probe ran in it, with a folder that is made `below` this one.

    Raises NodeError: `no_box` when no box can be made here, `not_shown` when it cannot show what
    tasks need; OSError.
    """
    if os.geteuid() == 0:
        raise NodeError(
            "no_box", "the agent runs as root, and so would its tasks; use its own user"
        )
    done = _run(box, below, ("/usr/bin/true",))
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-300:] or f"exit {done.returncode}"
        raise NodeError(
            "no_box",
            f"bubblewrap cannot make a box here ({said}); check user.max_user_namespaces, and on "
            "Ubuntu 23.10 and newer bwrap's AppArmor profile",
        )
    if view.shown:
        view.check()
        done = _run(box, below, view.probe, view.paths)
        view.require_success(done.returncode, os.fsdecode(done.stdout or done.stderr), "a box")
    return box


def _run(
    box: Box, below: Path | None, argv: Sequence[str], shown: Sequence[Path] = ()
) -> subprocess.CompletedProcess[bytes]:
    """A program in a box of its own, to its end. Raises NodeError `no_box`, OSError."""
    with (
        tempfile.TemporaryDirectory(prefix=".box-", dir=below) as folder,
        # In memory: the agent has no folder for such files.
        os.fdopen(os.memfd_create("rules", os.MFD_CLOEXEC), "w+b", buffering=0) as rules,
    ):
        for name in FOLDERS:
            (Path(folder) / name).mkdir()
        rules.write(bytes.fromhex(box.seccomp))
        rules.seek(0)
        words = [box.program, *box.arguments(Path(folder), shown)]
        words += ["--seccomp", str(rules.fileno()), "--", *argv]
        try:
            return subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, env=PROBE_ENV,
                timeout=_PROBE_S, check=False, pass_fds=[rules.fileno()],
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise NodeError("no_box", f"bubblewrap did not run: {error}") from error


def system() -> tuple[str, ...]:
    """Options that show this machine's programs and libraries, read-only."""
    words: list[str] = []
    for name in ROOTS:
        path = Path(name)
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            words += ["--ro-bind", name, name]
    for name in ETC:
        words += ["--ro-bind-try", name, name]
    return tuple(words)


def gpu_devices(
    gpus: Sequence[str],
    *,
    known: Path = Path("/proc/driver/nvidia/gpus"),
    devices: Path = Path("/dev"),
) -> tuple[Path, ...]:
    """Device nodes of GPUs, named by UUID or by number, and those that all of them share."""
    minors = {}
    for file in known.glob("*/information"):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
        minors[facts.get("GPU UUID", "")] = facts.get("Device Minor", "")
    names = [f"nvidia{minors.get(gpu, gpu)}" for gpu in gpus]
    found = (devices / name for name in (*names, *_GPU_SHARED) if gpus)
    return tuple(path for path in found if path.exists())
