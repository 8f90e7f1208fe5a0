"""An NVML made of a text file (nvml.c says how it is read), for the real binding to load."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

LOST = 15
GPU = "gpu GPU-0 16384 300 0"


def build(folder: Path) -> Path:
    """Compile it; returns the folder for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc")
    assert compiler, (
        "these tests compile a stand-in for NVML: install a C compiler (apt install gcc)"
    )
    source, target = Path(__file__).with_name("nvml.c"), folder / "libnvidia-ml.so.1"
    command = [compiler, "-std=gnu11", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(target), str(source)], check=True, timeout=60)
    return folder


class FakeNvml:
    """One control file, and the environment that makes a process read it."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.env = {"LD_LIBRARY_PATH": str(library), "RAE_FAKE_NVML": str(file)}
        self.show(GPU)

    def show(self, *lines: str) -> None:
        """What NVML says from now on."""
        partial = self._file.with_suffix(".part")
        partial.write_text("\n".join(lines) + "\n")
        partial.replace(self._file)

    def calls(self) -> list[str]:
        """Every function that was called."""
        found = Path(f"{self._file}.calls")
        return found.read_text().split() if found.exists() else []
