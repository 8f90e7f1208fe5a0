"""`config.yaml` (A10 and our optional keys) and `runtime.yaml` (B1, exactly)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
)

from rae_node.config.tuning import known_settings, seconds_of
from rae_node.config.url_hosts import host_rule
from rae_node.errors import ConfigError, listed
from rae_protocol.names import NodeId, Word
from rae_protocol.yamlfile import read_yaml

PLACEHOLDER = "100.x.x.x"
_TAILSCALE = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))

Minutes = Annotated[float, Field(ge=0, le=60 * 24 * 30)]
Percent = Annotated[float, Field(ge=0, le=100)]
Period = Annotated[float, Field(gt=0, le=86400)]
SourceName = Literal["logind", "input", "tty", "remote", "load", "gpu"]
Count = Annotated[int, Field(ge=0, le=64)]
Duration = Annotated[float, BeforeValidator(seconds_of), Field(ge=0, le=365 * 86400)]
# How long the workspaces of ended tasks are kept, in seconds: (succeeded, failed).
PROFILES: Mapping[str, tuple[float, float]] = {"rae": (0.0, 0.0), "miner": (86400.0, 7 * 86400.0)}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Automation(_Section):
    """Whether the node works by itself, and from boot on."""

    enabled: bool
    auto_start: bool


class Safety(_Section):
    """Limits beyond which the machine is its owner's; equal is safe, GB means GiB."""

    detect_active_user: bool
    idle_required_minutes: Minutes
    max_cpu_percent: Percent
    max_gpu_percent: Percent
    max_vram_gb: Annotated[float, Field(ge=0, le=16384)]
    cooldown_minutes: Minutes


class Execution(_Section):
    """Rhythm and caps."""

    poll_interval_sec: Period
    heartbeat_interval_sec: Period
    task_timeout_minutes: Annotated[float, Field(gt=0, le=60 * 24 * 30)]
    retry_on_disconnect: bool


class RuntimeConfig(_Section):
    """`runtime.yaml`: every field, no other."""

    automation: Automation
    safety: Safety
    execution: Execution


class Declared(_Section):
    """What the owner declares of the machine (A10); None is measured."""

    gpu: bool | None = None
    gpu_model: Annotated[str, Field(max_length=200)] | None = None
    vram_gb: Annotated[float, Field(ge=0, le=16384)] | None = None
    ram_gb: Annotated[float, Field(ge=0, le=1048576)] | None = None
    llm: list[Word] | None = None


class WorkspaceConfig(_Section):
    """How long ended workspaces stay: seconds, or 90s, 30m, 24h, 7d; None is the profile's."""

    keep_success: Duration | None = None
    keep_failed: Duration | None = None


class Logging(_Section):
    """The agent's own log (C4's keys): always to stderr, and to a rotated file if one is named."""

    level: Literal["info", "warning", "error"] = "info"
    as_json: bool | None = Field(default=None, alias="json")
    path: Annotated[str, Field(pattern="^/")] | None = None


class NodeConfig(_Section):
    """`config.yaml`: A10's keys, then ours, all optional."""

    node_id: NodeId
    trusted: bool
    capabilities: Declared
    heartbeat_interval_sec: Period
    rae_endpoint: str
    ca_file: Annotated[str, Field(pattern="^/")] | None = None
    tags: list[Word] = Field(default_factory=list)
    max_concurrent_cpu: Count = 1
    max_concurrent_gpu: Count | None = None
    llm_models: dict[Word, Word] | None = None
    ollama_url: str = "http://127.0.0.1:11435"
    ollama_user: Annotated[str, Field(min_length=1, max_length=64)] = "rae-ollama"
    enrolment_file: str | None = None
    allowlist_dir: str | None = None
    task_paths: list[str] | None = None
    isolation: Literal["auto", "unit", "bubblewrap", "process"] = "auto"
    min_isolation: Literal["unit", "bubblewrap", "process"] = "bubblewrap"
    input_url_hosts: list[str] = Field(default_factory=list)
    cpu_nice: Annotated[int, Field(ge=0, le=19)] = 10
    io_class: Literal["best-effort", "idle"] = "best-effort"
    io_level: Annotated[int, Field(ge=0, le=7)] = 6
    mem_soft_mb: Annotated[float, Field(gt=0)] | None = None
    guard_sources: Annotated[list[SourceName], Field(min_length=1)] = [
        "logind",
        "input",
        "tty",
        "remote",
        "load",
        "gpu",
    ]
    input_socket: Annotated[str, Field(pattern="^/")] = "/run/rae-input/input.sock"
    operator_users: list[str] = Field(default_factory=list)
    gpu_longest_run_minutes: Annotated[float, Field(gt=0, le=60 * 24 * 30)] = 180
    gpu_rest_minutes: Annotated[float, Field(gt=0, le=60 * 24 * 30)] = 10
    logging: Logging = Logging()
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9105

    profile: Literal["rae", "miner"] = "rae"
    workspace: WorkspaceConfig = WorkspaceConfig()

    def keep_s(self, *, succeeded: bool) -> float:
        """Seconds for which an ended task's workspace stays."""
        mine = self.workspace.keep_success if succeeded else self.workspace.keep_failed
        return PROFILES[self.profile][0 if succeeded else 1] if mine is None else mine

    @field_validator("rae_endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("is http://ADDRESS:PORT or https://NAME[:PORT]")
        if parts.username or parts.query or parts.fragment:
            raise ValueError("holds no user, query or fragment")
        if parts.scheme == "http" and _literal(parts.hostname) is not None:
            refuse_public_http(value, lambda host: [host])
        return value.rstrip("/")

    @field_validator("input_url_hosts")
    @classmethod
    def _hosts(cls, value: list[str]) -> list[str]:
        for entry in value:
            host_rule(entry)
        return value

    @field_validator("ollama_url")
    @classmethod
    def _loopback(cls, value: str) -> str:
        parts = urlsplit(value)
        address = _literal(parts.hostname or "")
        local = parts.hostname == "localhost" or (address is not None and address.is_loopback)
        if parts.scheme != "http" or not local or not parts.port:
            raise ValueError("is http://127.0.0.1:PORT: models are asked on this machine only")
        return value.rstrip("/")


_DEV_CONFIG = """
{trusted: true, capabilities: {}, heartbeat_interval_sec: 30, min_isolation: process,
  guard_sources: [load, gpu], metrics_port: 0}
"""
_DEV_RUNTIME = """
automation: {enabled: true, auto_start: true}
safety: {detect_active_user: true, idle_required_minutes: 10, max_cpu_percent: 100,
  max_gpu_percent: 90, max_vram_gb: 14, cooldown_minutes: 0.05}
execution: {poll_interval_sec: 1, heartbeat_interval_sec: 30, task_timeout_minutes: 180,
  retry_on_disconnect: true}
"""

SECTIONS: dict[str, type[_Section]] = {
    "automation": Automation,
    "safety": Safety,
    "execution": Execution,
}


def resolve(host: str) -> list[str]:
    """Addresses of a name. Raises OSError."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def refuse_public_http(url: str, look_up: Callable[[str], list[str]] = resolve) -> None:
    """Plain HTTP goes to loopback or Tailscale addresses only, also behind names.

    Raises ValueError. An unknown name passes: there is nothing to connect to.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.hostname == PLACEHOLDER:
        return
    try:
        addresses = look_up(parts.hostname)
    except OSError:
        return
    for text in addresses:
        address = _literal(text.partition("%")[0])
        if address is None or not (
            address.is_loopback or any(address in network for network in _TAILSCALE)
        ):
            raise ValueError(
                f"plain HTTP goes to loopback or Tailscale addresses only, and {text} is neither;"
                " use https or the Tailscale address"
            )


def load_runtime(file: Path, overrides: Mapping[str, object] | None = None) -> RuntimeConfig:
    """Read `runtime.yaml`, with `--set` values put over it. Raises ConfigError."""
    found = read_yaml(file, ConfigError)
    data = found.settings()
    for section, model in SECTIONS.items():
        if isinstance(data.get(section), dict):
            data[section] |= _of(model, overrides)
    return found.checked(RuntimeConfig, data, overrides or ())


def load_node_config(file: Path, overrides: Mapping[str, object] | None = None) -> NodeConfig:
    """Read `config.yaml`, with `--set` values put over it. Raises ConfigError."""
    found, over = read_yaml(file, ConfigError), _of(NodeConfig, overrides)
    return found.checked(NodeConfig, found.settings() | over, over)


def load_both(
    config_file: Path, runtime_file: Path, overrides: Mapping[str, object] | None = None
) -> tuple[NodeConfig, RuntimeConfig]:
    """Both files, which must agree on the heartbeat. Raises ConfigError."""
    refuse_unknown(overrides or {})
    config = load_node_config(config_file, overrides)
    runtime = load_runtime(runtime_file, overrides)
    if config.heartbeat_interval_sec != runtime.execution.heartbeat_interval_sec:
        raise ConfigError(
            f"heartbeat_interval_sec is {config.heartbeat_interval_sec:g} in {config_file} and "
            f"{runtime.execution.heartbeat_interval_sec:g} in {runtime_file}; make them equal"
        )
    if config.max_concurrent_cpu == 0 and config.max_concurrent_gpu == 0:
        raise ConfigError(
            f"{config_file}: max_concurrent_cpu and max_concurrent_gpu are both 0; allow one task"
        )
    return config, runtime


def refuse_unknown(overrides: Iterable[str]) -> None:
    """Raises ConfigError for a `--set` name that neither file knows."""
    known = set(NodeConfig.model_fields)
    known.update(*(model.model_fields for model in SECTIONS.values()))
    for name in overrides:
        if name not in known:
            names = f"{listed(known, limit=99)}, {known_settings()}"
            raise ConfigError(f"--set {name}: no such setting; choose from {names}")


def dev_config(node_id: str, url: str) -> dict[str, Any]:
    """What a dev node's config.yaml says."""
    data: dict[str, Any] = yaml.safe_load(_DEV_CONFIG)
    return {"node_id": node_id, **data, "rae_endpoint": url}


def dev_runtime() -> dict[str, Any]:
    """The contract's values, but for a machine that control itself keeps busy."""
    data: dict[str, Any] = yaml.safe_load(_DEV_RUNTIME)
    return data


def _of(model: type[_Section], overrides: Mapping[str, object] | None) -> dict[str, object]:
    """The overrides that a model knows."""
    return {name: value for name, value in (overrides or {}).items() if name in model.model_fields}


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
