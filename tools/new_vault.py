"""`make vault INVENTORY=inventory/mesh`: fresh secrets, encrypted with a password of yours.

A vault that is there is never overwritten.
"""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from ansible.constants import DEFAULT_VAULT_ID_MATCH
from ansible.parsing.vault import VaultLib, VaultSecret


def fresh(auth_key: str) -> dict[str, str]:
    """The secrets of a mesh, by the names that the example's inventory uses."""
    return {
        "vault_control_root_key": secrets.token_hex(32),
        "vault_control_admin_token": f"rae_{secrets.token_urlsafe(32)}",
        "vault_control_submit_token": f"rae_{secrets.token_urlsafe(32)}",
        "vault_redis_password": secrets.token_urlsafe(32),
        "vault_tailscale_auth_key": auth_key,
    }


def encrypted(values: dict[str, str], password: str) -> bytes:
    """The vault's text."""
    vault = VaultLib([(DEFAULT_VAULT_ID_MATCH, VaultSecret(password.encode()))])
    text: bytes = vault.encrypt(f"---\n{yaml.safe_dump(values, sort_keys=False)}")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, and write."""
    parser = argparse.ArgumentParser(prog="python -m tools.new_vault", description=__doc__)
    parser.add_argument("inventory", type=Path)
    parser.add_argument("--password-file", type=Path, help="instead of asking for the password")
    asked = parser.parse_args(argv)
    vault = asked.inventory / "group_vars" / "all" / "vault.yml"
    if not vault.parent.is_dir():
        fix = f"cp -r inventory/example {asked.inventory}, then run this again"
        print(f"there is no {vault.parent}; {fix}", file=sys.stderr)
        return 1
    if vault.exists():
        print(
            f"{vault} is there and stays; `ansible-vault edit {vault}` changes it", file=sys.stderr
        )
        return 1
    if asked.password_file is not None:
        password, auth_key = asked.password_file.read_text(encoding="utf-8").strip(), ""
    else:
        try:
            password = getpass.getpass("A password for the vault: ")
            if password != getpass.getpass("Once more: "):
                print("these were two different passwords; run it again", file=sys.stderr)
                return 1
            auth_key = getpass.getpass("Tailscale auth key (empty: later, ansible-vault edit): ")
        except EOFError:
            print("it asks three things; answer all, or use --password-file", file=sys.stderr)
            return 1
    if not password:
        print("a vault needs a password; run it again", file=sys.stderr)
        return 1
    handle = os.open(vault, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(encrypted(fresh(auth_key), password))
    print(f"{vault}: written. Keep its password; control cannot be restored without these secrets.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
