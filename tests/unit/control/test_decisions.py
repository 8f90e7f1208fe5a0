"""Lanes, leases, retries, rates: pure decisions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_control.config import ControlConfig, load_config
from rae_control.core.lanes import LaneTable, lane_id
from rae_control.core.leases import Lease, LeaseTable
from rae_control.core.limits import Bucket
from rae_control.core.retries import Limits, after_failure, after_interruption
from rae_control.errors import ConfigError

LIMITS = Limits(5, 300, 10, 600, 20)


def lease(lease_id: str = "l1", *, acked: float | None = 0.0, ttl: float = 120.0) -> Lease:
    return Lease(lease_id, "t1", 1, "n1", "cpu0", "lane", ttl, 3600.0, 0.0, 0.0, acked)


def test_contract_defaults_of_every_period() -> None:
    config = ControlConfig()
    assert config.heartbeat_interval_s == 30
    assert config.heartbeat_timeout_s == 120
    assert config.ack_timeout_s == 10
    assert (config.default_lease_ttl_s, config.lease_margin_s, config.max_lease_ttl_s) == (
        120,
        10,
        3600,
    )
    assert config.node_token_ttl_s == 12 * 3600
    assert config.skew_s == 60
    assert config.reconcile_interval_s == 10
    assert (config.max_lanes, config.max_queued) == (1000, 200_000)
    assert config.max_interruptions == 20
    assert config.min_lease_ttl_s == 70


def test_a_wrong_setting_is_named_with_what_is_allowed() -> None:
    for sets, word in (
        (["ack_timout_s=1"], "ack_timout_s"),
        (["ack_timeout_s=soon"], "ack_timeout_s"),
        (["ack_timeout_s=-1"], "greater than 0"),
        (["heartbeat_interval_s=100"], "two heartbeats"),
    ):
        try:
            load_config(None, sets)
        except ConfigError as error:
            assert word in str(error)
        else:
            raise AssertionError(f"{sets} was taken")
    assert load_config(None, ["heartbeat_interval_s=0.5"]).heartbeat_interval_s == 0.5


@pytest.mark.parametrize("written", ["010", "1:30", "0x10", "1_000", "!!int 010", "'10'"])
def test_a_number_of_controls_settings_is_decimal_or_refused(tmp_path: Path, written: str) -> None:
    file = tmp_path / "control.yaml"
    file.write_text(f"ack_timeout_s: 5\ncordon_after: {written}\n")
    with pytest.raises(ConfigError, match=r"control\.yaml:2: .*(decimal|no valid YAML)"):
        load_config(file)
    with pytest.raises(ConfigError, match=r"decimal|no YAML"):
        load_config(None, [f"cordon_after={written}"])


def test_what_cannot_get_better_is_final_and_the_rest_backs_off() -> None:
    assert after_failure("E_DENY", 1, 3, LIMITS).final
    pauses = [after_failure("E_EXIT", n, 99, LIMITS).pause_s for n in range(1, 9)]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]
    assert after_failure("E_EXIT", 3, 3, LIMITS).final


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_interruptions_pause_longer_and_longer_but_never_endlessly(total: int, in_row: int) -> None:
    verdict = after_interruption("yield_owner", total, in_row, LIMITS)
    assert verdict.final == (total >= 20)
    assert 0 <= verdict.pause_s <= 600
    if not verdict.final:
        assert (verdict.pause_s == 0) == (in_row < 3)


def test_a_lease_that_is_not_renewed_expires_after_its_ttl() -> None:
    table = LeaseTable()
    table.open(lease())
    assert table.end_expired(120.0) == []
    assert [x.lease_id for x in table.end_expired(120.1)] == ["l1"]


def test_a_renewal_counts_only_for_the_lease_s_own_node_and_after_its_ack() -> None:
    table = LeaseTable()
    table.open(lease("mine"))
    table.open(lease("unacked", acked=None))
    assert table.renew(["mine", "unacked", "gone"], "n1", 100.0) == ["gone"]
    assert table.renew(["mine"], "n2", 150.0) == ["mine"]
    assert [x.lease_id for x in table.end_expired(130.0)] == ["unacked"]


def test_heartbeats_without_a_list_cannot_hold_a_lease_for_ever() -> None:
    table = LeaseTable()
    table.open(lease())
    for now in range(0, 3600 + 3 * 120, 30):
        table.renew_all("n1", float(now))
    assert not table.end_expired(3600 + 2 * 120 - 1.0)
    assert [(one.lease_id, one.named) for one in table.end_expired(3600 + 2 * 120 + 1.0)] == [
        ("l1", False)
    ]


def test_a_lease_that_the_reaper_ends_is_not_renewed_any_more() -> None:
    table = LeaseTable()
    table.open(lease())
    assert table.end_expired(121.0)
    # The write that ends it takes a while, and a heartbeat comes meanwhile; or the disk is full.
    assert table.renew(["l1"], "n1", 121.0) == ["l1"]
    table.renew_all("n1", 121.0)
    assert [one.lease_id for one in table.end_expired(122.0)] == ["l1"]


def test_heartbeats_that_name_a_lease_hold_it_however_long_its_input_takes() -> None:
    table = LeaseTable()
    table.open(lease())
    for now in range(0, 10 * 3600, 30):
        assert table.renew(["l1"], "n1", float(now)) == []
        assert not table.end_expired(now + 119.0)


def test_time_that_control_slept_is_granted_to_every_lease() -> None:
    table = LeaseTable()
    table.open(lease())
    table.grant(500.0)
    assert table.end_expired(600.0) == []
    assert table.end_expired(621.0)


def add(table: LaneTable, name: str, seq: int) -> None:
    table.add(name, seq, "{}")


def test_lanes_serve_priority_then_fairness_then_age() -> None:
    table = LaneTable()
    for name, seq in (("p5.a.x", 1), ("p5.a.y", 2), ("p5.b.x", 9), ("p9.c.x", 50)):
        add(table, name, seq)

    def order() -> list[str]:
        return [lane.lane_id for lane in table.in_order(table.lanes.values())]

    assert order() == ["p9.c.x", "p5.a.x", "p5.a.y", "p5.b.x"]
    table.served("p5.a.x")
    assert order() == ["p9.c.x", "p5.b.x", "p5.a.x", "p5.a.y"]
    table.served("p5.b.x")
    assert order() == ["p9.c.x", "p5.a.x", "p5.a.y", "p5.b.x"]


def test_an_empty_lane_goes() -> None:
    table = LaneTable()
    add(table, "p5.a.x", 1)
    add(table, "p5.a.x", 2)
    table.remove("p5.a.x", 2)
    assert table.lanes["p5.a.x"].oldest == 2
    table.remove("p5.a.x", None)
    assert table.lanes == {}


@given(st.lists(st.sampled_from(["p5.a.x", "p5.b.x", "p5.c.x"]), min_size=3, max_size=60))
def test_no_submitter_waits_for_more_than_one_task_of_each_other(names: list[str]) -> None:
    table = LaneTable()
    for seq, name in enumerate(names):
        add(table, name, seq)
    served: list[str] = []
    while table.lanes:
        lane = table.in_order(table.lanes.values())[0].lane_id
        table.served(lane)
        table.remove(lane, None)
        served.append(lane)
    for lane in set(names):
        places = [place for place, name in enumerate(served) if name == lane]
        gaps = [b - a for a, b in pairwise(places)]
        assert all(gap <= len(set(names)) for gap in gaps)


def test_lane_names_are_stable_and_tell_priority_and_submitter() -> None:
    first = lane_id(5, "rae", {"runners": ["cli"], "tags": ["a"]})
    assert first == lane_id(5, "rae", {"tags": ["a"], "runners": ["cli"]})
    assert first.startswith("p5.rae.")
    assert first != lane_id(5, "rae", {"runners": ["cli"]})


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=300))
def test_a_bucket_never_lets_more_through_than_rate_and_burst(steps: list[float]) -> None:
    bucket, now, passed = Bucket(10.0, 5.0, 5.0, 0.0), 0.0, 0
    for step in steps:
        now += step
        passed += bucket.take(now) == 0.0
    assert passed <= 5 + 10 * now + 1


def test_a_missing_gpu_never_ends_a_task() -> None:
    """Contract: C7."""
    assert not after_interruption("E_NOGPU", 99, 99, LIMITS).final
