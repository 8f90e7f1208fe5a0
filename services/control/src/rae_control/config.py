"""Control's settings: every period and every limit, with the contract's defaults."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rae_control.errors import ConfigError
from rae_protocol.yamlfile import YamlFile, read_overrides, read_yaml


class ControlConfig(BaseModel):
    """Periods in seconds, sizes in bytes unless the name says otherwise. Fractions are allowed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    heartbeat_interval_s: float = Field(30.0, gt=0)
    heartbeat_timeout_s: float = Field(120.0, gt=0)
    ack_timeout_s: float = Field(10.0, gt=0)
    default_lease_ttl_s: float = Field(120.0, gt=0)
    lease_margin_s: float = Field(10.0, gt=0)
    max_lease_ttl_s: float = Field(3600.0, gt=0)
    node_token_ttl_s: float = Field(12 * 3600.0, gt=0)
    skew_s: float = Field(60.0, gt=0)
    # Nodes wait as long after each start of control. They leave it at half a second of difference,
    # and at two where they go by the Date.
    skew_ahead_s: float = Field(5.0, ge=1, le=60)
    envelope_ttl_s: float = Field(60.0, gt=0)
    reconcile_interval_s: float = Field(10.0, gt=0)
    reaper_interval_s: float = Field(1.0, gt=0)
    retry_backoff_s: float = Field(5.0, ge=0)
    retry_backoff_max_s: float = Field(300.0, ge=0)
    interruption_pause_s: float = Field(10.0, ge=0)
    interruption_pause_max_s: float = Field(600.0, ge=0)
    max_interruptions: int = Field(20, ge=1)
    cordon_after: int = Field(3, ge=1)
    cordon_after_tasks: int = Field(5, ge=2)
    # All together, and one submitter's; the last lanes of all are kept for those who have few.
    max_lanes: int = Field(1000, ge=1)
    max_lanes_per_submitter: int = Field(200, ge=1)
    max_queued: int = Field(200_000, ge=1)
    max_queued_bytes: int = Field(2 * 1024**3, ge=1)
    # Of ended tasks: specs and results, then the records themselves; the oldest go first.
    max_kept_bytes: int = Field(4 * 1024**3, ge=0)
    max_record_bytes: int = Field(4 * 1024**3, ge=1024**2)
    max_blob_bytes: int = Field(64 * 1024**3, ge=1)
    max_log_bytes: int = Field(10 * 1024**2, ge=1)
    rate_limit_per_s: float = Field(200.0, gt=0)
    rate_limit_burst: float = Field(400.0, gt=0)
    # Of one node; each writes a line of history.
    register_limit_per_s: float = Field(0.1, gt=0)
    register_limit_burst: float = Field(20.0, ge=1)
    retention_days: float = Field(90.0, gt=0)
    retention_every_s: float = Field(3600.0, gt=0)
    blob_grace_s: float = Field(86400.0, ge=0)
    # A clock that was set is believed after this long: deletions and expiries wait.
    clock_settle_s: float = Field(3600.0, ge=0)
    low_water_bytes: int = Field(256 * 1024**2, ge=0)
    # Where the chore `backup` writes, and how many it keeps.
    backup_dir: str | None = Field(None, pattern="^/")
    backup_keep: int = Field(14, ge=1)
    # tailscaled's; then a node must register from the machine that has its name, or this other one.
    tailscale_socket: str | None = Field(None, min_length=1)
    tailnet_names: dict[str, str] = {}
    tailnet_tag: str | None = Field(None, pattern=r"^tag:[A-Za-z0-9-]+$")
    # With both files, control also speaks TLS, on this port of the address that it has anyway.
    tls_cert_file: str | None = Field(None, pattern="^/")
    tls_key_file: str | None = Field(None, pattern="^/")
    tls_port: int = Field(8443, ge=1, le=65535)

    @model_validator(mode="after")
    def _leases_outlive_heartbeats(self) -> ControlConfig:
        if self.default_lease_ttl_s < self.min_lease_ttl_s:
            raise ValueError(
                f"default_lease_ttl_s is {self.default_lease_ttl_s:g}, but a lease must outlive "
                f"two heartbeats and the margin: at least {self.min_lease_ttl_s:g}"
            )
        return self

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> ControlConfig:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together: name both or neither")
        return self

    @property
    def periods(self) -> dict[str, float]:
        """What nodes must know, under the protocol's names."""
        return {
            "heartbeat_interval_sec": self.heartbeat_interval_s,
            "heartbeat_timeout_sec": self.heartbeat_timeout_s,
            "lease_margin_s": self.lease_margin_s,
            "ack_timeout_s": self.ack_timeout_s,
        }

    @property
    def min_lease_ttl_s(self) -> float:
        """The shortest lease a submitter may ask for: two heartbeats and the margin."""
        return 2 * self.heartbeat_interval_s + self.lease_margin_s


def load_config(file: Path | None, overrides: Iterable[str] = ()) -> ControlConfig:
    """Settings from a YAML file and `name=value` overrides.

    Raises ConfigError naming the field and what is allowed.
    """
    over = read_overrides(overrides, ConfigError)
    nothing = YamlFile(Path("--set"), {}, None, ConfigError)
    found = nothing if file is None else read_yaml(file, ConfigError)
    said = {} if found.value is None else found.settings()
    return found.checked(ControlConfig, said | over, over)
