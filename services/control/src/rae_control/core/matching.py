"""Which node can run which task: requirements against facts, with the reasons in plain words.

Requirements are canonical here (one spelling for each wish), so that tasks with the same needs
share a lane and are matched once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rae_protocol.nodes import Capabilities, CpuInfo
from rae_protocol.tasks import Requirements, TaskSpec

Canonical = Mapping[str, Any]
Program = tuple[str, str]  # ("command", a program of an allow-list) or ("task", a Python task)
_VERSION = re.compile(r"\d+")


class Another(Protocol):
    """Whether another online node could take some work."""

    def __call__(self, requirements: str, without: Collection[str], *, now: bool) -> bool:
        """Those needs are JSON. `now`: a node that takes work at this moment."""
        ...


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known of a node. None means unknown, and an unknown never meets a requirement."""

    node_id: str
    trusted: bool = False
    slots: tuple[str, ...] = ("cpu0",)
    gpus: int = 0
    gpu_models: tuple[str, ...] = ()
    vram_mb: float | None = None
    ram_mb: float | None = None
    disk_mb: float | None = None
    cpu_threads: int | None = None
    os: str | None = None
    arch: str | None = None
    cpu: str | None = None
    tags: frozenset[str] = frozenset()
    llm: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    runners: frozenset[str] | None = None
    commands: frozenset[str] | None = None
    python_tasks: frozenset[str] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    ui_session: bool | None = None
    davinci_available: bool | None = None


def facts_from(
    node_id: str, caps: Capabilities, *, trusted: bool, slots: Sequence[str] | None
) -> NodeFacts:
    """Bring A10's keys, C2's payload and D4's keys into one shape."""
    gpus = caps.gpu if isinstance(caps.gpu, list) else []
    count = len(gpus) if isinstance(caps.gpu, list) else int(bool(caps.gpu or caps.gpu_model))
    models = tuple(g.name for g in gpus) or ((caps.gpu_model,) if caps.gpu_model else ())
    measured = [g.vram_mb for g in gpus if g.vram_mb is not None]
    declared = caps.vram_gb * 1024 if caps.vram_gb is not None else None
    cpu = caps.cpu if isinstance(caps.cpu, CpuInfo) else None
    versions = dict(caps.versions or {})
    for name, version in (("python", caps.python_version), ("ffmpeg", caps.ffmpeg_version)):
        if version:
            versions.setdefault(name, version)
    if slots is None:
        slots = ("cpu0", "gpu0") if count else ("cpu0",)
    return NodeFacts(
        node_id=node_id,
        trusted=trusted,
        slots=tuple(slots),
        gpus=count,
        gpu_models=models,
        vram_mb=max(measured) if measured else declared,
        ram_mb=caps.memory_mb if caps.memory_mb is not None else _mb(caps.ram_gb),
        disk_mb=caps.disk_free_mb,
        cpu_threads=cpu.cores if cpu else caps.cpu_threads,
        os=caps.os,
        arch=caps.arch or (cpu.arch if cpu else None),
        cpu=cpu.model if cpu else (caps.cpu if isinstance(caps.cpu, str) else None),
        tags=frozenset(caps.tags or ()),
        llm=frozenset(caps.llm or ()),
        models=frozenset(map(_tagged, caps.models or ())),
        runners=None if caps.runners is None else frozenset(caps.runners),
        commands=None if caps.commands is None else frozenset(caps.commands),
        python_tasks=None if caps.python_tasks is None else frozenset(caps.python_tasks),
        versions=versions,
        ui_session=caps.ui_session,
        davinci_available=caps.davinci_available,
    )


def canonical_requirements(spec: TaskSpec) -> dict[str, Any]:
    """One spelling: kind as runner, `os` as `os_in`, sizes as `_gb` or `_mb`, lists sorted.

    A whole number of GB names a size of machines, of which 5 % may lack; other sizes are exact.
    """
    req: Requirements = spec.requirements
    out: dict[str, Any] = _sizes(req)
    wants_gpu = bool(req.gpu or req.gpu_model or vram_needed_mb(out))
    gpu_count = max(req.gpu_count or 0, int(wants_gpu))
    if gpu_count:
        out["gpu_count"] = gpu_count
    if req.gpu is False and not gpu_count:
        out["no_gpu"] = True
    if req.cpu_threads:
        out["cpu_threads"] = req.cpu_threads
    if req.os or req.os_in is not None:
        out["os_in"] = _systems(req)
    for name, values in (
        ("arch_in", req.arch_in),
        ("tags", req.tags),
        ("llm", _llm(spec)),
        ("models", _models(spec)),
        ("runners", {spec.kind, *(req.runners or ())}),
        ("nodes", req.nodes),
    ):
        if values is not None and (values or name in {"arch_in", "nodes"}):
            out[name] = sorted(set(values))
    if req.min_versions:
        out["min_versions"] = dict(req.min_versions)
    exact = {"python": req.python_version, "ffmpeg": req.ffmpeg_version}
    if any(exact.values()):
        out["versions"] = {name: value for name, value in exact.items() if value}
    out.update(_program(spec))
    for name in ("gpu_model", "cpu", "ui_session", "davinci_available"):
        if (value := getattr(req, name)) is not None:
            out[name] = value
    if req.trusted:  # false asks for nothing: trust allows more, and forbids nothing
        out["trusted"] = True
    return out


def program_of(req: Canonical) -> Program | None:
    """The command or the Python task that is asked for."""
    for name in ("command", "task"):
        if name in req:
            return name, str(req[name])
    return None


def _lacks_program(req: Canonical, facts: NodeFacts) -> bool:
    """Whether the node says what it has, and has not that."""
    have = {"command": facts.commands, "task": facts.python_tasks}
    wanted = program_of(req)
    known = None if wanted is None else have[wanted[0]]
    return wanted is not None and known is not None and wanted[1] not in known


def without_program(req: Canonical) -> Canonical:
    """For work that no node has: any may refuse it, and say what it has instead."""
    return {name: value for name, value in req.items() if name not in {"command", "task"}}


def unmet(req: Canonical, facts: NodeFacts) -> list[str]:
    """Every requirement that the node does not meet, as a short sentence; empty when it fits."""
    checks = (_unmet_where, _unmet_hardware, _unmet_software)
    return [sentence for check in checks for sentence in check(req, facts)]


def vram_needed_mb(req: Canonical) -> int:
    """The least video memory, in MiB; 0 where none is asked for."""
    return _least_mb(req, "vram")


def _least_mb(req: Canonical, name: str) -> int:
    # A "64 GB" machine shows 62.7 GiB to its programs, a "16 GB" card 15.99.
    share = 1.0 if name == "disk" else 0.95
    exact, whole_gb = int(req.get(f"{name}_mb", 0)), int(req.get(f"{name}_gb", 0))
    return max(exact, math.ceil(whole_gb * 1024 * share))


def slot_kind(req: Canonical, facts: NodeFacts) -> str:
    """`gpu` for work that touches a GPU of this node, else `cpu`. A model runs where the GPU is."""
    wants_gpu = "gpu_count" in req or ("llm" in req["runners"] and facts.gpus > 0)
    return "gpu" if wants_gpu and any(s.startswith("gpu") for s in facts.slots) else "cpu"


def _unmet_where(req: Canonical, facts: NodeFacts) -> list[str]:
    out = []
    if "nodes" in req and facts.node_id not in req["nodes"]:
        out.append(f"it must run on {' or '.join(req['nodes'])}")
    if facts.node_id in req.get("not_nodes", ()):
        out.append("it was denied there (E_DENY)")
    if req.get("trusted") and not facts.trusted:
        out.append("it needs a trusted node")
    if "os_in" in req and facts.os not in req["os_in"]:
        out.append(f"it needs the system {' or '.join(req['os_in']) or '(none)'}")
    if "arch_in" in req and facts.arch not in req["arch_in"]:
        out.append(f"it needs the architecture {' or '.join(req['arch_in'])}")
    if missing := set(req.get("tags", ())) - facts.tags:
        out.append(f"it needs the tags {', '.join(sorted(missing))}")
    if (session := req.get("ui_session")) is not None and facts.ui_session is not session:
        out.append(f"it needs {'an' if session else 'no'} active desktop session")
    return out


def _unmet_hardware(req: Canonical, facts: NodeFacts) -> list[str]:
    out = []
    if req.get("gpu_count", 0) > facts.gpus:
        out.append(f"it needs {req['gpu_count']} GPU(s)")
    elif "gpu_count" in req and not any(slot.startswith("gpu") for slot in facts.slots):
        out.append("it needs a GPU slot")
    if req.get("no_gpu") and facts.gpus:
        out.append("it asks for a node without a GPU")
    if "gpu_model" in req and not any(_same_model(req["gpu_model"], m) for m in facts.gpu_models):
        out.append(f"it needs the GPU {req['gpu_model']}")
    for name, have, what in (
        ("vram", facts.vram_mb, "VRAM"),
        ("ram", facts.ram_mb, "memory"),
        ("disk", facts.disk_mb, "free disk"),
    ):
        least = _least_mb(req, name)
        if least and (have is None or have < least):
            exact = least == req.get(f"{name}_mb")
            size = f"{least} MB" if exact else f"{req[f'{name}_gb']} GB"
            out.append(f"it needs {size} of {what}")
    if "cpu_threads" in req and (facts.cpu_threads or 0) < req["cpu_threads"]:
        out.append(f"it needs {req['cpu_threads']} CPU threads")
    if "cpu" in req and (facts.cpu is None or req["cpu"].lower() not in facts.cpu.lower()):
        out.append(f"it needs the CPU {req['cpu']}")
    return out


def _unmet_software(req: Canonical, facts: NodeFacts) -> list[str]:
    out = []
    if facts.runners is not None and (missing := set(req["runners"]) - facts.runners):
        out.append(f"it needs the runner {', '.join(sorted(missing))}")
    if _lacks_program(req, facts):
        what = f"command {req['command']}" if "command" in req else f"Python task {req['task']}"
        out.append(f"it needs the {what}")
    if missing := set(req.get("llm", ())) - facts.llm:
        out.append(f"it needs a model for the role {', '.join(sorted(missing))}")
    if missing := {name for name in req.get("models", ()) if _tagged(name) not in facts.models}:
        out.append(f"it needs the model {', '.join(sorted(missing))}")
    for name, least in sorted(req.get("min_versions", {}).items()):
        have = facts.versions.get(name)
        if have is None or _version(have) < _version(least):
            out.append(f"it needs {name} {least} or newer")
    for name, wanted in sorted(req.get("versions", {}).items()):
        have = facts.versions.get(name, "")
        if have != wanted and not have.startswith(wanted + "."):
            out.append(f"it needs {name} {wanted}")
    if (there := req.get("davinci_available")) is not None and facts.davinci_available is not there:
        out.append(f"it needs a node {'with' if there else 'without'} DaVinci Resolve")
    return out


def _sizes(req: Requirements) -> dict[str, Any]:
    """Whole GB as `NAME_gb`, other sizes as `NAME_mb`."""
    out: dict[str, Any] = {}
    ram_gb = max(req.ram_gb or 0, req.min_ram_gb or 0)
    for name, gb in (("ram", ram_gb), ("vram", req.vram_gb or 0), ("disk", req.disk_gb or 0)):
        whole = float(gb).is_integer()
        sizes = {"gb": int(gb) if whole else 0, "mb": 0 if whole else math.ceil(gb * 1024)}
        if name == "vram":
            sizes["mb"] = max(sizes["mb"], math.ceil(req.vram_mb or 0))
        out.update({f"{name}_{unit}": size for unit, size in sizes.items() if size})
    return out


def _systems(req: Requirements) -> list[str]:
    """`os` and `os_in` together: what both allow."""
    if req.os is None:
        return sorted(set(req.os_in or ()))
    return [req.os] if req.os_in is None or req.os in req.os_in else []


def _llm(spec: TaskSpec) -> set[str]:
    role = spec.params.get("role") if spec.kind == "llm" else None
    return {*(spec.requirements.llm or ()), *([role] if isinstance(role, str) else [])}


def _tagged(model: str) -> str:
    """A model's name as nodes tell it: without a tag it means `latest`."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _models(spec: TaskSpec) -> set[str]:
    model = spec.params.get("model") if spec.kind == "llm" else None
    return {*(spec.requirements.models or ()), *([model] if isinstance(model, str) else [])}


def _program(spec: TaskSpec) -> dict[str, str]:
    """The command or the Python task; `tasks.example:run` and `example` are one."""
    command, task = spec.params.get("command"), spec.params.get("task")
    if spec.kind == "cli" and isinstance(command, str):
        return {"command": command}
    if spec.kind == "python" and isinstance(task, str):
        return {"task": task.removeprefix("tasks.").removesuffix(":run")}
    return {}


def _same_model(wanted: str, have: str) -> bool:
    plain = re.compile(r"[^a-z0-9]")
    return plain.sub("", wanted.lower()) in plain.sub("", have.lower())


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _VERSION.findall(text)[:6])


def _mb(gb: float | None) -> float | None:
    return None if gb is None else gb * 1024
