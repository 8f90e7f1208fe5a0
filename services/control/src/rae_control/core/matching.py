"""Which node can run which task: requirements against facts, with the reasons in plain words.

Requirements are canonical here (one spelling for each wish, sizes in whole GB), so that tasks with
the same needs share a lane and are matched once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rae_protocol.nodes import Capabilities, CpuInfo
from rae_protocol.tasks import Requirements, TaskSpec

Canonical = Mapping[str, Any]
_VERSION = re.compile(r"\d+")


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
        versions=versions,
        ui_session=caps.ui_session,
        davinci_available=caps.davinci_available,
    )


def canonical_requirements(spec: TaskSpec) -> dict[str, Any]:
    """One spelling: kind as runner, `os` as `os_in`, sizes as whole GB rounded up, lists sorted."""
    req: Requirements = spec.requirements
    out: dict[str, Any] = {}
    sizes = {
        "ram_gb": max(req.ram_gb or 0, req.min_ram_gb or 0),
        "vram_gb": max((req.vram_mb or 0) / 1024, req.vram_gb or 0),
        "disk_gb": req.disk_gb or 0,
    }
    out.update({name: math.ceil(size) for name, size in sizes.items() if size})
    gpu_count = max(
        req.gpu_count or 0, int(bool(req.gpu) or "vram_gb" in out or bool(req.gpu_model))
    )
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
    for name in ("gpu_model", "cpu"):
        if (value := getattr(req, name)) is not None:
            out[name] = value
    for name in ("trusted", "ui_session", "davinci_available"):
        if getattr(req, name):
            out[name] = True
    return out


def unmet(req: Canonical, facts: NodeFacts) -> list[str]:
    """Every requirement that the node does not meet, as a short sentence; empty when it fits."""
    checks = (_unmet_where, _unmet_hardware, _unmet_software)
    return [sentence for check in checks for sentence in check(req, facts)]


def slot_kind(req: Canonical, facts: NodeFacts) -> str:
    """`gpu` for work that touches a GPU of this node, else `cpu`. A model runs where the GPU is."""
    wants_gpu = "gpu_count" in req or ("llm" in req["runners"] and facts.gpus > 0)
    return "gpu" if wants_gpu and any(s.startswith("gpu") for s in facts.slots) else "cpu"


def _unmet_where(req: Canonical, facts: NodeFacts) -> list[str]:
    out = []
    if "nodes" in req and facts.node_id not in req["nodes"]:
        out.append(f"it must run on {' or '.join(req['nodes'])}")
    if req.get("trusted") and not facts.trusted:
        out.append("it needs a trusted node")
    if "os_in" in req and facts.os not in req["os_in"]:
        out.append(f"it needs the system {' or '.join(req['os_in']) or '(none)'}")
    if "arch_in" in req and facts.arch not in req["arch_in"]:
        out.append(f"it needs the architecture {' or '.join(req['arch_in'])}")
    if missing := set(req.get("tags", ())) - facts.tags:
        out.append(f"it needs the tags {', '.join(sorted(missing))}")
    if req.get("ui_session") and not facts.ui_session:
        out.append("it needs an active desktop session")
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
    for name, have, unit in (
        ("vram_gb", facts.vram_mb, "GB of VRAM"),
        ("ram_gb", facts.ram_mb, "GB of memory"),
        ("disk_gb", facts.disk_mb, "GB of free disk"),
    ):
        # Half a GB of grace: a "64 GB" machine shows 62.7 GiB to its programs.
        grace = 0 if name == "disk_gb" else 0.05
        if name in req and (have is None or have < req[name] * 1024 * (1 - grace)):
            out.append(f"it needs {req[name]} {unit}")
    if "cpu_threads" in req and (facts.cpu_threads or 0) < req["cpu_threads"]:
        out.append(f"it needs {req['cpu_threads']} CPU threads")
    if "cpu" in req and (facts.cpu is None or req["cpu"].lower() not in facts.cpu.lower()):
        out.append(f"it needs the CPU {req['cpu']}")
    return out


def _unmet_software(req: Canonical, facts: NodeFacts) -> list[str]:
    out = []
    if facts.runners is not None and (missing := set(req["runners"]) - facts.runners):
        out.append(f"it needs the runner {', '.join(sorted(missing))}")
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
    if req.get("davinci_available") and not facts.davinci_available:
        out.append("it needs DaVinci Resolve")
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


def _same_model(wanted: str, have: str) -> bool:
    plain = re.compile(r"[^a-z0-9]")
    return plain.sub("", wanted.lower()) in plain.sub("", have.lower())


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _VERSION.findall(text)[:6])


def _mb(gb: float | None) -> float | None:
    return None if gb is None else gb * 1024
