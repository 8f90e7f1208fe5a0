"""Fixtures: machines in each state, resumed for one test, with a control of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.lab import vm_image, vm_states
from tests.lab.vm import Vm
from tests.vm.guest import Guest, Lent, MakeGuest, connect, make_mesh


@pytest.fixture
def make_guest() -> Iterator[MakeGuest]:
    """Resume machines and connect them: `make_guest("x11", config={"guard_sources": […]})`.

    Arguments are those of Lent. All ends with the test.
    """
    with ExitStack() as stack:

        def make(state: vm_states.Name, **lent: Any) -> Guest:
            snapshot = Lent(state, **lent).snapshot(print)
            mesh = stack.enter_context(make_mesh())
            machine = stack.enter_context(Vm(vm_image.build(print), snapshot))
            stack.callback(_say_log, machine)  # pytest shows it beside a failure
            return connect(machine, mesh)

        yield make


def _say_log(machine: Vm) -> None:
    print(machine.unit_log("rae-node")[-4000:])


@pytest.fixture
def vm_text(make_guest: MakeGuest) -> Guest:
    """A user logged in at a text console."""
    return make_guest("text")


@pytest.fixture
def vm_x11(make_guest: MakeGuest) -> Guest:
    """A user logged in at Xorg."""
    return make_guest("x11")


@pytest.fixture
def vm_wayland(make_guest: MakeGuest) -> Guest:
    """A user logged in at a Wayland compositor (sway)."""
    return make_guest("wayland")


@pytest.fixture
def vm_greeter(make_guest: MakeGuest) -> Guest:
    """No user logged in; lightdm's greeter is on the screen."""
    return make_guest("greeter")
