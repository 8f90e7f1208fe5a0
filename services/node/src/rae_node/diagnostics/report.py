"""B8's report: is this node ready to work unattended? Every NO says why, and how to fix it."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Sequence

from rae_node.agent.startup import read_enrolment
from rae_node.build import allow_list, isolation_here
from rae_node.config.files import PLACEHOLDER, NodeConfig, RuntimeConfig, SourceName, load_both
from rae_node.config.layout import Layout, socket_path
from rae_node.diagnostics.checks import look
from rae_node.diagnostics.findings import Finding, bad, good
from rae_node.errors import NodeError
from rae_node.guard.policy import Reading
from rae_node.host.processes import english
from rae_node.isolation.base import Level, at_least
from rae_node.isolation.bubblewrap_view import NOT_SHOWN
from rae_node.owner.socket import ask

UNIT = "rae-node.service"
_TIMEOUT_S = 5.0
_TITLE = "RAE COMPUTE NODE \N{EN DASH} AUTOMATION STATUS\n----------------------------------"
_LABELS = {
    "Automation enabled": ("YES", "NO"),
    "Auto-start on boot": ("YES", "NO"),
    "User activity protection": ("ACTIVE", "INACTIVE"),
    "GPU protection": ("ACTIVE", "INACTIVE"),
    "Safe for unattended operation": ("YES", "NO"),
}

Problems = tuple[str, ...]


def unit_state() -> str:
    """What systemd says of the unit at boot: `enabled`, `disabled`, … Raises NodeError."""
    return _systemctl("is-enabled", UNIT)


def task_limits() -> str:
    """How long systemd lets a task's units last, in its words, a line each. Raises NodeError."""
    units = "rae-task@0.service", "rae-task-gpu@0.service"
    return _systemctl("show", "--property=RuntimeMaxUSec", "--value", *units)


def _systemctl(*words: str) -> str:
    try:
        done = subprocess.run(
            ["systemctl", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=english(),
        )
    except (OSError, subprocess.SubprocessError) as error:
        text = f"systemctl cannot be asked ({error}); start this node by hand after each boot"
        raise NodeError("blind", text) from error
    return (done.stdout or done.stderr).decode(errors="replace").strip() or "nothing"


def isolation_of(layout: Layout, config: NodeConfig) -> tuple[Level, str]:
    """The level of isolation here and why it is no stronger one: the agent's word, where it runs.

    Raises OSError, NodeError.
    """
    if lock_held(layout):
        said = ask(socket_path(layout.root), {"verb": "status"})
        return said["isolation"], str(said["isolation_why"])
    found = isolation_here(layout, config, allow_list(config, layout))
    return found.level, found.why


def collect(layout: Layout, *, reader: Callable[[], str] = unit_state) -> list[Finding]:
    """Look at everything. `reader`: the unit's state at boot."""
    found: list[Problems]
    unsafe: Problems = ()
    try:
        config, runtime = load_both(layout.config_file, layout.runtime_file)
    except NodeError as error:
        found = [(error.message,)] * 4
    else:
        readings, problems = look(layout, config, runtime)
        enabled = runtime.automation.enabled
        on = () if enabled else ("automation.enabled is false in runtime.yaml; set it to true",)
        user, gpu, load = _protection(config, runtime, readings, problems)
        found = [on, _auto_start(runtime, reader), user, gpu]
        rules = (problems["owner"],) if "owner" in problems else ()
        unsafe = (*rules, *load, *_isolation(layout, config), *_able(layout, config))
    if any(found):
        unsafe = ("what is above does not hold; fix that first", *unsafe)
    return [
        one
        for label, problems in zip(_LABELS, [*found, unsafe], strict=True)
        for one in [bad(label, problem) for problem in problems] or [good(label)]
    ]


def rendered(findings: Sequence[Finding]) -> str:
    """The report as B8 has it; with what is wrong instead of the last line."""
    failed = [one for one in findings if one.state == "FAIL"]
    names = {one.name for one in failed}
    words = (f"{label}: {no if label in names else yes}" for label, (yes, no) in _LABELS.items())
    text = "\n".join([_TITLE, *words])
    if not failed:
        return f"{text}\n\nREADY FOR CENTRAL CONTROL"
    wrong = [f"{one.name}: {one.what}" for one in failed]
    return "\n".join([text, "", "FAILURE REPORT", *wrong])


def _auto_start(runtime: RuntimeConfig, reader: Callable[[], str]) -> Problems:
    if not runtime.automation.auto_start:
        return ("automation.auto_start is false in runtime.yaml; set it to true",)
    try:
        state = reader()
    except NodeError as error:
        return (error.message,)
    how = f"`systemctl enable {UNIT}` repairs that"
    if "No such file" in state or state == "not-found":
        how = "install it with playbooks/provision-node.yml (a dev node has no unit)"
    text = f"systemd says '{state}' of {UNIT}; {how}"
    return () if state == "enabled" else (text,)


def _protection(
    config: NodeConfig, runtime: RuntimeConfig, readings: list[Reading], problems: dict[str, str]
) -> tuple[Problems, Problems, Problems]:
    """What is wrong with the owner's protection, with the GPU's, and with the CPU's."""
    blind = {reading.source for reading in readings if reading.present is None}

    def missing(*names: SourceName) -> Problems:
        lacking = [name for name in names if name not in config.guard_sources]
        texts = [f"guard_sources in config.yaml leaves out {name}; add it" for name in lacking]
        unseeing = [name for name in names if name in blind]
        return (*texts, *(problems.get(name) or f"{name} cannot tell" for name in unseeing))

    off = "safety.detect_active_user is false in runtime.yaml; set it to true"
    user = () if runtime.safety.detect_active_user else (off,)
    return (*user, *missing("logind", "input", "tty", "remote")), missing("gpu"), missing("load")


def _isolation(layout: Layout, config: NodeConfig) -> Problems:
    try:
        level, why = isolation_of(layout, config)
    except NodeError as error:  # the checks of the agent below report the others
        return (error.message,) if error.rc == NOT_SHOWN else ()
    except OSError:
        return ()
    if at_least(level, config.min_isolation):
        return ()
    text = f"isolation is '{level}', below min_isolation '{config.min_isolation}' of config.yaml"
    return (f"{text}; no task would be taken: {why}",)


def _able(layout: Layout, config: NodeConfig) -> Problems:
    """What keeps an agent from starting here, or the present one from answering."""
    found = []
    if PLACEHOLDER in config.rae_endpoint:
        found.append(f"rae_endpoint is {config.rae_endpoint}; put control's address there")
    source, runs = config.enrolment_file or str(layout.agent / "enrolment.json"), False
    try:
        runs = lock_held(layout)
        if runs:
            ask(socket_path(layout.root), {"verb": "status"})
    except NodeError as error:
        found.append(f"an agent holds its lock but does not answer: {error.message}")
    except OSError as error:
        found.append(f"the agent's lock cannot be taken ({error}); check the folder's owner")
    if source.startswith(("env:", "credential:")):
        if not runs:  # one that runs has read it
            found.append(f"{source} is for the agent alone; start it: that proves it")
        return tuple(found)
    try:
        read_enrolment(source, dict(os.environ))
    except NodeError as error:
        found.append(error.message)
    return tuple(found)


def lock_held(layout: Layout) -> bool:
    """Whether an agent runs here. Raises OSError."""
    try:
        with (layout.run / "lock").open() as lock:  # made by the agent alone, with its owner
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass  # no agent has ever run: it makes the folder
    return False
