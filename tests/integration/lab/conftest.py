"""Fixtures: a lab for all tests, and a node in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.lab import node
from tests.integration.lab.playbooks import Site
from tests.lab import Host, Lab
from tests.lab.image import PYTHON
from tools import wheelhouse


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


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """A control host and a node with nothing of ours, an inventory, and wheels to install."""
    assert wheelhouse.main([PYTHON]) == 0
    with Lab() as running:
        running.boot("control", "node1")
        yield Site(running, running.write_inventory().parent)
