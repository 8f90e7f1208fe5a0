"""Which use of a GPU means that somebody needs it. Pure: NVML's facts in, causes out.

Our own processes never count. Of all others:

| a process that NVML lists | counts |
|---|---|
| as a compute client alone | always (B2): `foreign_gpu_process` |
| as a graphics client, of `DESKTOP` | while it works, or beyond the memory budget |
| as another graphics client | always (B2); as above if the owner lets it rest (`Resting`) |
| with an encoder or capture session | at once: somebody watches from afar (`gpu_stream`) |

A process in both lists is a graphics client: NVIDIA's driver lists programs there that draw with
Vulkan (GTK 4 does by default), and KWin. A program that only computes is in one list.

Work is the mean over a window of what the GPU's processors, encoder and decoder do for others, by
NVML's shares of single processes. While nothing of ours is on the GPU the whole GPU's figures
count, too: some drivers give no shares for the decoder (elFarto/nvidia-vaapi-driver#346), and do
not list every program. Beside work of ours, what no share explains is ours. Without any shares the
whole GPU's figures decide, also beside work of ours, as soon as a foreign client is there;
gpu_use.py says when shares that NVML should give count as missing.

A fact that NVML cannot give here ("not supported", no such function, no permission) makes blind
where it is needed, and nothing else counts already: the two lists and the memory always; the use
of the processors always, by shares or for the whole GPU; the decoder's the same way while a client
that may rest is there; the encoder's, too, or else the list of its sessions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rae_node.guard.gpu_use import ENGINES, Client, Facts, Load, Look
from rae_node.guard.policy import Holder
from rae_node.guard.words import shown

OWNER_FILE = "/opt/rae-node/agent/owner.yaml"
# Public listings of nvidia-smi show 0.4 to 1.1 GiB for a compositor with browser, chat and Steam;
# a paused game or a loaded model starts where this ends.
REST_VRAM_MB = 2048.0

_COMM_SIZE = 15  # the kernel cuts the names of processes
_NAMES = (
    "Xorg", "Xwayland", "gnome-shell", "mutter-x11-frames", "kwin_x11", "kwin_wayland",
    "plasmashell", "sddm-greeter", "gdm", "lightdm-greeter", "Hyprland", "sway", "niri", "labwc",
    "river", "wayfire", "weston", "cosmic-comp", "cinnamon", "muffin", "marco", "xfwm4",
    "budgie-wm", "picom", "quickshell", "waybar",
)  # fmt: skip
# Display servers, compositors and desktop services. A name is also known as the kernel cuts it.
DESKTOP = frozenset(_NAMES) | frozenset(name[:_COMM_SIZE] for name in _NAMES)
_PORTAL = "xdg-desktop-portal"

COMPUTE_LIST = "nvmlDeviceGetComputeRunningProcesses"
GRAPHICS_LIST = "nvmlDeviceGetGraphicsRunningProcesses"
MEMORY = "nvmlDeviceGetMemoryInfo"
SHARES = "nvmlDeviceGetProcessUtilization"
ENCODER_SESSIONS = "nvmlDeviceGetEncoderSessions"


@dataclass(frozen=True, slots=True)
class Resting:
    """The owner's consent (owner.yaml): graphics clients that may rest on the GPU beside us.

    `names`: these programs (`gpu_may_rest`); `everyone`: all of them (`gpu_resting: allowed`).
    """

    names: frozenset[str] = frozenset()
    everyone: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A process by its names, which any user chooses; `str` gives them in a form to print.

    `command`: the file name that its command line begins with.
    """

    pid: int
    comm: str = ""
    command: str = ""
    uid: int | None = None

    @property
    def name(self) -> str:
        """The name to let it rest by; whoever prints it uses `shown`.

        Firefox calls its processes `GeckoMain`, `GPU Process` and so on: its command tells more.
        Chromium starts some as /proc/self/exe.
        """
        return (self.comm if self.command in {"", "exe"} else self.command) or "a program"

    def is_any_of(self, names: Collection[str]) -> bool:
        """Whether one of its two names is among them, whole or as the kernel cuts it."""
        return any(name in names for name in (self.comm, self.command, self.command[:_COMM_SIZE]))

    def __str__(self) -> str:
        owner = "" if self.uid is None else f"uid {self.uid}, "
        return f"{shown(self.name)} ({owner}process {self.pid})"


def command_of(cmdline: str) -> str:
    """The program's file name out of /proc/PID/cmdline.

    Chromium writes its words over it with spaces between; Wine's paths have backslashes.
    """
    first = cmdline.partition("\0")[0].partition(" -")[0]
    return re.split(r"[/\\]", first)[-1].strip()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one GPU: causes that somebody needs it, or why that is not known; use that is not ours.

    `percent`: of its processors, over the window; `peak`: at this moment; `vram_mb`: MiB.
    """

    causes: tuple[Holder, ...]
    blind: str
    percent: float | None
    peak: float | None
    vram_mb: float | None


def decide(
    facts: Facts,
    looks: Sequence[Look],
    ours: Collection[int],
    program: Callable[[int], Program | None],
    resting: Resting,
    owner_file: str = OWNER_FILE,
) -> Verdict:
    """Decide by the facts of now and the looks of the window, the last of which is of now."""
    named = [(one, program(one.pid) or Program(one.pid)) for one in _foreign(facts, ours)]
    rests = [(one, who) for one, who in named if one.graphics and _may_rest(who, resting)]
    vram_mb = _foreign_vram(facts, ours)
    causes = [
        Holder("gpu_stream", f"{program(pid) or Program(pid)} {what}", "stop the stream")
        for pid, what in facts.streams
        if pid not in ours
    ]
    causes += _working(facts, looks, rests, program)
    causes += [
        _blocks(one, who, resting, owner_file)
        for one, who in named
        if not (one.graphics and _may_rest(who, resting))
    ]
    causes += _crowded(rests, vram_mb)
    blind = "" if causes else _blind(facts, looks[-1].load, [who for _, who in rests])
    return Verdict(tuple(causes), blind, _mean(looks, "sm"), looks[-1].peak, vram_mb)


def _foreign(facts: Facts, ours: Collection[int]) -> list[Client]:
    return [one for one in facts.clients if one.pid not in ours]


def _may_rest(who: Program, resting: Resting) -> bool:
    desktop = who.is_any_of(DESKTOP) or who.comm.startswith(_PORTAL[:_COMM_SIZE])
    return desktop or resting.everyone or who.is_any_of(resting.names)


def _foreign_vram(facts: Facts, ours: Collection[int]) -> float | None:
    """MiB of the GPU that are not ours; what no process holds is not ours, either."""
    if facts.used_mb is None:
        return None
    mine = [one.vram_mb for one in facts.clients if one.pid in ours]
    theirs = [one.vram_mb for one in _foreign(facts, ours)]
    if None not in mine:
        return max(0.0, facts.used_mb - sum(used for used in mine if used is not None))
    if None not in theirs:
        return sum(used for used in theirs if used is not None)
    return facts.used_mb


def _mean(looks: Sequence[Look], name: str) -> float | None:
    """An engine's use by others over the window; None when it is not known now."""
    if name not in looks[-1].load:
        return None
    return fmean(one.load[name] for one in looks if name in one.load)


def _working(
    facts: Facts,
    looks: Sequence[Look],
    rests: Sequence[tuple[Client, Program]],
    program: Callable[[int], Program | None],
) -> list[Holder]:
    """A cause for each engine that does more than rest."""
    listed = {one.pid for one in facts.clients}
    hidden = any(pid not in listed for pid in looks[-1].by)
    found = []
    for name, engine in ENGINES.items():
        used = _mean(looks, name)
        # Without a client that could be at work, the processors' use is only compared with the
        # limit of runtime.yaml: NVML does not list every program, and B3 allows as much.
        if used is None or used <= engine.rest or not (rests or hidden or name != "sm"):
            continue
        means = {
            pid: sum(one.by.get(pid, {}).get(name, 0.0) for one in looks) / len(looks)
            for pid in looks[-1].by
        }
        text = f"{_whose(means, rests, program)}: {used:.0f} % of the GPU's {engine.label}"
        found.append(Holder("gpu_in_use", text, f"ends at {engine.rest:.0f} % or less"))
    return found


def _whose(
    means: Mapping[int, float],
    rests: Sequence[tuple[Client, Program]],
    program: Callable[[int], Program | None],
) -> str:
    """Who works, by percent of each; the clients that might, where NVML gives no shares."""
    first = sorted((pid for pid in means if means[pid] >= 1), key=lambda pid: -means[pid])[:3]
    if not first:
        names = _names(who for _, who in rests)
        return "programs whose share NVML does not give" + (f", of {names}" if names else "")
    named = {pid: str(program(pid) or Program(pid)) for pid in first}
    if len(first) == 1:
        return named[first[0]]
    return _and([f"{named[pid]} {means[pid]:.0f} %" for pid in first]) + ", together"


def _blocks(one: Client, who: Program, resting: Resting, owner_file: str) -> Holder:
    """A client that counts by existing, with the way out."""
    holds = "memory unknown" if one.vram_mb is None else f"{one.vram_mb:.0f} MiB"
    if not one.graphics:
        text = f"{who} computes on the GPU, {holds}"
        return Holder("foreign_gpu_process", text, "end it: no consent covers it")
    text = f"{who} has the GPU open, {holds}"
    if shown(who.name) != who.name:  # a line with the name as it is shown would not match it
        return Holder("foreign_gpu_process", text, "close it: its name cannot be printed as a line")
    line = f"gpu_may_rest: [{', '.join(map(_yaml, sorted({*resting.names, who.name})))}]"
    verb = "change gpu_may_rest to" if resting.names else "add"
    way = f'close it, or let it rest: {verb} "{line}" {"in" if resting.names else "to"} '
    return Holder("foreign_gpu_process", text, way + owner_file)


def _yaml(name: str) -> str:
    """A name as YAML reads it back as text."""
    plain = re.fullmatch(r"[A-Za-z][\w.+-]*", name)
    words = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
    return name if plain and name.lower() not in words else json.dumps(name)


def _crowded(rests: Sequence[tuple[Client, Program]], vram_mb: float | None) -> list[Holder]:
    """A cause when the clients at rest hold more memory than the budget."""
    held = sum(one.vram_mb or 0.0 for one, _ in rests)
    guess = ""
    if any(one.vram_mb is None for one, _ in rests) and vram_mb is not None and vram_mb > held:
        held, guess = vram_mb, "may "
    if held <= REST_VRAM_MB:
        return []
    first = sorted(rests, key=lambda pair: -(pair[0].vram_mb or 0.0))
    whose = ", ".join(
        f"{who} {'unknown' if one.vram_mb is None else f'{one.vram_mb:.0f} MiB'}"
        for one, who in first[:3]
    )
    text = f"programs at rest on the GPU {guess}hold {held:.0f} MiB: {whose}"
    return [Holder("gpu_vram_budget", text, f"ends at {REST_VRAM_MB:.0f} MiB or less")]


def _blind(facts: Facts, load: Load, rests: Sequence[Program]) -> str:
    """A sentence that says what NVML cannot tell here although it is needed; or nothing."""
    missing = [name for name in (COMPUTE_LIST, GRAPHICS_LIST, MEMORY) if name in facts.unknown]
    needed = ["sm"]
    if rests:
        needed += ["decoder", *(["encoder"] if ENCODER_SESSIONS in facts.unknown else [])]
    for name in needed:
        if name not in load:
            missing += [one for one in (ENGINES[name].call, SHARES) if one in facts.unknown]
    if not missing and all(name in load for name in needed):
        return ""
    calls = ", ".join(f"{one} ({facts.unknown[one]})" for one in dict.fromkeys(missing))
    close = f", or close {_names(rests)}" if rests else ""
    return (
        f"NVML cannot tell here whether the GPU is in use: {calls or 'it gives no figures'}; "
        f"update NVIDIA's driver{close}"
    )


def _names(programs: Iterable[Program]) -> str:
    return _and(sorted({shown(one.name) for one in programs}))


def _and(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1]) if len(names) > 1 else names)
