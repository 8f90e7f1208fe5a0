"""The guard's reason codes in words, for people on this machine."""

from __future__ import annotations

_WORDS = {
    "starting": "the guard has not looked yet",
    "automation_disabled": "automation.enabled is false in runtime.yaml",
    "user_protection_inactive": "safety.detect_active_user is false in runtime.yaml",
    "paused": "the owner paused this node; `rae-node resume` ends that",
    "disk_low": "the disk of workdir or spool is nearly full; make room",
    "spool_full": "results wait for control; the node takes no more until some are delivered",
    "cooldown": "the cooldown after the last interruption is not over",
    "graphical_session": "a desktop is open, and input on it is not proven to be seen",
    "input_recent": "keyboard, pointer or pad were used within the quiet time",
    "remote_session": "a user is connected from another machine",
    "remote_desktop": "a user may be connected to a remote desktop of this machine",
    "unaccounted_display": "a display listens that no login session accounts for",
    "tty_active": "a terminal was used within the quiet time",
    "foreign_gpu_process": "a program that is not ours has the GPU open",
    "gpu_in_use": "programs that may rest on the GPU are at work there",
    "gpu_stream": "a program sends the screen or a video to another machine",
    "gpu_vram_budget": "programs at rest on the GPU hold more of its memory than they may",
    "owner_never": "owner.yaml says `lend: never`",
    "owner_hours": "it is outside the hours of owner.yaml",
    "owner_program": "a program runs that `present_while` of owner.yaml names",
    "gpu_rest": "the GPU rests after a long run, for gpu_rest_minutes of config.yaml",
}


_MEASURES = {
    "cpu_percent": "CPU use of other programs in percent",
    "gpu_percent": "GPU use of other programs in percent",
    "vram_gb": "GPU memory of other programs in GiB",
}
_SOURCES = ("logind", "input", "tty", "remote", "load", "gpu", "owner", "pause", "owner_socket")
_BLIND = (*_SOURCES, *_MEASURES)
REASONS = (
    *_WORDS,
    "isolation_too_weak",
    *(f"{name}_high" for name in _MEASURES),
    *(f"blind_{name}" for name in _BLIND),
)


def in_words(code: str) -> str:
    """A reason as a person reads it."""
    if code == "blind_owner":
        return "owner.yaml has a mistake, and no task runs until it is corrected"
    if code == "blind_owner_socket":
        return "the owner's socket does not serve, and what the owner cannot stop does not run"
    if code.startswith("blind_"):
        return f"the guard cannot see {code[6:]}, and unknown means in use"
    if code.endswith("_high"):
        return f"{code[:-5]} is above its limit in runtime.yaml or owner.yaml"
    return _WORDS.get(code, code.replace("_", " "))


def measured(name: str) -> str:
    """A measure as a person reads it."""
    return _MEASURES.get(name, name)


def shown(text: str, most: int = 64) -> str:
    """A name that a user may have chosen, safe to print: `?` for each unprintable character.

    `most`: the number of characters to keep.
    """
    return "".join(one if one.isprintable() else "?" for one in text[:most])
