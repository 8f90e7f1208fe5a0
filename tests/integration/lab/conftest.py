"""Fixtures: a lab for all tests, and a node in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.lab import node
from tests.lab import Host, Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A lab without hosts."""
    with Lab() as running:
        yield running


@pytest.fixture(scope="session")
def host(lab: Lab) -> Host:
    """A host of the lab with a node's units, which tests leave as they found it."""
    (booted,) = lab.boot("node1")
    node.install(booted)
    return booted


@pytest.fixture(scope="session")
def pair(lab: Lab) -> tuple[Host, Host]:
    """Two hosts with nothing of ours, which tests may change."""
    left, right = lab.boot("left", "right")
    return left, right
