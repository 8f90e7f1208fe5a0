"""GPUs of this machine, through NVML in processes that can be killed: NVML may hang."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
_WATCHER = Path(__file__).with_name("nvml_child.py")


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
            [sys.executable, "-m", "rae_node.host.nvml"],
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


class NvmlChild:
    """`nvml_child.py` while it answers: started when asked, killed when late. For one thread."""

    def __init__(self, program: Path = _WATCHER) -> None:
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """One question. Raises OSError (TimeoutError), ValueError; the next one starts afresh."""
        try:
            return self._answer(json.dumps(request).encode() + b"\n", time.monotonic() + timeout_s)
        except (OSError, ValueError):
            self.close()
            raise

    def close(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None:
            return
        process.kill()
        process.stdin.close()
        process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the driver: not our time
            process.wait(1.0)

    def _answer(self, line: bytes, limit: float) -> dict[str, Any]:
        process = self._process
        if process is None:
            # Isolated: nothing in the working folder or the environment takes part.
            process = self._process = subprocess.Popen(
                [sys.executable, "-I", str(self._program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - both are pipes
        process.stdin.write(line)
        answer = b""
        while not answer.endswith(b"\n"):
            left = max(0.0, limit - time.monotonic())
            if not select.select([process.stdout], [], [], left)[0]:
                raise TimeoutError("NVML hangs; its process was killed")
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                raise ValueError("the process that asks NVML ended; is nvidia-ml-py installed?")
            answer += piece
        found: dict[str, Any] = json.loads(answer)
        return found


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
