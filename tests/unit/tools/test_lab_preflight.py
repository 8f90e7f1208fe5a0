"""What the lab says to a machine that cannot have one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import image, preflight

CGROUP = Path("/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("packages", "uid", "cgroup", "said"),
    [
        (["mmdebstrap", "nftables"], 0, CGROUP,
         "as root: apt-get install -y --no-install-recommends mmdebstrap nftables"),
        ([], 1000, CGROUP, "run it as root"),
        ([], 0, None, "mount -t cgroup2 none DIR"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_the_way_out(
    packages: list[str], uid: int, cgroup: Path | None, said: str
) -> None:
    assert said in str(preflight.problem(packages, uid, cgroup))


def test_a_machine_with_everything_has_no_problem() -> None:
    assert preflight.missing(lambda _name: True) == []
    assert preflight.problem([], 0, CGROUP) is None


def test_go_must_be_new_enough() -> None:
    assert preflight.go_problem("go1.26.6") is None
    assert preflight.go_problem("go1.27") is None
    for said in ("go1.26.5", "go1.9.7", "", None):
        assert "https://go.dev/dl/" in str(preflight.go_problem(said))


def test_a_machine_without_tun_is_told_how_to_get_it() -> None:
    assert "modprobe tun" in str(preflight.problem([], 0, CGROUP, tun=False))


def test_each_missing_program_is_a_package() -> None:
    assert preflight.missing(lambda name: name != "nft") == ["nftables"]
    assert preflight.missing(lambda _name: False) == sorted(set(preflight.NEEDED.values()))


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup/unified"),
        ("30 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw", "/sys/fs/cgroup"),
        ("30 23 0:26 /a /somewhere rw - cgroup2 cgroup2 rw", None),
        ("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None),
    ],
)
def test_the_cgroup2_tree_is_found_where_it_is(line: str, where: str | None) -> None:
    assert preflight.unified_cgroup(line) == (Path(where) if where else None)


def test_an_image_is_named_by_its_packages_in_the_folder_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAE_LAB_CACHE", str(tmp_path))
    assert image.path().parent == tmp_path
    assert image.path().name.startswith(f"{image.SUITE}-") and image.path().suffix == ".tar"
