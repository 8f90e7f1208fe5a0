"""Molecule's scenarios, on one lab: what each role does and undoes on a host of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.site import Site


@pytest.mark.parametrize("name", ["firewall", "tailscale", "control"])
def test_a_role_alone(site: Site, name: str) -> None:
    site.scenario(name)


def test_two_roles_at_once_each_on_a_host_of_its_own(site: Site) -> None:
    with ThreadPoolExecutor() as both:
        list(both.map(site.scenario, ["ollama", "node"]))
