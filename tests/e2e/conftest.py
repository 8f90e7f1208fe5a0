"""One lab, converged once: clean hosts → the whole site → nodes that are lent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.site import MOLECULE, NODES, Site
from tests.lab import Lab

_TIMES = pytest.StashKey[dict[str, float]]()


def pytest_collection_modifyitems() -> None:
    if not MOLECULE.exists():
        raise pytest.UsageError(
            f"{MOLECULE} is missing: these tests need Molecule, and it needs Python 3.11 or newer: "
            "say make venv PYTHON=/path/to/python3.11; make test leaves these tests out"
        )


@pytest.fixture(scope="session")
def clean(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Hosts with nothing of ours, and the inventory."""
    with Lab() as lab:
        lab.boot("control", *NODES, "outsider", "operator", "spare1", "spare2", "spare3")
        site = Site(lab, lab.write_inventory())
        request.config.stash[_TIMES] = site.times
        lab.join("operator")
        yield site


@pytest.fixture(scope="session")
def site(clean: Site) -> Site:
    """Molecule's `default`: syntax, check on clean hosts, site.yml, again without a change."""
    clean.scenario("default", verbosity=3)  # test_secrets reads it
    return clean


@pytest.fixture(scope="session")
def lent(site: Site) -> Site:
    """Molecule's `enable_node`: what it refuses, then both nodes work."""
    site.scenario("enable_node")
    return site


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """What each scenario and playbook took."""
    if times := config.stash.get(_TIMES, {}):
        terminalreporter.section("seconds of scenarios and playbooks")
        for what, seconds in times.items():
            terminalreporter.write_line(f"{what:24} {seconds:5.0f}")
