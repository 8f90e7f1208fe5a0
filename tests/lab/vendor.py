"""Tailscale as its vendor offers it: a package of its programs and its own scripts, in a signed
repository that the lab's tailnet server hands out. What it holds is told by
release/dist/unixpkgs/pkgs.go of Tailscale's source.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
from email.utils import formatdate
from pathlib import Path

from tests.lab.cache import do

SUITES = ("bookworm", "trixie")
_SCRIPTS = {"postinst": "debian.postinst.sh", "prerm": "debian.prerm.sh",
            "postrm": "debian.postrm.sh"}  # fmt: skip
_SIGNER = "Lab <lab@example.org>"


def offer(source: Path, programs: Path, version: str, target: Path, lock: int) -> None:
    """Make the repository in `target`: `SUITE.noarmor.gpg` and `dists/SUITE` for each suite."""
    architecture = do(["dpkg", "--print-architecture"], lock).strip()
    package = target / "pool" / f"tailscale_{version}_{architecture}.deb"
    package.parent.mkdir(parents=True)
    _pack(source, programs, f"Version: {version}\nArchitecture: {architecture}\n", package, lock)
    index = do(["dpkg-scanpackages", "--multiversion", "pool"], lock, cwd=target).encode()
    home = target / "signer"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback",
           "--passphrase", ""]  # fmt: skip
    do([*gpg, "--quick-generate-key", _SIGNER, "default", "default", "never"], lock)
    for suite in SUITES:
        folder = target / "dists" / suite
        binary = folder / "main" / f"binary-{architecture}"
        binary.mkdir(parents=True)
        (binary / "Packages").write_bytes(index)
        (binary / "Packages.gz").write_bytes(gzip.compress(index))
        (folder / "Release").write_text(_release(suite, architecture, folder))
        do([*gpg, "--clearsign", "--output", str(folder / "InRelease"), str(folder / "Release")],
           lock)  # fmt: skip
        do([*gpg, "--output", str(target / f"{suite}.noarmor.gpg"), "--export"], lock)
    do(["gpgconf", "--homedir", str(home), "--kill", "all"], lock)
    shutil.rmtree(home)


def _pack(source: Path, programs: Path, control: str, package: Path, lock: int) -> None:
    tree = package.with_suffix("")
    for name, where in (("tailscale", "usr/bin"), ("tailscaled", "usr/sbin")):
        _put(programs / name, tree / where / name, 0o755)
    daemon = source / "cmd" / "tailscaled"
    units = ("tailscaled.service", "tailscale-online.target", "tailscale-wait-online.service")
    for name in units:
        _put(daemon / name, tree / "lib/systemd/system" / name, 0o644)
    _put(daemon / "tailscaled.defaults", tree / "etc/default/tailscaled", 0o644)
    for name, script in _SCRIPTS.items():
        _put(source / "release/deb" / script, tree / "DEBIAN" / name, 0o755)
    (tree / "DEBIAN/conffiles").write_text("/etc/default/tailscaled\n")
    (tree / "DEBIAN/control").write_text(
        f"Package: tailscale\n{control}Maintainer: {_SIGNER}\nDepends: iptables\n"
        "Recommends: iproute2\nDescription: Tailscale, as its vendor packs it\n"
    )
    do(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(tree), str(package)], lock)
    shutil.rmtree(tree)


def _put(source: Path, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _release(suite: str, architecture: str, folder: Path) -> str:
    sums = [
        f" {hashlib.sha256(file.read_bytes()).hexdigest()} {file.stat().st_size} "
        f"{file.relative_to(folder)}"
        for file in sorted(folder.glob("main/*/*"))
    ]
    return "\n".join([
        "Origin: Lab", f"Suite: {suite}", f"Codename: {suite}", f"Date: {formatdate(usegmt=True)}",
        f"Architectures: {architecture}", "Components: main", "SHA256:", *sums, "",
    ])  # fmt: skip
