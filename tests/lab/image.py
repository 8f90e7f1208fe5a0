"""The root file system of every host: one tarball, built once per list of packages."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.lab.cache import Say, cached, do, folder

# Debian's; `RAE_LAB_SUITE=trixie` tries all on the next one.
SUITE = os.environ.get("RAE_LAB_SUITE") or "bookworm"
PYTHON = {"bookworm": "3.11", "trixie": "3.13"}[SUITE]
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "libpam-systemd", "python3", "python3-apt", "bubblewrap",
    "libseccomp2", "iproute2", "nftables", "sudo", "openssh-server", "ca-certificates", "curl",
    "procps", "util-linux", "tar", "gzip", "zstd", "xz-utils", "unzip",
)  # fmt: skip
# What roles install: a repository in the image, for its hosts have no way out.
OFFERED = (
    "redis-server", "python3-venv", "logrotate", "polkitd", "rsync", "acl",
    "faketime", "ethtool", "iptables", "jq", "chrony", "systemd-timesyncd",
)  # fmt: skip
# What tests of remote desktops add, to an image of their own.
DESKTOPS = (
    "tigervnc-standalone-server", "x11vnc", "xvfb", "xrdp", "xorgxrdp", "sway", "wayvnc",
)  # fmt: skip
_REPOSITORY = "/var/lib/lab-apt"
# apt resolves each alone: some cannot be installed beside another.
_DOWNLOAD = f"""
set -e
mkdir -p "$1{_REPOSITORY}/partial"
for package in {" ".join(OFFERED)}; do
  APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq install --download-only --yes \\
    --no-install-recommends -o Dir::Cache::archives="$1{_REPOSITORY}" "$package"
done
cd "$1{_REPOSITORY}"
rm -rf partial lock
dpkg-scanpackages --multiversion . > Packages
chmod -R a+rX .
rm -f "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*
echo "deb [trusted=yes] file:{_REPOSITORY} ./" > "$1/etc/apt/sources.list.d/lab.list"
"""
# No test reads manuals, and a third of the image is gone.
LEAN = tuple(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("man", "doc", "locale"))
_OPTIONS = (
    "--variant=minbase",
    f"--include={','.join(PACKAGES)}",
    *LEAN,
    '--customize-hook=chroot "$1" systemctl enable systemd-networkd ssh',
    f"--customize-hook={_DOWNLOAD}",
    # The builder's own, and nobody's name server: hosts have no way out.
    '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
)


def path(extra: Sequence[str] = ()) -> Path:
    """The image of these packages and some more; another list is another file."""
    digest = hashlib.sha256("\n".join(_options(extra)).encode()).hexdigest()[:12]
    return folder() / f"{SUITE}-{os.uname().machine}-{digest}.tar"


def build(say: Say, extra: Sequence[str] = ()) -> Path:
    """The image, built if it is not there. Raises LabError."""
    return cached(path(extra).name, say, "two minutes", partial(_build, extra))


def _options(extra: Sequence[str]) -> list[str]:
    return [*_OPTIONS, *(f"--include={package}" for package in extra), SUITE]


def _build(extra: Sequence[str], target: Path, lock: int) -> None:
    # In a mount namespace of its own: nothing stays mounted, however it ends.
    unshare = ["unshare", "--mount", "--propagation=private"]
    rest = f"{target}.work"
    do(["mkdir", "--parents", rest], lock)
    try:
        do([*unshare, "mmdebstrap", *_options(extra), str(target)], lock, TMPDIR=rest)
    finally:
        do(["rm", "--recursive", "--force", rest], lock)
