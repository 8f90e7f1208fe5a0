"""Molecule's scenarios, on one lab: what each role does and undoes on a host of its own."""

from __future__ import annotations

import pytest

from tests.e2e.site import Site


@pytest.mark.parametrize("name", ["firewall", "tailscale", "control", "ollama", "node"])
def test_a_role_alone(site: Site, name: str) -> None:
    site.scenario(name)
