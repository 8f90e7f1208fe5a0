"""GPUs of this machine, through NVML in a process that can be killed (`python -m rae_node.gpu`)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; None where NVML does not tell."""

    name: str
    vram_mb: float | None
    uuid: str | None
    driver: str | None
    cuda: str | None


def probe(timeout_s: float) -> tuple[Gpu, ...] | None:
    """The GPUs; None when NVML is not there or does not answer in time: unknown, not zero."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rae_node.gpu"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=True,
        )
        found = json.loads(done.stdout)
        return None if found is None else tuple(Gpu(**item) for item in found)
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None


def _ask() -> list[Gpu] | None:
    import pynvml  # noqa: PLC0415 - only in the child, and absent where there is no GPU

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        driver = _optional(pynvml, pynvml.nvmlSystemGetDriverVersion)
        number = _optional(pynvml, pynvml.nvmlSystemGetCudaDriverVersion_v2)
        cuda = None if number is None else f"{number // 1000}.{number % 1000 // 10}"
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = _optional(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle)
            uuid = _optional(pynvml, pynvml.nvmlDeviceGetUUID, handle)
            name = _optional(pynvml, pynvml.nvmlDeviceGetName, handle)
            vram = None if memory is None else memory.total / MIB
            found.append(Gpu(name or "unknown", vram, uuid, driver, cuda))
        return found
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _optional(pynvml: Any, ask: Any, *args: Any) -> Any:
    """What NVML answers, None where it does not know."""
    try:
        value = ask(*args)
    except pynvml.NVMLError:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def main() -> int:
    """Print the GPUs as JSON, or null."""
    found = _ask()
    print(json.dumps(None if found is None else [asdict(one) for one in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
