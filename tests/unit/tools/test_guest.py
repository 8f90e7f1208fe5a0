"""What the guest user may read: a checkout made with umask 077 is copied, and stays as it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tools.guest import readable, readable_copy


def modes(folder: Path) -> dict[str, int]:
    found = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in found}


def test_a_checkout_for_its_owner_alone_is_copied_for_everybody(tmp_path: Path) -> None:
    source, copy = tmp_path / "x", tmp_path / "copy"
    before = os.umask(0o077)
    try:
        for folder in (source / "a", source / ".git", source / "lib" / "build"):
            folder.mkdir(parents=True)
        (source / "a" / "module.py").write_text("x = 1")
        (source / "a" / "program").touch(mode=0o755)
        (source / "lib" / "build" / "module.py").touch()
        (source / "link").symlink_to("a/module.py")
    finally:
        os.umask(before)
    known = modes(source)
    assert not readable(source)
    readable_copy(source, copy)
    assert readable(copy) and modes(source) == known
    assert (copy / "link").readlink() == Path("a/module.py")
    assert (copy / "lib" / "build" / "module.py").exists() and not (copy / ".git").exists()
    assert stat.S_IMODE((copy / "a" / "program").stat().st_mode) == 0o755
    assert stat.S_IMODE((copy / "a" / "module.py").stat().st_mode) == 0o644


def test_what_no_test_reads_does_not_make_a_checkout_unreadable(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir(mode=0o700)
    (tmp_path / "vault_password").touch(mode=0o600)
    tmp_path.chmod(0o755)
    assert readable(tmp_path)
