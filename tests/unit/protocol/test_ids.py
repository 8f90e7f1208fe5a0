"""Ids that clients make: unique, and sorted by age."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from rae_protocol import models
from rae_protocol.client import uuid7, uuid7s

MILLIS = st.integers(0, 2**47)


@given(MILLIS, MILLIS)
def test_ids_sort_by_their_millisecond(one: int, other: int) -> None:
    first, second = sorted((one, other))
    if first != second:
        assert uuid7((first + 0.5) / 1000) < uuid7((second + 0.5) / 1000)


@given(MILLIS)
def test_ids_are_version_7_with_the_rfc_variant(millis: int) -> None:
    made = uuid.UUID(uuid7((millis + 0.5) / 1000))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == millis


def test_ids_of_the_same_moment_differ() -> None:
    assert len({uuid7(1_767_225_600.0) for _ in range(1000)}) == 1000
    assert len(set(uuid7s(1000, 1_767_225_600.0))) == 1000


def test_control_takes_such_an_id() -> None:
    models.parse(models.TaskSpec, {"kind": "cli", "task_id": uuid7()})
