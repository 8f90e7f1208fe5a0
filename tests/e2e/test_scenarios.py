"""Molecule's scenarios, on one lab: what each role does and undoes on a host of its own."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.site import Site

# Those of one row share hosts: spare1 and spare2; spare3.
ROWS = (("firewall", "tailscale", "control"), ("node", "ollama"))


def test_each_role_alone_two_at_a_time(site: Site) -> None:
    def one_after_another(names: Iterable[str]) -> None:
        for name in names:
            site.scenario(name)

    with ThreadPoolExecutor() as rows:
        list(rows.map(one_after_another, ROWS))
