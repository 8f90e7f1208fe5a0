"""Ten minutes of a desktop's GPU, look by look: who rests does not count, who works does (B2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rae_node.guard.gpu_rules import Resting
from rae_node.guard.gpu_use import WINDOW_S
from rae_node.guard.policy import Reading, Rules, decide
from tests.unit.node.gpu_desk import Desk, Use

RULES = Rules(True, True, {"gpu_percent": 90.0, "vram_gb": 14.0})
ALLOWED = Resting(everyone=True)
CADENCES = pytest.mark.parametrize("every_s", [1.0, 30.0], ids=["beside a task", "at rest"])
DESKTOPS = (
    "Xorg", "Xwayland", "gnome-shell", "mutter-x11-frames", "kwin_x11", "kwin_wayland",
    "plasmashell", "sddm-greeter", "gdm", "lightdm-greeter", "Hyprland", "sway", "niri", "labwc",
    "river", "wayfire", "weston", "cosmic-comp", "cinnamon", "muffin", "marco", "xfwm4",
    "budgie-wm", "picom", "quickshell", "waybar", "xdg-desktop-portal", "xdg-desktop-portal-gnome",
    "xdg-desktop-portal-kde", "xdg-desktop-portal-hyprland",
)  # fmt: skip
LEFT_OPEN = ("firefox", "discord", "steamwebhelper")


@pytest.fixture
def desk() -> Desk:
    """A compositor that draws a clock."""
    found = Desk()
    found.open("gnome-shell", mb=390, use=(3, 0, 0))
    return found


def at_work(desk: Desk) -> None:
    """A task of ours has the whole GPU for itself; its model is loaded beside it."""
    desk.open("python3", "C", mb=4000, use=(100, 60, 60), ours=True)
    desk.open("ollama", "C", mb=5000, ours=True)


def safe(reading: Reading) -> bool:
    return decide(RULES, [reading], 0).safe


def blip(start: float, percent: float, length_s: float) -> Callable[[float], Use]:
    return lambda at: (percent if start <= at < start + length_s else 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("lists", "every_s"), [("G", 1.0), ("C+G", 30.0)])
@pytest.mark.parametrize("name", DESKTOPS)
def test_a_desktop_of_the_list_at_rest_never_counts(
    tmp_path: Path, name: str, lists: str, every_s: float
) -> None:
    desk = Desk()
    desk.open(name, lists, mb=390, use=(4, 0, 0))
    assert all(safe(one) for one in desk.looks(desk.source(tmp_path), 10, every_s))


@CADENCES
@pytest.mark.parametrize("busy", [False, True], ids=["no task", "our task at 100 %"])
@pytest.mark.parametrize(
    "resting", [ALLOWED, Resting(frozenset(LEFT_OPEN))], ids=["all may", "those listed may"]
)
def test_browser_chat_and_steam_left_open_may_rest_when_the_owner_says_so(
    tmp_path: Path, desk: Desk, resting: Resting, busy: bool, every_s: float
) -> None:
    for name in LEFT_OPEN:
        desk.open(name, mb=290, use=(1, 0, 0))
    if busy:
        at_work(desk)
    source = desk.source(tmp_path, resting)
    assert all(safe(one) for one in desk.looks(source, 10, every_s))


@CADENCES
def test_without_the_owners_consent_each_of_them_blocks_and_is_named_with_the_line_to_add(
    tmp_path: Path, desk: Desk, every_s: float
) -> None:
    for name in LEFT_OPEN:
        desk.open(name, mb=290)
    for reading in desk.looks(desk.source(tmp_path), 10, every_s):
        assert (reading.present, reading.code) == (True, "foreign_gpu_process")
        for name, holder in zip(LEFT_OPEN, reading.holders, strict=True):
            assert f"{name} (uid 1000, process " in holder.who and "290 MiB" in holder.who
            line = f'add "gpu_may_rest: [{name}]" to /opt/rae-node/agent/owner.yaml'
            assert holder.ends == f"close it, or let it rest: {line}"


def test_each_line_that_is_added_lets_one_more_program_rest(tmp_path: Path, desk: Desk) -> None:
    for name in LEFT_OPEN:
        desk.open(name)
    names: frozenset[str] = frozenset()
    for left in (3, 2, 1, 0):
        reading = desk.source(tmp_path, Resting(names)).read()
        assert len(reading.holders) == left
        if left:
            line = reading.holders[0].ends.partition("gpu_may_rest: [")[2].partition("]")[0]
            before, names = names, frozenset(line.split(", "))
            assert before < names
    assert names == frozenset(LEFT_OPEN)


@CADENCES
@pytest.mark.parametrize("busy", [False, True], ids=["no task", "our task at 100 %"])
def test_our_task_and_our_model_never_count(
    tmp_path: Path, desk: Desk, busy: bool, every_s: float
) -> None:
    desk.open("ollama", "C", mb=12000, ours=True)
    if busy:
        pid = desk.open("ffmpeg", "C+G", mb=2000, use=(100, 100, 100), ours=True)
        desk.streams.append((pid, "encodes video of 3840x2160"))
    assert all(safe(one) for one in desk.looks(desk.source(tmp_path), 10, every_s))


@pytest.mark.parametrize("shares", [True, False], ids=["shares", "no shares"])
def test_our_task_does_not_count_after_its_end_either(tmp_path: Path, shares: bool) -> None:
    desk = Desk(shares=shares)
    if shares:  # without them, a compositor would count beside the task
        desk.open("gnome-shell", use=(3, 0, 0))
    pid = desk.open("ffmpeg", "C", use=(100, 0, 80), ours=True)
    source = desk.source(tmp_path)
    assert all(safe(one) for one in desk.looks(source, 1, 1))
    desk.ours.remove(pid)
    # NVML shows what it did for a while: in its shares, and in the whole GPU's use.
    ended = desk.now + 1.5
    desk.programs[pid] = replace(
        desk.programs[pid], lists="", use=lambda at: (100, 0, 80) if at < ended else (0, 0, 0)
    )
    assert all(safe(one) for one in desk.looks(source, 1, 1))


@CADENCES
def test_a_moment_of_work_ends_nothing(tmp_path: Path, desk: Desk, every_s: float) -> None:
    for minute in range(10):
        desk.open("waybar", mb=1, use=blip(desk.now + 60 * minute + 29.5, 60, 0.5))
    at_work(desk)
    assert all(safe(one) for one in desk.looks(desk.source(tmp_path), 10, every_s))


def test_what_the_gpu_does_for_others_now_keeps_work_from_beginning(
    tmp_path: Path, desk: Desk
) -> None:
    source = desk.source(tmp_path)
    list(desk.looks(source, 1, 1))
    desk.open("Xwayland", use=blip(desk.now + 1, 96, 0.4))
    reading = next(desk.looks(source, 1, 1))
    assert reading.peaks["gpu_percent"] == 99
    decision = decide(RULES, [reading], 0)
    assert not reading.holders
    assert (decision.safe, decision.may_poll) == (True, False)


Present = Callable[[Desk], object]
STREAM = "encodes video of 1920x1080"
NEVER_MISSED: dict[str, tuple[Present, str]] = {
    "a film at 2 % GPU and 12 % decoder": (
        lambda desk: desk.open("firefox", mb=290, use=(2, 0, 12)), "gpu_in_use",
    ),
    "a film at 4 % of a fast decoder": (
        lambda desk: desk.open("mpv", "C+G", mb=250, use=(1, 0, 4)), "gpu_in_use",
    ),
    "a call": (lambda desk: desk.open("discord", mb=240, use=(4, 8, 6)), "gpu_in_use"),
    "a game at its start": (
        lambda desk: desk.open("Game.exe", "C+G", mb=900, use=(45, 0, 0)), "gpu_in_use",
    ),
    "somebody scrolls, and the compositor draws": (
        lambda desk: (desk.open("firefox", use=(5, 0, 0)), desk.open("Xorg", use=(4, 0, 0))),
        "gpu_in_use",
    ),
    "a stream to another room": (
        lambda desk: desk.streams.append((desk.open("sunshine", mb=300), STREAM)), "gpu_stream",
    ),
    "a capture of the screen by a program that NVML does not list": (
        lambda desk: desk.streams.append((desk.open("recorder", ""), "captures the screen")),
        "gpu_stream",
    ),
    "an idle compute process": (
        lambda desk: desk.open("python3", "C", mb=300), "foreign_gpu_process",
    ),
    "a compute process by a desktop's name": (
        lambda desk: desk.open("gnome-shell", "C", mb=300), "foreign_gpu_process",
    ),
    "a paused game": (
        lambda desk: desk.open("Game.exe", mb=1700, use=(1, 0, 0)), "gpu_vram_budget",
    ),
    "programs whose memory is not known": (
        lambda desk: (desk.open("blender", mb=None), desk.open("a file's cache", "C+G", mb=2000)),
        "gpu_vram_budget",
    ),
}  # fmt: skip


@CADENCES
@pytest.mark.parametrize("busy", [False, True], ids=["no task", "our task at 100 %"])
@pytest.mark.parametrize("what", NEVER_MISSED)
def test_whoever_needs_the_gpu_is_never_missed(
    tmp_path: Path, desk: Desk, what: str, busy: bool, every_s: float
) -> None:
    begin, code = NEVER_MISSED[what]
    if busy:
        at_work(desk)
    source = desk.source(tmp_path, ALLOWED)
    assert all(safe(one) for one in desk.looks(source, 1, every_s))
    begin(desk)
    seen = list(desk.looks(source, 10, every_s))
    late = [number for number, one in enumerate(seen) if not one.present]
    assert late == list(range(len(late))), "once seen, it counts on"
    assert len(late) * every_s < WINDOW_S
    assert {one.code for one in seen[len(late) :]} == {code}
    assert seen[-1].holders[0].ends


@CADENCES
def test_a_film_is_seen_where_the_driver_gives_no_share_of_the_decoder(
    tmp_path: Path, desk: Desk, every_s: float
) -> None:
    desk.open("librewolf", use=(2, 0, 12), shown=False)
    for reading in desk.looks(desk.source(tmp_path, ALLOWED), 10, every_s):
        assert reading.code == "gpu_in_use"
        who = "programs whose share NVML does not give, of gnome-shell and librewolf"
        assert reading.holders[0].who == f"{who}: 12 % of the GPU's video decoder"


def test_a_film_is_seen_though_nvml_does_not_list_its_player(tmp_path: Path) -> None:
    desk = Desk()
    desk.open("chrome", lists="", use=(2, 0, 12), shown=False)
    assert desk.source(tmp_path).read().code == "gpu_in_use"
    beside = Desk()
    at_work(beside)
    beside.open("chrome", lists="", use=(2, 0, 12))
    assert "chrome" in beside.source(tmp_path).read().holders[0].who


def test_without_shares_the_whole_gpus_use_decides_also_beside_our_task(
    tmp_path: Path, desk: Desk
) -> None:
    desk.shares = False
    assert safe(desk.source(tmp_path).read())
    at_work(desk)
    assert desk.source(tmp_path).read().code == "gpu_in_use"
    alone = Desk(shares=False)
    at_work(alone)
    reading = alone.source(tmp_path).read()
    assert safe(reading) and reading.measures == {"gpu_percent": 0.0, "vram_gb": 0.098}


def test_use_of_the_processors_by_no_listed_process_is_compared_with_the_limit_alone(
    tmp_path: Path,
) -> None:
    desk = Desk()
    desk.open("hidden", lists="", use=(90, 0, 0), shown=False)
    assert safe(desk.source(tmp_path).read())
    desk.open("hidden too", lists="", use=(5, 0, 0), shown=False)
    assert decide(RULES, [desk.source(tmp_path).read()], 0).reasons == ("gpu_percent_high",)
