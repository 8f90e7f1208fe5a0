#!/usr/bin/env python3
"""Checks one host for playbooks/verify.yml: `check_host.py JSON` prints a list of findings as JSON.

Standard library of any Python from 3.9 on. A finding: check, ok (null: could not be checked), what,
fix. Changes nothing.
"""

import grp
import json
import os
import pwd
import re
import subprocess
import sys
import time

# Programs that compute models; control has none of them (A1).
MODELS = re.compile(
    r"^(ollama|llama-server|llama\.cpp|vllm|koboldcpp|text-generation.*|tritonserver)$"
)
# How secrets of the mesh begin.
TOKEN = re.compile(rb"rae_[A-Za-z0-9_-]{40,}|tskey-[a-z]+-[A-Za-z0-9-]{12,}")

# Output is matched in English.
ENGLISH = {**os.environ, "LC_ALL": "C.UTF-8", "LANGUAGE": "C.UTF-8"}


def run(*argv):
    """Standard output of a command, and its exit code; words on stderr come after the output."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, check=False, env=ENGLISH
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error), 127
    return done.stdout + done.stderr, done.returncode


def finding(check, ok, what, fix=""):
    """One line of the report."""
    return {"check": check, "ok": ok, "what": what, "fix": "" if ok else fix}


def listeners():
    """Every TCP socket that waits for connections: (address, port, pids)."""
    text, _ = run("ss", "--no-header", "--listening", "--tcp", "--numeric", "--processes")
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 3 and ":" in fields[3]:
            address, _, port = fields[3].rpartition(":")
            pids = {int(pid) for pid in re.findall(r"pid=(\d+)", line)}
            yield address.strip("[]").partition("%")[0], int(port), pids


def processes():
    """(pid, name, cgroup) of all that run."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as file:
                comm = file.read().strip()
            with open(f"/proc/{name}/cgroup", encoding="utf-8", errors="replace") as file:
                yield int(name), comm, file.read()
        except OSError:
            continue  # it has exited


def loopback(address):
    """Whether only this machine reaches it."""
    return address.startswith("127.") or address in {"::1", "::ffff:127.0.0.1"}


def api_listener(asked):
    """A2, A14: the API on the tailnet's address and nowhere else."""
    check = "A14 control listens only on the Tailscale IP"
    found = sorted({address for address, port, _ in listeners() if port == asked["port"]})
    what = f"port {asked['port']:.0f} on {', '.join(found) or 'no address'}"
    fix = "run playbooks/provision-control.yml; `ss -ltnp` on control shows who listens"
    return finding(check, found == [asked["address"]], what, fix)


def models_on_control(_asked):
    """A1: no model and no GPU work on control."""
    check = "no LLM and no GPU process on control"
    found = [f"{name} ({pid})" for pid, name, _ in processes() if MODELS.match(name)]
    for pid, name, _ in processes():
        try:
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue  # it has exited
        if any(re.match(r"/dev/(nvidia[0-9]|kfd)", link) for link in links):
            found.append(f"{name} ({pid}) uses the GPU")
    return finding(check, not found, ", ".join(found) or "none", "stop it; models run on nodes")


def own_listeners(_asked):
    """DESIGN §2: what a node runs for us listens on loopback only."""
    ours = {pid for pid, _, cgroup in processes() if "/rae.slice/" in cgroup}
    wrong = [f"{a}:{port}" for a, port, pids in listeners() if pids & ours and not loopback(a)]
    what = ", ".join(wrong) or "nothing beyond loopback"
    return finding(
        "the node's own programs listen on loopback only",
        not wrong,
        what,
        "run playbooks/provision-node.yml; `ss -ltnp` shows who listens",
    )


def hardening(asked):
    """The exposure level that systemd computes for each unit, against a limit."""
    for unit, ceiling in sorted(asked["ceilings"].items()):
        text, _ = run("systemd-analyze", "security", "--no-pager", unit)
        match = re.search(r"exposure level for \S+: ([0-9.]+)", text)
        ok = None if match is None else float(match[1]) <= ceiling
        what = f"exposure {match[1]}, at most {ceiling:g}" if match else text.strip()[-200:]
        yield finding(
            f"hardening of {unit}", ok, what, f"`systemctl cat {unit}`: which drop-in opens it?"
        )


def owner_of(info):
    """The owner's name; the uid when no account has it any more."""
    try:
        return pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        return str(info.st_uid)


def modes(asked):
    """Owners and modes of the files of the mesh."""
    wrong = []
    for item in asked["modes"]:
        try:
            info = os.lstat(item["path"])
        except FileNotFoundError:
            if not item.get("optional"):
                wrong.append(f"{item['path']} is missing")
            continue
        owner, mode = owner_of(info), f"{info.st_mode & 0o7777:04o}"
        if (owner, mode) != (item["owner"], item["mode"]):
            wrong.append(f"{item['path']} is {owner} {mode}, not {item['owner']} {item['mode']}")
    return finding(
        "owners and modes",
        not wrong,
        "; ".join(wrong) or f"{len(asked['modes'])} as required",
        "run the provision playbook again",
    )


def secrets(_asked):
    """No token of ours in any argument list, environment or unit."""
    seen = set()
    for pid, name, _ in processes():
        for part in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{part}", "rb") as file:
                    if TOKEN.search(file.read()):
                        seen.add(f"{part} of {name}")
            except OSError:
                continue  # it has exited
    units, _ = run("systemctl", "show", "--property=Environment", "rae-*")
    if TOKEN.search(units.encode()):
        seen.add("the environment of a unit")
    return finding(
        "secrets in no argument list and no environment",
        not seen,
        ", ".join(sorted(seen)) or "none seen",
        "remove it from there, and replace the secret",
    )


def firewall(_asked):
    """The table of the mesh is loaded, now and at boot."""
    _, loaded = run("nft", "list", "table", "inet", "rae")
    _, enabled = run("systemctl", "is-enabled", "rae-firewall.service")
    words = ["is loaded" if loaded == 0 else "is NOT loaded", "on" if enabled == 0 else "NOT on"]
    what = f"the table {words[0]}, and {words[1]} at boot"
    return finding(
        "firewall", loaded == 0 and enabled == 0, what, "systemctl enable --now rae-firewall"
    )


def release(asked):
    """The installed version is the one of this checkout."""
    try:
        current = os.path.basename(os.readlink(f"{asked['root']}/current"))
    except OSError as error:
        current = str(error)
    return finding(
        "version",
        current == asked["release"],
        f"{current}, expected {asked['release']}",
        "run the provision playbook; make wheels first, if the checkout has changed",
    )


def clock(asked):
    """Against the machine that runs the playbook."""
    skew = time.time() - asked["now"]
    return finding(
        "clock",
        abs(skew) <= asked["max_skew"],
        f"{skew:+.0f} s (time of the connection included)",
        "timedatectl set-ntp true",
    )


def ledger(_asked):
    """The ledger's promises; among them that no task is held by a node that is gone."""
    text, code = run(
        "runuser",
        "-u",
        "rae-control",
        "--",
        "/opt/rae-control/current/bin/rae-control",
        "check",
        "--data",
        "/var/lib/rae-control",
    )
    return finding(
        "A14 tasks are queued again: none is held by a node that is gone",
        code == 0,
        text.strip().splitlines()[-1] if text.strip() else f"exit code {code}",
        "rae-control check --data /var/lib/rae-control, and `raectl why ID`",
    )


def invisible(_asked):
    """A node without heartbeat is not in the default list."""

    def nodes(*more):
        text, code = run(
            "raectl",
            "--credentials=/etc/rae-control/credentials.json",
            "--json",
            "nodes",
            "list",
            *more,
        )
        return json.loads(text)["nodes"] if code == 0 else None

    check = "A14 a node without heartbeat is invisible"
    shown, every = nodes(), nodes("--all")
    if shown is None or every is None:
        return finding(check, None, "raectl nodes list did not answer", "journalctl -u rae-control")
    silent = {
        node["node_id"] for node in every if node["state"] in {"offline", "enrolled", "revoked"}
    }
    wrong = sorted(silent & {node["node_id"] for node in shown})
    what = f"listed: {len(shown)}; without heartbeat and not listed: {len(silent - set(wrong))}"
    return finding(check, not wrong, ", ".join(wrong) or what, "journalctl -u rae-control")


def chores(_asked):
    """The nightly backup is scheduled."""
    text, _ = run(
        "systemctl", "is-active", "rae-control-backup.timer", "rae-control-worker.service"
    )
    return finding(
        "nightly backup",
        text.split() == ["active", "active"],
        " ".join(text.split()),
        "systemctl enable --now rae-control-backup.timer rae-control-worker",
    )


def independent(asked):
    """No unit of a node depends on control."""
    text, _ = run("systemctl", "show", "--property=Requires,BindsTo,Requisite", "rae-node.service")
    runtime = f"{asked['root']}/agent/runtime.yaml"
    config, code = run("grep", "--extended-regexp", "^ +retry_on_disconnect: true$", runtime)
    ok = "control" not in text and code == 0
    return finding(
        "A14 control can stop without affecting nodes",
        ok,
        "the agent's unit does not depend on control, and it retries"
        if ok
        else f"{text} {config}".strip(),
        "set retry_on_disconnect: true in node_runtime.execution",
    )


def lent(asked):
    """B9: the agent runs if, and only if, enable-node has enabled it."""
    enabled = os.path.exists(f"{asked['root']}/agent/enabled")
    state, _ = run("systemctl", "is-active", "rae-node.service")
    return finding(
        "B9 the agent runs only when lent",
        enabled == (state.strip() == "active"),
        f"{'lent' if enabled else 'not lent'}, agent {state.strip()}",
        "journalctl -u rae-node; playbooks/enable-node.yml or disable-node.yml",
    )


def groups_of(unit):
    """The names of the groups that the main process of a unit is in; none while it does not run."""
    pid, _ = run("systemctl", "show", "--property=MainPID", "--value", unit)
    try:
        with open(f"/proc/{pid.strip()}/status", encoding="utf-8") as file:
            status = dict(line.split(":", 1) for line in file)
    except OSError:
        return set()
    return {group_name(int(gid)) for gid in [*status["Gid"].split(), *status["Groups"].split()]}


def group_name(gid):
    """A group's name; its number when no group has it any more."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def joined(account):
    """The groups that an account was put into."""
    return {entry.gr_name for entry in grp.getgrall() if account in entry.gr_mem}


def detector(asked):
    """The input detector runs on an enabled node; it alone reads devices, for the agent alone."""
    user, agent = asked["detector"], asked["agent"]
    lent = os.path.exists(f"{asked['root']}/agent/enabled")
    state, _ = run("systemctl", "is-active", "rae-input.service")
    enabled, _ = run("systemctl", "is-enabled", "rae-input.service")
    at_boot = enabled.strip() == "enabled"
    yield finding(
        "the input detector runs when lent, and only then",
        lent == (state.strip() == "active") == at_boot,
        f"{'lent' if lent else 'not lent'}, detector {state.strip()}, at boot {enabled.strip()}",
        "journalctl -u rae-input; playbooks/enable-node.yml or disable-node.yml",
    )
    wrong = [
        f"{path} belongs to another group than {user}"
        for path in ("/run/rae-input", "/run/rae-input/input.sock")
        if os.path.lexists(path) and group_name(os.lstat(path).st_gid) != user
    ]
    # Accounts, too: a unit that does not run has no process to read groups from.
    beyond = {
        f"the account {user}": joined(user) - {user},
        f"the account {agent}": joined(agent) & {"input"},
        "rae-input.service": groups_of("rae-input.service") - {user, "input"},
        "rae-node.service": groups_of("rae-node.service") & {"input"},
    }
    wrong += [f"{who} is in the group {name}" for who in beyond for name in sorted(beyond[who])]
    yield finding(
        "only the input detector reads input devices, and only the agent asks it",
        not wrong,
        "; ".join(wrong) or f"{user} is in no group but its own and input, {agent} not in input",
        "run playbooks/provision-node.yml; `systemctl cat rae-input rae-node` shows drop-ins",
    )


def dry_run(asked):
    """B7: the guard decides its four cases correctly."""
    text, code = run("/usr/bin/python3", f"{asked['root']}/agent/auto_runner.py", "--dry-run")
    return finding(
        "B7 dry run",
        code == 0,
        "four cases decided correctly" if code == 0 else text.strip()[-300:],
        "rae-node dry-run on the node",
    )


EVERYWHERE = (firewall, hardening, modes, secrets, release, clock)
CHECKS = {
    "control": (api_listener, models_on_control, invisible, ledger, chores, *EVERYWHERE),
    "node": (own_listeners, independent, lent, detector, dry_run, *EVERYWHERE),
}


def main():
    """Every check for the host's kind."""
    asked = json.loads(sys.argv[1])
    # ansible-core before 2.19 converts every number to text.
    numbers = {name: float(asked[name]) for name in ("now", "max_skew", "port") if name in asked}
    asked.update(numbers, ceilings={unit: float(most) for unit, most in asked["ceilings"].items()})
    found = []
    for check in CHECKS[asked["kind"]]:
        came = check(asked)
        found.extend([came] if isinstance(came, dict) else came)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
