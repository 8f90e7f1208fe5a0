"""The root file system of every host: one tarball, built once per list of packages."""

from __future__ import annotations

import hashlib
import os
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
_OPTIONS = (
    "--variant=minbase",
    f"--include={','.join(PACKAGES)}",
    # Nobody reads manuals there, and a third of the image is gone.
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    '--customize-hook=chroot "$1" systemctl enable systemd-networkd ssh',
    f"--customize-hook={_DOWNLOAD}",
    # The builder's own, and nobody's name server: hosts have no way out.
    '--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"',
    SUITE,
)


def path() -> Path:
    """The image of these packages; another list is another file."""
    digest = hashlib.sha256("\n".join(_OPTIONS).encode()).hexdigest()[:12]
    return folder() / f"{SUITE}-{os.uname().machine}-{digest}.tar"


def build(say: Say) -> Path:
    """The image, built if it is not there. Raises LabError."""
    return cached(path().name, say, "two minutes", _build)


def _build(partial: Path, lock: int) -> None:
    # In a mount namespace of its own: nothing stays mounted, however it ends.
    unshare = ["unshare", "--mount", "--propagation=private"]
    rest = f"{partial}.work"
    do(["mkdir", "--parents", rest], lock)
    try:
        do([*unshare, "mmdebstrap", *_OPTIONS, str(partial)], lock, TMPDIR=rest)
    finally:
        do(["rm", "--recursive", "--force", rest], lock)
