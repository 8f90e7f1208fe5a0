"""What the lab's virtual machines boot: kernel, initramfs, disk and key, made once per content."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import requires
from pathlib import Path

from tests.lab import vm_initrd
from tests.lab.cache import Say, cached, do
from tests.lab.image import LEAN, PYTHON, SUITE
from tests.lab.libraries import libraries

RELEASE = "/opt/rae-node/releases/test"
PACKAGES_FOLDER = f"{RELEASE}/lib/python{PYTHON}/site-packages"
USER = "alice"
_BASE = (
    "systemd", "systemd-sysv", "dbus", "libpam-systemd", "udev", "kmod", "python3",
    "python3-evdev", "openssh-server", "iproute2", "nftables", "sudo", "procps", "util-linux",
    "polkitd", "bubblewrap", "libseccomp2", "busybox-static", "linux-image-amd64",
)  # fmt: skip
_DESKTOP = (
    "xserver-xorg-core", "xserver-xorg-input-libinput", "xserver-xorg-legacy", "xinit",
    "x11-utils", "xss-lock", "libgl1-mesa-dri", "sway", "lightdm", "lightdm-gtk-greeter",
)  # fmt: skip
_OPTIONS = (
    "--variant=minbase", f"--include={','.join(_BASE + _DESKTOP)}",
    '--aptopt=APT::Install-Recommends "false"', *LEAN, "--format=directory", SUITE,
)  # fmt: skip
# What a display manager would do for the session: a VT, PAM, and what logind wants to know.
_SESSION = """[Unit]
After=systemd-user-sessions.service systemd-logind.service
[Service]
User={user}
PAMName=login
WorkingDirectory=~
Environment=XDG_SESSION_TYPE={kind} XDG_SEAT=seat0 XDG_VTNR={vt} XDG_SESSION_CLASS=user {more}
TTYPath=/dev/tty{vt}
TTYReset=yes
TTYVHangup=yes
TTYVTDisallocate=yes
StandardInput=tty
StandardOutput=journal
StandardError=journal
ExecStartPre=+/usr/local/bin/switch-vt {vt}
ExecStart={program}
"""
_X11 = _SESSION.format(
    user=USER, kind="x11", vt=7, more="",
    program=f"/usr/bin/xinit /home/{USER}/x.sh -- /usr/bin/X :0 vt7 -keeptty -nolisten tcp",
)  # fmt: skip
_WAYLAND = _SESSION.format(
    user=USER, kind="wayland", vt=8, program="/usr/bin/sway",
    more="WLR_RENDERER=pixman WLR_NO_HARDWARE_CURSORS=1 LIBSEAT_BACKEND=logind",
)  # fmt: skip
_SWITCH_VT = """#!/usr/bin/python3
import fcntl, sys
with open("/dev/tty0", "w") as tty:
    for request in (0x5606, 0x5607):  # VT_ACTIVATE, VT_WAITACTIVE
        fcntl.ioctl(tty, request, int(sys.argv[1]))
"""
# Locked by `loginctl lock-session`; the log shows which keys reached the display.
_X_PROGRAM = f"""#!/bin/sh
xss-lock -- sleep infinity &
exec stdbuf -oL xev -root -event keyboard > /home/{USER}/keys.log
"""
_SWAY = f"""exec touch /home/{USER}/sway-is-up
bindsym a exec sh -c "date +%s.%N >> /home/{USER}/keys.log"
"""
_FILES: Mapping[str, str] = {
    "etc/hostname": "vm\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 vm\n",
    "etc/fstab": "",
    # Without one, every boot would be a first boot.
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/systemd/network/lab.network": "[Match]\nName=eth*\n[Network]\nAddress=10.0.2.15/24\n",
    # Without PAM, the tests' own connection is no session of logind's and so no owner's presence.
    "etc/ssh/sshd_config.d/lab.conf": "UsePAM no\nUseDNS no\n",
    "etc/systemd/system/lab-x11.service": _X11,
    "etc/systemd/system/lab-wayland.service": _WAYLAND,
    "usr/local/bin/switch-vt": _SWITCH_VT,
    f"home/{USER}/x.sh": _X_PROGRAM,
    f"home/{USER}/.config/sway/config": _SWAY,
    f"{RELEASE[1:]}/pyvenv.cfg": "home = /usr/bin\ninclude-system-site-packages = false\n",
}
_SETUP = f"""set -eu
systemctl -q enable systemd-networkd ssh
systemctl -q disable lightdm
systemctl -q set-default multi-user
# Work that would start by itself, some time, in the middle of a measurement.
systemctl -q mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service \
  fstrim.timer dpkg-db-backup.timer systemd-tmpfiles-clean.timer systemd-pstore.service \
  systemd-networkd-wait-online.service
useradd -M -s /bin/bash -G video,input {USER}
chown -R {USER}:{USER} /home/{USER}
passwd -q -d {USER}
chmod 755 /usr/local/bin/switch-vt /home/{USER}/x.sh
mkdir {RELEASE}/bin
ln -s /usr/bin/python3 {RELEASE}/bin/python
ln -s {RELEASE} /opt/rae-node/current
# Compiled here it takes a second, under emulation a minute.
python3 -m compileall -q -j 0 {PACKAGES_FOLDER} /usr/lib/python3
rm -f /etc/resolv.conf
"""


def needed() -> list[str]:
    """What the agent's packages need of others, by name."""
    lines = [line for part in ("rae-protocol", "rae-node") for line in requires(part) or ()]
    return sorted({re.split(r"[^\w.-]", line)[0] for line in lines} - {"rae-protocol"})


def build(say: Say) -> Path:
    """A folder with vmlinuz, initrd.img, disk.img, key and known_hosts. Raises LabError.

    The disk has a desktop, sshd, and below RELEASE what the agent's packages need, not them.
    """
    wheels = libraries(needed(), say)
    made_of = [*_OPTIONS, wheels.name, _SETUP, repr(_FILES), Path(vm_initrd.__file__).read_text()]
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:12]

    def make(partial: Path, lock: int) -> None:
        _build(partial, lock, wheels)

    return cached(f"vm-{SUITE}-{digest}", say, "two minutes", make)


def _build(partial: Path, lock: int, wheels: Path) -> None:
    partial.mkdir()
    root = partial / "root"
    # In a mount namespace of its own: nothing stays mounted, however it ends.
    unshare = ["unshare", "--mount", "--propagation=private"]
    do([*unshare, "mmdebstrap", *_OPTIONS, str(root)], lock, TMPDIR=str(partial))
    for name, content in _FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(content, encoding="utf-8")
    shutil.copytree(wheels, f"{root}{PACKAGES_FOLDER}")
    do(["chroot", str(root), "sh", "-c", _SETUP], lock)
    key = partial / "key"
    do(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(key)], lock)
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    (root / "root/.ssh/authorized_keys").write_bytes(key.with_suffix(".pub").read_bytes())
    host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (partial / "known_hosts").write_text(f"vm {host_key}")
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, partial / "vmlinuz")
    (partial / "initrd.img").write_bytes(vm_initrd.archive(root))
    disk = partial / "disk.img"
    disk.touch()
    os.truncate(disk, 3 << 30)
    do(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1",
        "-d", str(root), str(disk)], lock)  # fmt: skip
    do(["rm", "--recursive", str(root)], lock)
