"""The initramfs of a virtual machine: busybox and the modules that reach its disk, no more.

The distribution's own, unpacked under emulation, would cost half of the boot.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_WANTED = ("virtio_pci", "virtio_blk", "ext4")
# What ext4 asks for by name, and no list of dependencies has.
_CHECKSUMS = ("crc32c_generic", "crc32c_intel")
_INIT = b"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys
while read -r module; do $b insmod /modules/$module; done < /order
n=0; while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do $b usleep 50000; n=$((n+1)); done
$b mount -t ext4 -o rw,noatime /dev/vda /new || exec $b sh
for d in dev proc sys; do $b mount --move /$d /new/$d; done
exec $b switch_root /new /sbin/init
"""
_FOLDER, _PROGRAM, _FILE = 0o040755, 0o100755, 0o100644


def archive(root: Path) -> bytes:
    """A cpio archive for the kernel and programs of a root file system."""
    files = _modules(next((root / "lib/modules").iterdir()))
    order = "".join(f"{file.name}\n" for file in files).encode()
    return _cpio([
        *((name, _FOLDER, b"") for name in ("bin", "dev", "proc", "sys", "new", "modules")),
        ("bin/busybox", _PROGRAM, (root / "bin/busybox").read_bytes()),
        *((f"modules/{file.name}", _FILE, file.read_bytes()) for file in files),
        ("order", _FILE, order),
        ("init", _PROGRAM, _INIT),
    ])  # fmt: skip


def _modules(folder: Path) -> list[Path]:
    """The wanted modules of a kernel with all that they need, in the order to load them."""
    needs: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {Path(path).name.removesuffix(".ko").replace("-", "_"): path for path in needs}
    order: list[str] = []
    for name in (*_CHECKSUMS, *_WANTED):
        if name not in by_name:  # it is built into the kernel
            continue
        path = by_name[name]
        # modules.dep has all of them, nearest first.
        order += [need for need in (*reversed(needs[path]), path) if need not in order]
    return [folder / path for path in order]


def _cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A `newc` archive of (name, mode, content)."""
    out = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
        for part in (b"070701" + b"".join(b"%08X" % field for field in fields) + raw, content):
            out += part + bytes(-len(part) % 4)
    return bytes(out)
