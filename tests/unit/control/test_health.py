"""A node that eats the queue is found; a bad submitter or a flaky program never makes one."""

from __future__ import annotations

import time

from rae_control.core.health import Health, Reporter


def node(node_id: str, machine: str | None = None, *, trusted: bool = False) -> Reporter:
    return Reporter(node_id, machine or f"machine of {node_id}", trusted)


def broken(health: Health) -> None:
    """Five tasks fail on `n`."""
    for number in range(5):
        health.ended(node("n"), f"t{number}", "lane", ok=False)


def test_different_tasks_that_fail_in_a_row_while_such_tasks_succeed_elsewhere_cordon_a_node() -> (
    None
):
    health = Health(5)
    for number in range(5):
        health.ended(node("hole"), f"t{number}", "lane", ok=False)
        health.ended(node("good"), f"u{number}", "lane", ok=True)
    assert health.to_cordon() == {}, "the tasks may be to blame"
    health.ended(node("good"), "t0", "lane", ok=True)
    assert health.to_cordon() == {}
    health.ended(node("fine"), "t3", "lane", ok=True)
    why = health.to_cordon()["hole"]
    assert why == "5 different tasks in a row failed here, 2 of them succeeded elsewhere"
    assert health.suspect("good") is None


def test_what_a_single_node_reports_is_shown_and_cordons_no_other_one() -> None:
    health = Health(5)
    broken(health)
    for number in range(5):
        health.ended(node("liar"), f"t{number}", "lane", ok=True)
    assert "5 of them succeeded elsewhere" in str(health.suspect("n"))
    assert health.to_cordon() == {}


def test_two_nodes_on_one_machine_and_one_node_with_two_names_for_it_are_a_single_one() -> None:
    health = Health(5)
    broken(health)
    health.ended(node("a", "m"), "t0", "lane", ok=True)
    health.ended(node("b", "m"), "t1", "lane", ok=True)
    assert health.to_cordon() == {}
    health = Health(5)
    broken(health)
    health.ended(node("a", "m"), "t0", "lane", ok=True)
    health.ended(node("a", "another"), "t1", "lane", ok=True)
    assert health.to_cordon() == {}


def test_two_nodes_or_a_trusted_one_are_believed() -> None:
    for second in (node("b"), node("a", trusted=True)):
        health = Health(5)
        broken(health)
        health.ended(node("a"), "t0", "lane", ok=True)
        health.ended(second, "t1", "lane", ok=True)
        assert set(health.to_cordon()) == {"n"}


def test_tasks_that_are_not_tried_again_are_shown_and_cordon_no_node() -> None:
    health = Health(5)
    for number in range(6):
        health.ended(node("n1"), f"t{number}", "lane", ok=False)
    for number in range(20):
        health.ended(node("n2"), f"u{number}", "lane", ok=True)
    assert "20 like them succeeded elsewhere" in str(health.suspect("n1"))
    assert health.to_cordon() == {}


def test_one_good_task_beside_many_bad_ones_costs_no_node() -> None:
    health = Health(5)
    health.ended(node("n1"), "fine", "lane", ok=True)
    for number in range(6):
        health.ended(node("n2"), f"bad{number}", "lane", ok=False)
    health.ended(node("n1"), "fine too", "lane", ok=True)
    assert health.suspect("n2") is not None
    assert health.to_cordon() == {}


def test_it_is_shown_before_it_is_cordoned() -> None:
    health = Health(5)
    for number in range(3):
        health.ended(node("hole"), f"t{number}", "lane", ok=False)
    health.ended(node("good"), "t0", "lane", ok=True)
    assert health.suspect("hole") is not None
    assert health.to_cordon() == {}


def test_the_same_task_again_and_again_says_nothing_of_the_node() -> None:
    health = Health(5)
    for _ in range(9):
        health.ended(node("n"), "bad", "lane", ok=False)
        health.ended(node("other"), "u", "lane", ok=True)
    assert health.suspect("n") is None


def test_a_submitter_whose_tasks_fail_everywhere_costs_no_node() -> None:
    health = Health(3)
    for number in range(30):
        health.ended(node(f"n{number % 3}"), f"bad{number}", "their lane", ok=False)
        health.ended(node("n9"), f"fine{number}", "another lane", ok=True)
    assert health.to_cordon() == {}


def test_a_program_that_fails_half_of_the_time_costs_no_node() -> None:
    health = Health(3)
    for number in range(60):
        # In threes, so that each node has rows of failures.
        health.ended(node(f"n{number % 2}"), f"t{number}", "lane", ok=(number // 3) % 2 == 0)
        assert health.to_cordon() == {}


def test_a_success_or_an_operator_begins_anew() -> None:
    health = Health(2)
    for number in range(5):
        health.ended(node("n"), f"t{number}", "lane", ok=False)
        health.ended(node(f"m{number % 2}"), f"t{number}", "lane", ok=True)
    assert health.to_cordon()
    health.forget("n")
    assert health.to_cordon() == {}
    health.ended(node("n"), "t9", "lane", ok=False)
    health.ended(node("n"), "t10", "lane", ok=True)
    assert health.suspect("n") is None


def test_tasks_that_fail_everywhere_in_many_lanes_cost_milliseconds_at_each_result() -> None:
    health, nodes, lanes = Health(5), 100, 200
    for number in range(200 * nodes):
        lane = (number + number // nodes) % lanes  # each node has failures in each of them
        health.ended(node(f"n{number % nodes}"), f"t{number}", f"l{lane}", ok=False)
    began = time.process_time()
    for number in range(5):
        health.ended(node("n0"), f"u{number}", f"l{number}", ok=False)
        assert health.to_cordon() == {}
    assert (time.process_time() - began) / 5 < 0.02
