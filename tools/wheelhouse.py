"""`python -m tools.wheelhouse [3.11 …]`: what hosts install from, one archive per Python.

An archive has our wheels, every wheel that those need, of the versions in constraints.txt, and pip
itself, so that a host needs no package index and no python3-venv. Its name carries a digest of what
it was made from: an archive that is there is not made again, and another source is another release.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from rae_control import __version__

CHECKOUT = Path(__file__).resolve().parents[1]
DIST = CHECKOUT / "dist" / "wheelhouse"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# What an archive is made of: our packages, and by name what pip overlooks for another Python,
# because it reads a requirement's conditions with the Python that it runs on.
PARTS = {"control": ("protocol", "control"), "node": ("protocol", "node")}
ALSO = {"control": ("async-timeout", "pip"), "node": ("async-timeout", "pip")}
CONSTRAINTS = CHECKOUT / "constraints.txt"


def sources(names: Sequence[str]) -> Iterator[Path]:
    """Every file that decides what is in our wheels."""
    yield CONSTRAINTS
    for name in names:
        folder = CHECKOUT / "services" / name
        yield folder / "pyproject.toml"
        files = (file for file in (folder / "src").rglob("*") if file.is_file())
        skipped = (".pyc", ".egg-info")
        yield from sorted(
            file for file in files if not any(part.endswith(skipped) for part in file.parts)
        )


def release(component: str) -> str:
    """The name of a release: the version, and a digest of its sources."""
    digest = hashlib.sha256()
    for file in sources(PARTS[component]):
        name = str(file.relative_to(CHECKOUT)).encode()
        digest.update(name + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return f"{__version__}-{digest.hexdigest()[:10]}"


def archive(component: str, python: str) -> Path:
    """Where the archive of this source is, or would be."""
    return DIST / f"rae-{component}-{release(component)}-py{python}.tar.gz"


def pinned(python: str) -> str:
    """The versions in constraints.txt that hold for a Python ("3.10"), a requirement a line.

    pip takes the lines whose conditions hold for the Python that it runs on, whichever it
    downloads for.
    """
    target = {"python_version": python, "python_full_version": f"{python}.0"}
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    known = [Requirement(line) for line in lines if line and not line.startswith("#")]
    held = [each for each in known if each.marker is None or each.marker.evaluate(target)]
    return "".join(f"{each.name}{each.specifier}\n" for each in held)


def build(component: str, python: str) -> Path:
    """Make an archive that is not there. Raises CalledProcessError, pip's words on stderr."""
    made = archive(component, python)
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        wheels = Path(scratch) / "wheels"
        versions = Path(scratch) / "constraints.txt"
        versions.write_text(pinned(python), encoding="utf-8")
        own = [str(_copied(name, Path(scratch))) for name in PARTS[component]]
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), *own)
        _pip("download", "--only-binary=:all:", "--python-version", python, "--dest", str(wheels),
             "--find-links", str(wheels), "--constraint", str(versions),
             *ALSO[component], *map(str, wheels.glob("rae_*.whl")))  # fmt: skip
        part = made.with_suffix(".part")
        # Wheels are compressed already.
        with tarfile.open(part, "w:gz", compresslevel=1) as tar:
            for wheel in sorted(wheels.iterdir()):
                tar.add(wheel, wheel.name, filter=_anonymous)
        part.replace(made)
    return made


def _copied(name: str, scratch: Path) -> Path:
    """A copy to build in: setuptools leaves files beside its sources."""
    left_out = shutil.ignore_patterns("*.egg-info", "__pycache__", "build")
    return Path(shutil.copytree(CHECKOUT / "services" / name, scratch / name, ignore=left_out))


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mode = 0o644
    return info


def _pip(*argv: str) -> None:
    base = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*base, *argv], check=True, timeout=900)


def main(argv: Sequence[str] | None = None) -> int:
    """Build what is missing."""
    parser = argparse.ArgumentParser(prog="python -m tools.wheelhouse", description=__doc__)
    parser.add_argument("pythons", nargs="*", metavar="3.N", help=f"default: {' '.join(PYTHONS)}")
    asked = parser.parse_args(argv)
    try:
        for python in asked.pythons or PYTHONS:
            for component in PARTS:
                print(build(component, python).relative_to(CHECKOUT), flush=True)
    except subprocess.SubprocessError as error:
        print(f"a wheel could not be had: {error}; see pip's words above", file=sys.stderr)
        return 1
    # The playbooks install what stands here.
    made = json.dumps({component: release(component) for component in PARTS}, indent=2)
    (DIST / "releases.json").write_text(f"{made}\n", encoding="utf-8")
    # Releases of earlier sources are rebuilt from their checkout, should anybody want one.
    for old in DIST.glob("rae-*.tar.gz"):
        if not any(f"-{release(component)}-" in old.name for component in PARTS):
            old.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
