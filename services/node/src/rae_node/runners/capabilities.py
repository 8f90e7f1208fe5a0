"""What the node tells control of its machine: C2's payload and D4's keys in one."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rae_node import __version__
from rae_node.config.files import NodeConfig, RuntimeConfig
from rae_node.host.nvml import Gpu
from rae_node.host.nvml import probe as probe_gpu
from rae_node.host.processes import english
from rae_node.runners.base import PATH
from rae_node.runners.cli import AllowList
from rae_node.runners.llm import has_model
from rae_node.runners.python import PythonRunner
from rae_protocol.models import Capabilities, CpuInfo, CudaInfo, GpuInfo

MOST_NAMES = 1000  # of commands and Python tasks, in a registration
MEMORY_SHARE = 0.75  # of the machine's memory, where the owner sets no mem_soft_mb
RESOLVE = Path("/opt/resolve/bin/resolve")
# The reference model, and the one for cards with 16 GB, which the role `ollama` installs.
_REFERENCE_MODEL, _SMALL_MODEL = "deepseek-coder:33b", "deepseek-coder:6.7b"
_REFERENCE_VRAM_GB = 20
_FFMPEG = re.compile(r"ffmpeg version ([0-9][0-9.]*)")


@dataclass(frozen=True, slots=True)
class Machine:
    """What does not change while the agent runs; None is unknown."""

    cores: int
    arch: str
    cpu_model: str | None
    memory_mb: float | None
    distribution: str | None
    python_version: str
    ffmpeg_version: str | None
    davinci: bool
    gpus: tuple[Gpu, ...] | None


def probe_machine(timeout_s: float) -> Machine:
    """Measure; each program asked gets `timeout_s` seconds."""
    return Machine(
        cores=os.cpu_count() or 1,
        arch=platform.machine(),
        cpu_model=_cpu_model(),
        memory_mb=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1048576,
        distribution=_distribution(),
        python_version=platform.python_version(),
        ffmpeg_version=_ffmpeg_version(timeout_s),
        davinci=RESOLVE.exists(),
        gpus=probe_gpu(timeout_s),
    )


def gpu_slots(config: NodeConfig, machine: Machine) -> int:
    """How many GPU tasks at a time: what the owner says, else one if there is a GPU."""
    there = config.capabilities.gpu if machine.gpus is None else bool(machine.gpus)
    if not there or config.capabilities.gpu is False:
        return 0
    return 1 if config.max_concurrent_gpu is None else config.max_concurrent_gpu


def slot_devices(machine: Machine, slot: str) -> tuple[str, ...]:
    """The GPUs of a slot, by UUID where it is known, else by number."""
    if not slot.startswith("gpu"):
        return ()
    number, gpus = int(slot[3:]), machine.gpus or ()
    if not gpus:
        return (str(number),)
    index = number % len(gpus)
    return (gpus[index].uuid or str(index),)


def memory_limit_mb(config: NodeConfig, machine: Machine) -> float | None:
    """What a task may use: the owner's mem_soft_mb, else a share of what is there."""
    return config.mem_soft_mb or (machine.memory_mb or 0) * MEMORY_SHARE or None


def describe(
    config: NodeConfig,
    runtime: RuntimeConfig,
    machine: Machine,
    *,
    disk: Path,
    models: list[str] | None,
) -> Capabilities:
    """The registration payload. What the owner declares wins, but never above what is measured."""
    declared = config.capabilities
    gpus = () if declared.gpu is False else machine.gpus
    max_gb = runtime.safety.max_vram_gb
    shown = [
        GpuInfo(
            name=gpu.name,
            vram_mb=None if gpu.vram_mb is None else round(min(gpu.vram_mb, max_gb * 1024)),
            uuid=gpu.uuid,
            cuda=CudaInfo(version=gpu.cuda, driver=gpu.driver),
        )
        for gpu in gpus or ()
    ]
    has_gpu: bool | list[GpuInfo] | None = shown or (declared.gpu if gpus is None else [])
    measured_mb = max((gpu.vram_mb for gpu in gpus or () if gpu.vram_mb), default=None)
    measured_gb = None if measured_mb is None else measured_mb / 1024
    cap_gb = max_gb if shown or declared.vram_gb else None
    vram = _smallest(declared.vram_gb, measured_gb, cap_gb) if has_gpu else None
    memory = machine.memory_mb
    ram = _smallest(declared.ram_gb, None if memory is None else round(memory / 1024, 2))
    name = shown[0].name if shown else None
    tags = ["cpu", *([machine.distribution] if machine.distribution else [])]
    tags += ["cuda"] if shown else []
    return Capabilities(
        node_id=config.node_id,
        version=__version__,
        gpu=has_gpu,
        gpu_model=(declared.gpu_model or name) if has_gpu else None,
        vram_gb=vram,
        ram_gb=ram,
        memory_mb=None if memory is None else round(memory),
        disk_free_mb=disk_free_mb(disk),
        cpu=CpuInfo(cores=machine.cores, arch=machine.arch, model=machine.cpu_model),
        cpu_threads=machine.cores,
        arch=machine.arch,
        os=platform.system().lower(),
        python_version=machine.python_version,
        ffmpeg_version=machine.ffmpeg_version,
        davinci_available=machine.davinci,
        llm=offered_roles(config, models or [], runtime.safety.max_vram_gb),
        models=models or [],
        runners=["cli", "python", *(["llm"] if models is not None else [])],
        tags=list(dict.fromkeys([*tags, *config.tags])),
    )


def programs_of(allowed: AllowList, folders: Sequence[Path], workdir: Path) -> dict[str, list[str]]:
    """What tasks may name here; control gives the node nothing else."""
    return {
        "commands": allowed.commands()[:MOST_NAMES],
        "python_tasks": PythonRunner(folders, workdir).names()[:MOST_NAMES],
    }


def roles_of(config: NodeConfig, max_vram_gb: float, present: list[str]) -> dict[str, str]:
    """The model of each role: llm_models, else the largest that is there and fits (A11)."""
    if config.llm_models is not None:
        return dict(config.llm_models)
    large = max_vram_gb >= _REFERENCE_VRAM_GB and has_model(present, _REFERENCE_MODEL)
    return {
        "python-specialist": _REFERENCE_MODEL if large else _SMALL_MODEL,
        "code-refactor": _SMALL_MODEL,
    }


def offered_roles(config: NodeConfig, models: list[str], max_vram_gb: float) -> list[str]:
    """Declared roles (all known ones, if none is declared) whose model is there."""
    roles = roles_of(config, max_vram_gb, models)
    wanted = roles if config.capabilities.llm is None else config.capabilities.llm
    return [role for role in wanted if role in roles and has_model(models, roles[role])]


def disk_free_mb(folder: Path) -> float | None:
    """Free MiB where tasks work; None when unknown."""
    try:
        return round(shutil.disk_usage(folder).free / 1048576)
    except OSError:
        return None


def _smallest(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1][:200] if found else None


def _distribution() -> str | None:
    try:
        name = platform.freedesktop_os_release().get("ID")
    except OSError:
        return None
    return name[:64] if name else None


def _ffmpeg_version(timeout_s: float) -> str | None:
    program = shutil.which("ffmpeg", path=PATH)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-hide_banner", "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=True,
            env=english(),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = _FFMPEG.search(done.stdout.decode(errors="replace"))
    return match[1].rstrip(".") if match else None
