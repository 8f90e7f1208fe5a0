"""`rae-node doctor`: looks at every precondition of an agent. The rules are in `rules`."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rae_node.agent.startup import read_enrolment
from rae_node.build import allow_list
from rae_node.config.files import NodeConfig, RuntimeConfig, load_both, refuse_public_http, resolve
from rae_node.config.layout import Layout, socket_path
from rae_node.diagnostics import rules
from rae_node.diagnostics.checks import look
from rae_node.diagnostics.findings import Finding, bad, good, note
from rae_node.diagnostics.report import UNIT, isolation_of, lock_held, task_limits, unit_state
from rae_node.diagnostics.rules import Owned
from rae_node.errors import ConfigError, NodeError
from rae_node.guard.owner_file import OwnerFile
from rae_node.guard.owner_rules import STRICT
from rae_node.guard.policy import Reading
from rae_node.guard.sources.gpu import PCI_DEVICES, nvidia_gpus
from rae_node.host.nvml import Gpu
from rae_node.host.nvml import probe as probe_gpu
from rae_node.isolation.base import Level
from rae_node.isolation.bubblewrap_view import NOT_SHOWN
from rae_node.owner.socket import ask
from rae_node.runners.capabilities import disk_free_mb
from rae_node.runners.llm import port_problem, present_models, runner_uids
from rae_node.runners.signature import read_signature
from rae_node.runners.trust import untrusted
from rae_protocol.answers import MAX_SMALL_BYTES, json_of
from rae_protocol.errors import RaeError
from rae_protocol.models import Health
from rae_protocol.transport import Backoff, BearerAuth, Transport

_TIMEOUT_S = 5.0
_CONTROLLERS = "/sys/fs/cgroup/cgroup.controllers"


def _text(file: str) -> str | None:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _healthz(config: NodeConfig) -> float:
    """Seconds that control's clock is ahead. Raises RaeError.

    Four calls: a host that has just booted answers again when WireGuard gives up the session with
    the boot before, KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, 15 s (section 6 of its paper).
    """
    transport = Transport(
        config.rae_endpoint, ca_file=config.ca_file, connect_timeout_s=_TIMEOUT_S,
        read_timeout_s=_TIMEOUT_S, backoff=Backoff(tries=4),
    )  # fmt: skip
    read = json_of(Health, MAX_SMALL_BYTES)
    transport.call("GET", "/healthz", read=read, auth=BearerAuth(None), retry=True)
    return transport.clock_offset_s


def _owned(path: Path) -> Owned | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return Owned(info.st_uid, info.st_mode & 0o7777, os.access(path, os.W_OK))


@dataclass(frozen=True, slots=True)
class Eyes:
    """What the doctor sees with."""

    python: Sequence[int] = sys.version_info[:3]
    uid: int = os.getuid()
    isolation: Callable[[Layout, NodeConfig], tuple[Level, str]] = isolation_of
    text: Callable[[str], str | None] = _text
    owned: Callable[[Path], Owned | None] = _owned
    free_mb: Callable[[Path], float | None] = disk_free_mb
    resolve: Callable[[str], list[str]] = resolve
    healthz: Callable[[NodeConfig], float] = _healthz
    gpus: Callable[[float], Sequence[Gpu] | None] = probe_gpu
    gpus_on_bus: Callable[[], int] = lambda: len(nvidia_gpus(PCI_DEVICES))
    look: Callable[..., tuple[list[Reading], dict[str, str]]] = look
    models: Callable[[str, float, Collection[int]], list[str] | None] = present_models
    port_problem: Callable[[str, Collection[int]], str] = port_problem
    unit: Callable[[], str] = unit_state
    task_limits: Callable[[], str] = task_limits


def examine(layout: Layout, *, dev: bool, eyes: Eyes = Eyes()) -> Iterator[Finding]:
    """Every finding, as it is made. `dev`: a node that was not installed by the playbook."""
    home = eyes.owned(layout.run) or eyes.owned(layout.root)
    agent_uid = eyes.uid if home is None else home.uid
    yield rules.python(eyes.python)
    yield from _machine(layout, agent_uid, eyes)
    yield from _agent(layout)
    yield _unit(dev, eyes)
    try:
        config, runtime = load_both(layout.config_file, layout.runtime_file)
    except NodeError as error:
        fix = "fix the file that is named; `rae-node check-config FILE` looks at one alone"
        yield bad("config", error.message, fix)
        yield note("the rest", "secret, control, guard, models and tasks wait for the files")
        return
    yield good("config", f"{layout.config_file} and runtime.yaml agree")
    yield _owner(layout.owner_file, agent_uid)
    yield _secret(layout, config, agent_uid, eyes)
    yield from _control(config, eyes)
    try:
        level, why = eyes.isolation(layout, config)
        yield rules.isolation(level, why, config.min_isolation)
        if level == "unit":
            yield _task_limit(runtime, eyes)
    except (OSError, NodeError) as error:
        if isinstance(error, NodeError) and error.rc == NOT_SHOWN:
            yield rules.not_shown(error.message)
        elif isinstance(error, ConfigError):
            yield note("isolation", "waits for the allow-list, below")
        else:
            fix = "start the agent again; it does not say how it keeps tasks apart"
            yield bad("isolation", f"the agent does not answer: {error}", fix)
    switches = {file: eyes.text(file) for file in (*rules.NAMESPACE_FILES, *rules.USERNS_PROFILES)}
    yield rules.namespaces(switches, config.min_isolation != "process")
    declared = config.capabilities.gpu
    gpus = None if declared is False else eyes.gpus(_TIMEOUT_S)
    yield rules.gpu(declared, eyes.gpus_on_bus(), gpus)
    lent = dev or (layout.agent / "enabled").exists()
    yield from _guard(layout, config, runtime, eyes, lent)
    uids = runner_uids(config.ollama_user, agent_uid)
    models = eyes.models(config.ollama_url, 2.0, uids)
    if models is None and (problem := eyes.port_problem(config.ollama_url, uids)):
        what, _, fix = problem.partition("; ")
        yield bad("ollama", what, fix)
    else:
        yield from rules.models(config, runtime.safety.max_vram_gb, models, lent=lent, dev=dev)
    yield from _tasks(layout, config)


def _machine(layout: Layout, agent_uid: int, eyes: Eyes) -> Iterator[Finding]:
    for path in (layout.agent, layout.workdir, layout.spool, layout.logs, layout.run):
        private = path in {layout.workdir, layout.spool}
        yield rules.folder(path, eyes.owned(path), agent_uid, eyes.uid, private)
    for path in (layout.workdir, layout.spool):
        if eyes.owned(path):
            yield rules.disk(path.name, path, eyes.free_mb(path))
    yield rules.cgroup(eyes.text(_CONTROLLERS))


def _agent(layout: Layout) -> Iterator[Finding]:
    try:
        path, running = socket_path(layout.root), lock_held(layout)
        said = ask(path, {"verb": "status"}) if running else {}
    except (NodeError, OSError) as error:
        yield rules.agent(True, str(error))
        return
    yield rules.agent(running, "")
    if said:
        yield rules.session(str(said["session"]), str(said.get("session_problem", "")))
        yield rules.in_force(str(said["files"]))


def _unit(dev: bool, eyes: Eyes) -> Finding:
    try:
        return rules.unit("" if dev else eyes.unit(), UNIT, dev)
    except NodeError as error:
        return rules.unit(error.message, UNIT, dev)


def _task_limit(runtime: RuntimeConfig, eyes: Eyes) -> Finding:
    try:
        unit_s = min(map(rules.seconds_of_span, filter(None, eyes.task_limits().splitlines())))
    except (NodeError, ValueError) as error:
        return note("task limit", f"systemd does not say how long a task's unit lasts: {error}")
    return rules.task_limit(runtime.execution.task_timeout_minutes, unit_s)


def _secret(layout: Layout, config: NodeConfig, agent_uid: int, eyes: Eyes) -> Finding:
    source = config.enrolment_file or str(layout.agent / "enrolment.json")
    if source.startswith(("env:", "credential:")):
        return note("enrolment", f"{source} comes with the agent's unit; only the agent sees it")
    file = Path(source)
    seen, problem = eyes.owned(file), ""
    if seen is not None and eyes.uid not in {0, seen.uid, agent_uid}:
        what = f"{file} is not yours to read; ask as root or as the agent's user"
        return note("enrolment", what)
    try:
        read_enrolment(source, dict(os.environ))
    except NodeError as error:
        problem = error.message
    return rules.secret(file, seen, agent_uid, problem)


def _control(config: NodeConfig, eyes: Eyes) -> Iterator[Finding]:
    url, refused, offset = config.rae_endpoint, "", None
    problem: RaeError | None = None
    try:
        addresses = eyes.resolve(urlsplit(url).hostname or "")
        refuse_public_http(url, lambda _: addresses)
    except OSError:
        addresses = []
    except ValueError as error:
        refused = str(error)
    if addresses and not refused:
        try:
            offset = eyes.healthz(config)
        except RaeError as error:
            problem = error
    yield from rules.control(url, refused, addresses, problem)
    if offset is not None:
        yield rules.clock(offset)


def _guard(
    layout: Layout, config: NodeConfig, runtime: RuntimeConfig, eyes: Eyes, lent: bool
) -> Iterator[Finding]:
    for name in rules.ALL_SOURCES:
        reading, problem = None, ""
        if name in config.guard_sources:  # one at a time: a slow one holds up its own line
            readings, problems = eyes.look(layout, config, runtime, (name,))
            reading = next(one for one in readings if one.source == name)
            problem = problems.get(name, "")
        if name == "input" and not lent and eyes.owned(Path(config.input_socket)) is None:
            yield note("guard input", "waits: it starts with enable-node, as the agent does")
        else:
            yield rules.source(name, reading, problem)
    readings, _ = eyes.look(layout, config, runtime, ())
    for one in readings:
        if one.source in {"owner", "pause"} and one.present:
            what = "; ".join(map(str, one.holders))
            yield note("owner's word", f"no work now: {what}")


def _owner(file: Path, agent_uid: int) -> Finding:
    try:
        valid = OwnerFile(file).rules() is not STRICT
        info = file.stat() if valid else None
        if info and not info.st_mode & stat.S_IROTH and info.st_uid != agent_uid:
            raise ConfigError(f"{file} may not be read by the agent; run `chmod a+r {file}`")
    except ConfigError as error:
        fix = "correct what is named; until then this node takes no work"
        return bad("owner.yaml", error.message, fix)
    return good("owner.yaml", f"{file} is in force" if valid else "not there: the defaults")


def _tasks(layout: Layout, config: NodeConfig) -> Iterator[Finding]:
    try:
        found = allow_list(config, layout)
    except NodeError as error:
        yield bad("allow-list", error.message, "fix the entry, or take the file away")
    else:
        absent = found.missing()
        yield good("allow-list", f"{len(found.offered())} commands may run")
        if absent:
            what = f"not installed, so not offered: {', '.join(absent)}"
            yield note("allow-list", what)
        if why := "; ".join(found.distrusted()):
            yield bad("programs", why, "fix what is named, or take the entry away")
    yield rules.trusted(_distrusted(layout, config))


def _distrusted(layout: Layout, config: NodeConfig) -> Iterator[str]:
    for folder in map(Path, config.task_paths or []):
        if not folder.is_dir():
            yield f"{folder} of task_paths is no folder"
        for file in sorted(folder.glob("*.py")):
            try:
                why = untrusted(file, layout.workdir)
                if why is None:
                    read_signature(file)
            except NodeError as error:
                why = error.message
            if why is not None:
                yield why
