"""What the doctor thinks of what it saw. Pure: facts in, findings out."""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rae_node.config.files import NodeConfig, SourceName
from rae_node.diagnostics.findings import Finding, bad, good, note
from rae_node.guard.policy import Reading
from rae_node.guard.words import in_words
from rae_node.host.nvml import Gpu
from rae_node.isolation.base import Level, at_least
from rae_node.runners.capabilities import roles_of
from rae_node.runners.llm import has_model
from rae_protocol.errors import TABLE, RaeError, Unreachable

MIN_PYTHON = (3, 10)
MIN_DISK_MB = 1024
MAX_OFFSET_S = 60.0  # control refuses signatures beyond it
ALL_SOURCES: tuple[SourceName, ...] = ("logind", "input", "tty", "remote", "load", "gpu")
AS_READ = "as they were read"  # `files` of the agent's status
_PASSING = frozenset({"connecting", "unreachable", "register_again", "retry_signed"})
_ASK_CONTROL = "ask control's operator: `raectl nodes list --all` shows this node's state"
_OWN_WAY_OUT = frozenset({"tls", "certificate", "ca_file"})
STAND_INS = {
    "memory": "the supervisor adds up a task's memory and kills with E_OOM instead",
    "cpu": "nice (cpu_nice) takes the place of CPU weights",
    "io": "io_class and io_level take the place of I/O weights",
    "pids": "RLIMIT_NPROC limits a task's processes, except those of root",
}


@dataclass(frozen=True, slots=True)
class Owned:
    """A file or folder: whose it is, its mode, and whether the asking user may write there."""

    uid: int
    mode: int
    writable: bool


def python(version: Sequence[int]) -> Finding:
    """The interpreter."""
    shown = ".".join(map(str, version[:3]))
    if tuple(version[:2]) >= MIN_PYTHON:
        return good("python", shown)
    return bad("python", f"{shown} is too old; 3.10 or newer is needed", "install python3.10")


def folder(path: Path, seen: Owned | None, agent: int, asking: int, private: bool) -> Finding:
    """One of the node's folders. `agent`, `asking`: uids; `private`: for the agent alone."""
    name = f"folder {path.name}"
    if seen is None:
        mode = "700" if private else "755"
        return bad(name, f"{path} is missing", f"install -d -m {mode} -o {agent} {path}")
    if seen.uid not in {agent, 0} or (private and seen.uid != agent):
        why = f"{path} belongs to uid {seen.uid}, and the agent is uid {agent}"
        return bad(name, why, f"chown {agent} {path}")
    shared = seen.mode & stat.S_ISGID  # with the tasks' group
    open_to = (0o007 if shared else 0o077) if private else stat.S_IWOTH
    if seen.mode & open_to:
        what = "is open to other users" if private else "can be written by everybody"
        fix = f"chmod {'700' if private else 'o-w'} {path}"
        return bad(name, f"{path} {what} (mode {seen.mode:04o})", fix)
    if asking in {0, agent} and seen.uid == agent and not seen.writable:
        why = f"{path} cannot be written (mode {seen.mode:04o}, or a read-only file system)"
        return bad(name, why, f"chmod u+rwx {path}, or mount its disk read-write")
    return good(name, f"{path}, uid {seen.uid}, mode {seen.mode:04o}")


def secret(file: Path, seen: Owned | None, agent: int, problem: str) -> Finding:
    """The enrolment. `problem`: why it cannot be used."""
    name = "enrolment"
    if seen is None:
        why, enrol = f"{file} is missing: control does not know this node", "raectl nodes enrol"
        return bad(name, why, f"`{enrol} NODE --json` prints what belongs into it, with mode 0600")
    if seen.uid not in {agent, 0}:
        return bad(name, f"{file} belongs to uid {seen.uid}, a stranger", f"chown {agent} {file}")
    if seen.mode & 0o027:
        why = f"{file} holds a secret and is open to others (mode {seen.mode:04o})"
        return bad(name, why, f"chmod 600 {file}")
    if problem:
        return bad(name, problem, f"`raectl nodes enrol NODE --json` prints what {file} must hold")
    return good(name, f"{file}, mode {seen.mode:04o}")


def disk(name: str, path: Path, free_mb: float | None) -> Finding:
    """Room for tasks, or for results."""
    name = f"disk of {name}"
    if free_mb is None:
        return bad(name, f"the free space of {path} cannot be read", f"check that {path} exists")
    if free_mb < MIN_DISK_MB:
        why = f"{free_mb:.0f} MiB are free at {path}; {MIN_DISK_MB} is the least to work with"
        return bad(name, why, f"delete files on the disk of {path} (`df -h {path}`)")
    return good(name, f"{free_mb:.0f} MiB free")


def control(
    url: str, refused: str, addresses: Sequence[str], problem: RaeError | None
) -> list[Finding]:
    """The way to control. `refused`: why it may not be used; `problem`: of asking it."""
    endpoint = "put control's address into rae_endpoint of config.yaml"
    if not addresses:
        return [bad("control address", f"{url} has no address: the name is not known", endpoint)]
    if refused:
        fix = "use https, or control's Tailscale address, as rae_endpoint of config.yaml"
        return [bad("control address", refused, fix)]
    found = [good("control address", f"{url} is {', '.join(addresses)}")]
    if problem is not None:
        fix = problem.way_out
        if not isinstance(problem, Unreachable) or problem.reason not in _OWN_WAY_OUT:
            fix = "check that control runs, that `tailscale status` shows it, and rae_endpoint"
        return [*found, bad("control", problem.cause or problem.message, fix)]
    return [*found, good("control", f"{url}/healthz answers")]


def clock(offset_s: float) -> Finding:
    """This clock beside control's `Date`."""
    if abs(offset_s) <= MAX_OFFSET_S:
        return good("clock", f"{offset_s:+.0f} s to control's")
    why = f"control's clock is {offset_s:+.0f} s from this one; {MAX_OFFSET_S:.0f} s are allowed"
    return bad("clock", why, "timedatectl set-ntp true, here and on control")


def isolation(level: Level, why_not_more: str, minimum: Level) -> Finding:
    """How tasks are boxed here, beside what the owner asks for."""
    if at_least(level, minimum):
        return good("isolation", f"'{level}' reaches min_isolation '{minimum}'")
    why = f"'{level}' is below min_isolation '{minimum}', so no task is taken: {why_not_more}"
    fix = f"see to that, or set min_isolation: {level} in config.yaml"
    return bad("isolation", why, fix)


def task_limit(task_timeout_minutes: float, unit_s: float) -> Finding:
    """How long a task may run beside how long its unit lasts, in seconds."""
    name, least_s = "task limit", task_timeout_minutes * 60
    if unit_s > least_s:
        return good(name, f"task_timeout_minutes {task_timeout_minutes:g} ends tasks, not its unit")
    return bad(
        name,
        f"task_timeout_minutes is {task_timeout_minutes:g}, and systemd ends a task's unit after "
        f"{unit_s / 60:g} minutes (RuntimeMaxSec): such a task would fail as E_LOST",
        f"set RuntimeMaxSec={least_s + 300:.0f} for rae-task@.service and rae-task-gpu@.service "
        "(provisioning does, by node_runtime.execution), or lower task_timeout_minutes",
    )


_SPANS = {"y": 31_557_600, "month": 2_629_800, "w": 604_800, "d": 86_400, "h": 3600, "min": 60,
          "s": 1, "ms": 1e-3, "us": 1e-6}  # fmt: skip


def seconds_of_span(text: str) -> float:
    """Seconds of what systemd prints of a time span: `3h 5min`, `infinity`. Raises ValueError."""
    if text.strip() == "infinity":
        return math.inf
    parts = [re.fullmatch(r"([0-9.]+)([a-z]+)", word) for word in text.split()]
    if not parts or not all(one and one[2] in _SPANS for one in parts):
        raise ValueError(f"'{text.strip()}' is no time span")
    return sum(float(one[1]) * _SPANS[one[2]] for one in parts if one)


def not_shown(problem: str) -> Finding:
    """What boxes cannot show, or must not. The problem ends with its fix."""
    what, _, fix = problem.rpartition("; ")
    return bad("isolation", f"{what}. The agent does not start", fix)


NAMESPACE_FILES = {
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl -w {key}=1"),
    "/proc/sys/user/max_user_namespaces": ("0", "sysctl -w {key}=10000"),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "give bubblewrap an AppArmor profile with `userns,`, or sysctl -w {key}=0",
    ),
}
# A profile with `userns,`: the tasks' units' own, or one of bubblewrap's.
USERNS_PROFILES = tuple(
    f"/etc/apparmor.d/{name}" for name in ("rae-task", "bwrap", "bwrap-userns-restrict")
)


def namespaces(texts: Mapping[str, str | None], needed: bool) -> Finding:
    """User namespaces, as the kernel's switches have them; bubblewrap needs them."""
    profile = any(texts.get(file) is not None for file in USERNS_PROFILES)
    for file, (off, fix) in NAMESPACE_FILES.items():
        if "apparmor" in file and profile:
            continue
        if (texts.get(file) or "").strip() == off:
            what = f"{file} is {off}: bubblewrap cannot make user namespaces"
            key = file.removeprefix("/proc/sys/").replace("/", ".")
            how = fix.format(key=key)
            return bad("namespaces", what, how) if needed else note("namespaces", what)
    return good("namespaces", "user namespaces are allowed")


def cgroup(controllers: str | None) -> Finding:
    """Which of cgroup v2's controllers are there; what stands in for the others."""
    if controllers is None:
        return note("cgroup", f"no cgroup v2 here; {'; '.join(STAND_INS.values())}")
    missing = [name for name in STAND_INS if name not in controllers.split()]
    if not missing:
        return good("cgroup", controllers.strip())
    return note("cgroup", "; ".join(f"no {name} controller: {STAND_INS[name]}" for name in missing))


def gpu(declared: bool | None, on_bus: int, gpus: Sequence[Gpu] | None) -> Finding:
    """The GPUs that NVML shows, beside what is declared and what is on the bus."""
    if declared is False:
        return good("gpu", "config.yaml declares none")
    if gpus:
        return good("gpu", ", ".join(one.name for one in gpus))
    if declared is None and not on_bus:
        return good("gpu", "none here, none declared")
    there = f"{on_bus} on the bus" if on_bus else "gpu: true in config.yaml"
    fix = "make `nvidia-smi` work (the driver), or set capabilities.gpu: false in config.yaml"
    return bad("gpu", f"NVML shows no GPU, but there is {there}", fix)


def source(name: SourceName, reading: Reading | None, problem: str) -> Finding:
    """One of the guard's sources; None is one that config.yaml leaves out."""
    title = f"guard {name}"
    if reading is None:
        return note(title, "left out by guard_sources in config.yaml: it has no effect")
    if reading.present is None or None in reading.measures.values():
        why = f"{name} is blind: {problem or 'a measure is missing'}; blind counts as in use"
        return bad(title, why, "fix what is named; until then this node takes no work")
    seen = [in_words(reading.code or name), *map(str, reading.holders)] if reading.present else []
    seen += [f"{key} {value:.1f}" for key, value in reading.measures.items() if value is not None]
    return good(title, "; ".join(seen) or "sees no user")


def models(
    config: NodeConfig,
    max_vram_gb: float,
    present: list[str] | None,
    *,
    lent: bool = True,
    dev: bool = False,
) -> list[Finding]:
    """Ollama and the model of each declared role; on a node that is not lent it waits, too."""
    roles, url = config.capabilities.llm or [], config.ollama_url
    if present is None:
        what = f"Ollama does not answer at {url}"
        if not roles:
            return [note("ollama", f"{what}, and no role is declared: no llm tasks come here")]
        if not lent:
            return [note("ollama", f"{what}: it starts with enable-node, as the agent does")]
        fix = "systemctl start rae-ollama, or take the roles out of capabilities.llm"
        return [bad("ollama", f"{what}, which the roles {', '.join(roles)} need", fix)]
    found = [good("ollama", f"answers at {url}")]
    known = roles_of(config, max_vram_gb, present)
    for role in roles:
        model = known.get(role)
        if model is None:
            fix = f"add `{role}: MODEL` to llm_models in config.yaml"
            found.append(bad(f"model {role}", f"llm_models has no model for role {role}", fix))
        elif has_model(present, model):
            found.append(good(f"model {role}", model))
        else:
            # The installed server has no network: only the playbook brings models.
            fix = (
                f"OLLAMA_HOST={url.removeprefix('http://')} ollama pull {model}"
                if dev
                else f"add `- name: {model}` to ollama_models in the inventory and run "
                "`ansible-playbook playbooks/provision-node.yml` for this host, or map the role to "
                f"one that is there in llm_models of config.yaml: {', '.join(present) or 'none is'}"
            )
            found.append(bad(f"model {role}", f"Ollama lacks {model}", fix))
    return found


def trusted(problems: Iterable[str]) -> Finding:
    """The folders and files of Python tasks."""
    text = "; ".join(problems)
    if not text:
        return good("task paths", "no other user can write there")
    fix = "chown root and chmod go-w what is named, or take it out of task_paths"
    return bad("task paths", text, fix)


def agent(running: bool, problem: str) -> Finding:
    """Lock and socket of an agent."""
    if problem:
        return bad("agent", problem, "look at the agent's log, then end it and start it again")
    return good("agent", "runs and answers" if running else "does not run; its lock is free")


def session(state: str, problem: str) -> Finding:
    """Whether control takes this node, as its running agent knows. `state`: the agent's word."""
    if state == "registered":
        return good("session", "control takes this node")
    what = f"not registered ({state}): {problem}"
    status = TABLE[state][0] if state in TABLE else 0
    if state in _PASSING or status == 429 or status >= 500:  # control is away or busy
        return note("session", f"{what} The agent tries again by itself")
    said, _, way_out = what.rstrip(".").rpartition(". ")
    return bad("session", said or way_out, way_out if said else _ASK_CONTROL)


def in_force(files: str) -> Finding:
    """Whether the running agent goes by the files that are there; `files`: its word."""
    if files == AS_READ:
        return good("files in force", "the agent goes by the files that are there")
    if "; restart the agent" in files:
        return note("files in force", files)
    return bad("files in force", f"the agent goes by older files: {files}", "correct that file")


def unit(state: str, name: str, dev: bool) -> Finding:
    """The unit at boot. `state`: what systemd says, or why it cannot be asked."""
    if dev:
        return note("unit", "a dev node is started by hand: `rae-node run --dev`")
    if state == "enabled":
        return good("unit", f"{name} is enabled")
    return bad(
        "unit", f"{name} at boot: {state}", f"install the unit, then systemctl enable {name}"
    )
