"""The GPU's rules alone: names, what is needed to decide, and what no fact may ever do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rae_node.guard import gpu_rules as rules
from rae_node.guard.gpu_rules import (
    Program,
    Resting,
    Verdict,
    command_of,
)
from rae_node.guard.gpu_use import ENGINES, WINDOW_S, Client, Facts, Load, Look, facts_of, take

RATES, ENCODER, DECODER = (engine.call for engine in ENGINES.values())
SESSIONS, SHARES = rules.ENCODER_SESSIONS, rules.SHARES
LISTS_AND_MEMORY = (rules.COMPUTE_LIST, rules.GRAPHICS_LIST, rules.MEMORY)
ALL = Resting(everyone=True)
IDLE = dict.fromkeys(ENGINES, 0.0)
PROGRAMS = {
    7: Program(7, "Xorg", "Xorg"),
    8: Program(8, "firefox", "firefox"),
    9: Program(9, "blender", "blender"),
}


def verdict(
    facts: Facts, ours: frozenset[int] = frozenset(), resting: Resting | None = None
) -> Verdict:
    """What a first look decides."""
    look = take(facts, 0.0, ours, (), lambda pid: pid in PROGRAMS)
    return rules.decide(facts, [look], ours, PROGRAMS.get, resting or Resting())


@pytest.mark.parametrize(
    ("cmdline", "command"),
    [
        ("/usr/lib/firefox/firefox\0-contentproc\0-childID\0", "firefox"),
        ("/opt/google/chrome/chrome --type=gpu-process --crash=/home/a/b\0", "chrome"),
        ("Z:\\home\\anna\\Games\\Game.exe\0-window\0", "Game.exe"),
        ("/home/anna/My Games/game\0", "game"),
        ("kwin_wayland\0--wayland-fd\0", "kwin_wayland"),
        ("", ""),
    ],
)
def test_a_command_line_names_its_program(cmdline: str, command: str) -> None:
    assert command_of(cmdline) == command


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (Program(1, "GPU Process", "firefox"), "firefox"),
        (Program(1, "GeckoMain", "firefox-esr"), "firefox-esr"),
        (Program(1, "exe", "exe"), "exe"),
        (Program(1, "chromium", "exe"), "chromium"),
        (Program(1, "steamwebhelper", "steamwebhelper"), "steamwebhelper"),
        (Program(1, "gnome-text-edit", "gnome-text-editor"), "gnome-text-editor"),
        (Program(1, "kworker", ""), "kworker"),
        (Program(1, "Web Content", "no"), "no"),
        (Program(1, "a: b", "[c], #d"), "[c], #d"),
        (Program(1), "a program"),
    ],
)
def test_the_line_to_add_lets_the_program_rest_that_it_is_printed_for(
    program: Program, name: str
) -> None:
    facts = Facts(IDLE, IDLE, {}, (Client(1, 300, True),), used_mb=300)
    look = take(facts, 0.0, (), (), lambda _pid: True)
    consents = [Resting(), Resting(frozenset({"discord", "yes"}))]
    for before in consents:
        (cause,) = rules.decide(facts, [look], (), lambda _pid: program, before).causes
        line = cause.ends.partition('"')[2].rpartition('"')[0]
        names = frozenset(yaml.safe_load(line)["gpu_may_rest"])
        assert names == {*before.names, name}
        after = rules.decide(facts, [look], (), lambda _pid: program, Resting(names))
        assert not after.causes or program == Program(1), "nothing is known of its name"


def test_a_name_as_the_kernel_cuts_it_is_enough() -> None:
    facts = Facts(IDLE, IDLE, {}, (Client(8, 300, True),), used_mb=300)
    look = take(facts, 0.0, (), (), lambda _pid: True)
    editor = Program(8, "Main", "gnome-text-editor")
    for names in ({"gnome-text-edit"}, {"gnome-text-editor"}, {"Main"}):
        consent = Resting(frozenset(names))
        assert not rules.decide(facts, [look], (), lambda _pid: editor, consent).causes


HOSTILE = ("\x1b[2Jfirefox", "fire\nfox", "fire\x9b31mfox", "fire\u202exof", "x" * 131_000)


@pytest.mark.parametrize("name", HOSTILE, ids=["ESC", "newline", "C1", "bidi", "131,000 letters"])
@pytest.mark.parametrize("resting", [Resting(), ALL], ids=["blocks", "rests"])
def test_a_name_that_a_user_made_up_is_printed_in_one_short_printable_line(
    name: str, resting: Resting
) -> None:
    program = Program(8, name[:15], name, 1000)
    shares = {8: {**IDLE, "sm": 50.0}}
    client = Client(8, 3000, True)
    busy = Facts(IDLE, IDLE, shares, (client,), streams=((8, "encodes"),), used_mb=3000)
    unseen = replace(without((RATES, SHARES), Client(8, 300, True)), streams=())
    said = []
    for facts in (busy, unseen):
        look = take(facts, 0.0, (), (), lambda _pid: True)
        found = rules.decide(facts, [look], (), lambda _pid: program, resting)
        said += [*map(str, found.causes), found.blind]
    assert sum(map(bool, said)) >= 3
    for text in said:
        assert text.isprintable() and len(text) < 400
        assert "gpu_may_rest: [" not in text, "the name as it is shown would not match the program"


def test_no_consent_covers_a_program_that_only_computes() -> None:
    facts = Facts(IDLE, IDLE, {}, (Client(9, 300, False),), used_mb=300)
    (cause,) = verdict(facts, resting=Resting(frozenset({"blender"}), everyone=True)).causes
    assert (cause.code, cause.ends) == ("foreign_gpu_process", "end it: no consent covers it")
    assert cause.who == "blender (process 9) computes on the GPU, 300 MiB"


@pytest.mark.parametrize(
    ("engine", "used", "counts"),
    [
        ("sm", 10, False), ("sm", 11, True), ("encoder", 2, False), ("encoder", 3, True),
        ("decoder", 2, False), ("decoder", 3, True),
    ],
)  # fmt: skip
def test_more_than_rest_is_work(engine: str, used: float, counts: bool) -> None:
    shares = {7: {**IDLE, engine: used}}
    facts = Facts(IDLE, IDLE, shares, (Client(7, 300, True),), used_mb=300)
    causes = verdict(facts).causes
    assert [cause.code for cause in causes] == ["gpu_in_use"] * counts
    assert all(cause.who.startswith(f"Xorg (process 7): {used} % of the") for cause in causes)


def test_those_at_work_are_named_with_their_shares() -> None:
    shares = {7: {**IDLE, "sm": 8}, 8: {**IDLE, "sm": 6}, 9: IDLE}
    clients = (Client(7, 300, True), Client(8, 300, True))
    (cause,) = verdict(Facts(IDLE, IDLE, shares, clients, used_mb=600), resting=ALL).causes
    shown = "Xorg (process 7) 8 % and firefox (process 8) 6 %, together"
    assert str(cause) == f"{shown}: 14 % of the GPU's processors; ends at 10 % or less"


@pytest.mark.parametrize(
    ("memory", "used_mb", "counts"),
    [
        ((1000.0, 1048.0), 9000, False),
        ((1000.0, 1049.0), 9000, True),
        ((1000.0, None), 2048, False),
        ((1000.0, None), 2049, True),
    ],
)
def test_clients_at_rest_may_hold_two_gib_together(
    memory: tuple[float | None, ...], used_mb: float, counts: bool
) -> None:
    clients = tuple(Client(pid, held, True) for pid, held in zip((7, 8), memory, strict=True))
    facts = Facts(IDLE, IDLE, {}, clients, used_mb=used_mb)
    causes = verdict(facts, resting=ALL).causes
    assert [cause.code for cause in causes] == ["gpu_vram_budget"] * counts


@pytest.mark.parametrize(
    ("mine", "theirs", "vram_mb"),
    [([500.0], [200.0], 500), ([None], [200.0], 200), ([None], [], 0), ([None], [None], 1000)],
)
def test_memory_that_is_not_ours(
    mine: list[float | None], theirs: list[float | None], vram_mb: float
) -> None:
    clients = [Client(1, held, False) for held in mine] + [Client(7, held, True) for held in theirs]
    facts = Facts(IDLE, IDLE, {}, tuple(clients), used_mb=1000)
    assert verdict(facts, frozenset({1})).vram_mb == vram_mb


def test_figures_that_a_driver_made_up_are_left_out_and_the_others_count() -> None:
    told: dict[str, Any] = {
        "now": {}, "recent": {}, "clients": [], "streams": [], "unknown": {},
        "used_mb": 0, "free_mb": 0,
        "shares": [[1, 3, 0, 0], [2, 4294967295, 0, 0], [3, 0, 0, 1000]],
    }  # fmt: skip
    assert facts_of(told).shares == {
        1: {"sm": 3, "encoder": 0, "decoder": 0},
        2: {"encoder": 0, "decoder": 0},
        3: {"sm": 0, "encoder": 0},
    }
    twice = {**told, "shares": [[1, 30, 0, 4], [1, 5, 2, 101]]}
    assert facts_of(twice).shares == {1: {"sm": 30, "encoder": 2}}


TASK = frozenset({20})
BESIDE_TASK = (Client(8, 300, True), Client(20, 2000, False))
BUSY = {"sm": 95.0, "encoder": 0.0, "decoder": 8.0}


def beside_task(history: list[Facts]) -> Verdict:
    """What is decided after looks a second apart, the task beside a browser that may rest."""
    looks: list[Look] = []
    for second, facts in enumerate(history):
        looks = [*looks, take(facts, float(second), TASK, looks, lambda _pid: True)]
    window = [one for one in looks if len(history) - 1 - one.at < WINDOW_S]
    return rules.decide(history[-1], window, TASK, PROGRAMS.get, ALL)


def on_gpu(whole: Load, shares: dict[int, Load]) -> Facts:
    return Facts(whole, whole, shares, BESIDE_TASK, used_mb=2300)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_figure_made_up_for_one_engine_hides_nothing_that_its_process_does(engine: str) -> None:
    film = {"sm": 30.0, "encoder": 8.0, "decoder": 8.0}
    del film[engine]
    codes = {one.code for one in beside_task([on_gpu(BUSY, {8: film, 20: IDLE})] * 5).causes}
    assert codes == {"gpu_in_use"}
    alone = {name: 0.0 for name in ENGINES if name != engine}
    whole = {**IDLE, engine: 50.0}
    unknown = beside_task([on_gpu(whole, {8: alone, 20: IDLE})] * 5)
    assert f"50 % of the GPU's {ENGINES[engine].label}" in unknown.causes[0].who
    ours = {**IDLE, "sm": 95.0}
    del ours[engine]
    assert not beside_task([on_gpu(BUSY, {8: IDLE, 20: ours})] * 5).causes, "of ours it is no news"


def test_a_figure_made_up_where_the_whole_gpus_is_unknown_too_makes_blind() -> None:
    facts = on_gpu({"sm": 5.0, "encoder": 0.0}, {8: {"sm": 1.0, "encoder": 0.0}, 20: IDLE})
    found = beside_task([facts])
    assert not found.causes and found.blind


@pytest.mark.parametrize("last", range(10, 15))
def test_shares_that_come_with_every_fifth_look_count_in_between(last: int) -> None:
    told = on_gpu(BUSY, {8: {"sm": 1.0, "encoder": 0.0, "decoder": 8.0}, 20: {**IDLE, "sm": 60.0}})
    history = [told if second % 5 == 0 else on_gpu(BUSY, {}) for second in range(last + 1)]
    (cause,) = beside_task(history).causes
    assert cause.who == "firefox (process 8): 8 % of the GPU's video decoder"
    task = on_gpu(BUSY, {8: {"sm": 3.0, "encoder": 0.0, "decoder": 0.0}, 20: {**IDLE, "sm": 90.0}})
    history = [task if second % 5 == 0 else on_gpu(BUSY, {}) for second in range(last + 1)]
    assert not beside_task(history).causes, "our task at 95 % is not taken for the browser"


def test_a_share_counts_on_only_while_the_gpu_works_and_its_process_holds_it() -> None:
    film = on_gpu(BUSY, {8: {"sm": 30.0, "encoder": 0.0, "decoder": 50.0}, 20: IDLE})
    for after in (
        on_gpu(IDLE, {}),
        replace(on_gpu(BUSY, {}), clients=BESIDE_TASK[1:]),
        on_gpu(BUSY, {20: IDLE}),
    ):
        assert take(after, 1.0, TASK, [look_of(film)], lambda _pid: True).load == IDLE
    assert take(on_gpu(BUSY, {}), 1.0, TASK, [look_of(film)], lambda pid: pid != 8).load == IDLE
    assert take(on_gpu(BUSY, {}), 5.0, TASK, [look_of(film)], lambda _pid: True).load == IDLE
    assert take(on_gpu(BUSY, {}), 4.9, TASK, [look_of(film)], lambda _pid: True).by[8]["sm"] == 30


def look_of(facts: Facts) -> Look:
    return take(facts, 0.0, TASK, (), lambda _pid: True)


def test_a_busy_gpu_without_a_share_of_any_process_counts_as_one_that_gives_no_shares() -> None:
    mute = on_gpu(BUSY, {})
    assert not beside_task([mute] * 4).causes, "NVML may be late with the first share of our task"
    assert {one.code for one in beside_task([mute] * 5).causes} == {"gpu_in_use"}
    assert not beside_task([on_gpu(IDLE, {})] * 9).causes, "our model is loaded, and does nothing"
    alone = replace(mute, clients=BESIDE_TASK[1:])
    assert not beside_task([alone] * 9).causes, "there is no other program that could be at work"
    unseen = replace(mute, recent={}, now={})
    assert beside_task([unseen] * 5).blind
    # Looks that are far apart count as well.
    first = take(mute, 0.0, TASK, (), lambda _pid: True)
    assert take(mute, 30.0, TASK, [first], lambda _pid: True).load["sm"] == 95


def test_what_a_process_did_that_has_ended_is_not_counted() -> None:
    facts = Facts(IDLE, IDLE, {99: {"sm": 90, "encoder": 0, "decoder": 90}}, used_mb=0)
    found = verdict(facts)
    assert (found.causes, found.percent) == ((), 0)


def without(calls: tuple[str, ...], *clients: Client) -> Facts:
    """An idle GPU that cannot answer these calls."""
    engines = {engine.call: name for name, engine in ENGINES.items()}
    known = {name: 0.0 for call, name in engines.items() if call not in calls}
    return Facts(
        now=known,
        recent=known,
        shares=None if SHARES in calls else {},
        clients=clients,
        used_mb=None if rules.MEMORY in calls else 300,
        unknown=dict.fromkeys(calls, "Not Supported"),
    )


@pytest.mark.parametrize(
    ("calls", "at_rest_only"),
    [
        *(((call,), False) for call in LISTS_AND_MEMORY),
        ((RATES, SHARES), False),
        ((DECODER, SHARES), True),
        ((ENCODER, SHARES, SESSIONS), True),
    ],
)
def test_a_fact_that_nvml_cannot_give_makes_blind_where_it_is_needed(
    calls: tuple[str, ...], at_rest_only: bool
) -> None:
    alone, beside = verdict(without(calls)), verdict(without(calls, Client(7, 300, True)))
    assert bool(alone.blind) is not at_rest_only
    assert beside.blind and not beside.causes
    assert all(f"{call} (Not Supported)" in beside.blind for call in calls if call != SESSIONS)
    assert beside.blind.endswith("update NVIDIA's driver, or close Xorg")
    assert not verdict(without(calls, Client(9, 300, False))).blind, "it counts already"


@pytest.mark.parametrize(
    "calls",
    [
        (), (RATES,), (SHARES,), (ENCODER,), (DECODER,), (SESSIONS,), ("nvmlDeviceGetFBCSessions",),
        (ENCODER, SHARES), (RATES, ENCODER, DECODER, SESSIONS),
    ],
)  # fmt: skip
def test_a_fact_that_another_stands_in_for_is_not_needed(calls: tuple[str, ...]) -> None:
    for clients in ((), (Client(7, 300, True),)):
        found = verdict(without(calls, *clients))
        assert (found.blind, found.causes) == ("", ())


# Mostly at rest, and around what is decided by: else nothing would be left to make worse.
PERCENT = st.sampled_from([0] * 8 + [1, 2, 3, 5, 10, 11, 90, 100])
MEMORY_MB = st.sampled_from([0, 300, 1024, 1025, 2048, 2049, None])
LOADS = st.builds(lambda *used: dict(zip(ENGINES, used, strict=True)), PERCENT, PERCENT, PERCENT)
PIDS = st.sampled_from([1, 2, 6, 7, 7, 8, 8, 9])
DRAWS = st.sampled_from([True] * 5 + [False])
CLIENTS = st.lists(
    st.builds(Client, PIDS, MEMORY_MB, DRAWS), max_size=3, unique_by=lambda one: one.pid
).map(tuple)
EVERY_CALL = [RATES, ENCODER, DECODER, SHARES, SESSIONS, *LISTS_AND_MEMORY]
CALLS = st.just(frozenset[str]()) | st.frozensets(st.sampled_from(EVERY_CALL), max_size=2)
CONSENTS = st.sampled_from([Resting(), Resting(frozenset({"firefox"})), Resting(everyone=True)])
OURS = st.frozensets(st.integers(1, 3))


@st.composite
def gpus(draw: st.DrawFn) -> Facts:
    """A GPU that may not be able to answer some calls."""
    unknown = draw(CALLS)
    engines = {name for name, engine in ENGINES.items() if engine.call not in unknown}
    recent = {name: used for name, used in draw(LOADS).items() if name in engines}
    shares = None if SHARES in unknown else draw(st.dictionaries(PIDS, LOADS, max_size=2))
    streams = draw(st.sampled_from([(), (), ((1, "encodes"),), ((8, "encodes"),)]))
    used_mb = None if rules.MEMORY in unknown else draw(st.integers(0, 3000))
    reasons = dict.fromkeys(unknown, "Not Supported")
    return Facts(recent, recent, shares, draw(CLIENTS), streams, used_mb, None, reasons)


def absent(
    history: list[Facts], ours: frozenset[int], resting: Resting, limit_too: bool = False
) -> bool:
    """Whether no user needs the GPU, after these looks a second apart."""
    looks: list[Look] = []
    for second, facts in enumerate(history):
        looks.append(take(facts, second, ours, looks, lambda pid: pid != 6))
    found = rules.decide(history[-1], looks, ours, PROGRAMS.get, resting)
    percent_too = not limit_too or (found.percent is not None and found.percent <= 90)
    return not found.causes and not found.blind and percent_too


@given(st.lists(gpus(), min_size=1, max_size=4), OURS, CONSENTS, st.data())
def test_one_more_client_or_more_use_never_makes_it_free(
    history: list[Facts], ours: frozenset[int], resting: Resting, data: st.DataObject
) -> None:
    before = absent(history, ours, resting, limit_too=True)
    which = data.draw(st.integers(0, len(history) - 1))
    facts = history[which]
    name = data.draw(st.sampled_from(sorted(ENGINES)))
    pid = data.draw(st.integers(4, 12))
    worse = []
    if name in facts.recent:
        raised = {**facts.recent, name: data.draw(st.integers(int(facts.recent[name]), 100))}
        worse.append(replace(facts, recent=raised, now=raised))
    # A first share also tells that the driver gives shares: no use that is only added.
    if facts.shares:
        share = facts.shares.get(pid, IDLE)
        more = {**share, name: data.draw(st.integers(int(share[name]), 100))}
        worse.append(replace(facts, shares={**facts.shares, pid: more}))
    if pid not in {one.pid for one in facts.clients}:
        held = data.draw(st.integers(0, 3000) | st.none())
        one = Client(pid, held, data.draw(st.booleans()))
        used_mb = None if facts.used_mb is None else facts.used_mb + (held or 0)
        worse.append(replace(facts, clients=(*facts.clients, one), used_mb=used_mb))
    worse.append(replace(facts, streams=(*facts.streams, (pid, "encodes"))))
    for each in worse:
        after = [*history[:which], each, *history[which + 1 :]]
        assert absent(after, ours, resting, limit_too=True) <= before


@given(
    st.lists(gpus(), min_size=1, max_size=4), CONSENTS,
    st.lists(st.builds(Client, st.integers(20, 22), st.integers(0, 9000), st.booleans()),
             min_size=1, max_size=3, unique_by=lambda one: one.pid),
    st.lists(LOADS, min_size=3, max_size=3),
)  # fmt: skip
def test_what_ours_does_on_the_gpu_never_makes_anybody_present(
    history: list[Facts], resting: Resting, mine: list[Client], loads: list[dict[str, int]]
) -> None:
    ours = frozenset(range(20, 23))
    with_ours = []
    for facts in history:
        # Without shares it looks like a foreign client; that is a test of its own.
        if facts.shares is None and facts.clients:
            return
        extra = dict(zip(sorted(ours), loads, strict=True))
        whole = {
            name: min(100, used + sum(load[name] for load in loads))
            for name, used in facts.recent.items()
        }
        held = sum(one.vram_mb or 0 for one in mine)
        with_ours.append(
            replace(
                facts,
                now=whole,
                recent=whole,
                shares=None if facts.shares is None else {**facts.shares, **extra},
                clients=(*facts.clients, *mine),
                streams=(*facts.streams, (20, "encodes")),
                used_mb=None if facts.used_mb is None else facts.used_mb + held,
            )
        )
    if absent(history, ours, resting):
        assert absent(with_ours, ours, resting)
