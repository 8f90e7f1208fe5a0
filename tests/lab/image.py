"""The root file system of every host: one tarball, built once per list of packages."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.preflight import LabError

SUITE = "bookworm"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "libpam-systemd", "python3", "bubblewrap", "libseccomp2",
    "iproute2", "nftables", "sudo", "openssh-server", "ca-certificates", "curl", "procps",
    "util-linux",
)  # fmt: skip
_OPTIONS = (
    "--variant=minbase",
    f"--include={','.join(PACKAGES)}",
    # Nobody reads manuals there, and a third of the image is gone.
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    '--customize-hook=chroot "$1" systemctl enable systemd-networkd ssh',
    # The builder's own, and nobody's name server: hosts have no way out.
    '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
    SUITE,
)
Say = Callable[[str], None]


def folder() -> Path:
    """Where images are kept: RAE_LAB_CACHE, else the user's cache."""
    own = os.environ.get("RAE_LAB_CACHE")
    return Path(own) if own else Path.home() / ".cache" / "rae-mesh" / "lab"


def path() -> Path:
    """The image of this list of packages; another list is another file."""
    digest = hashlib.sha256("\n".join(_OPTIONS).encode()).hexdigest()[:12]
    return folder() / f"{SUITE}-{os.uname().machine}-{digest}.tar"


def build(say: Say) -> Path:
    """The image, built if it is not there. Raises LabError."""
    image = path()
    image.parent.mkdir(parents=True, exist_ok=True)
    with (image.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second finds it built
        if not image.exists():
            _build(image, say, lock.fileno())
    return image


def _build(image: Path, say: Say, lock: int) -> None:
    started = time.monotonic()
    say(f"image: building {image} (a minute)")
    for rest in image.parent.glob("mmdebstrap.*"):  # of a build that was killed
        shutil.rmtree(rest)
    partial = image.with_name(f"part-{image.name}")  # the format follows the ending
    # In a mount namespace of its own: nothing stays mounted, however it ends.
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", "mmdebstrap", *_OPTIONS,
         str(partial)],
        capture_output=True, text=True, timeout=900, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(image.parent)},
        pass_fds=[lock],  # should we be killed: it goes on, and the next waits for it
    )  # fmt: skip
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        raise LabError(f"mmdebstrap could not build the image; it said:\n{done.stderr[-3000:]}")
    partial.replace(image)
    say(f"image: built in {time.monotonic() - started:.0f} s")
