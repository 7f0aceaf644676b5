"""Audits of what lies on disk, asked for in one call."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from iet_agc.auditing.finished import Asked
from iet_agc.auditing.run import audit_sources
from iet_agc.auditing.schema import AuditRecord

ASKED = {field.name for field in fields(Asked)}


def audit_on_disk(train: str, samples: str, held_out: str | None, out: Path, **options: Any) -> AuditRecord:
    """`audit_sources`, by the attributes of `Asked` and its own arguments."""
    asked = {name: value for name, value in options.items() if name in ASKED}
    others = {name: value for name, value in options.items() if name not in ASKED}
    return audit_sources(Asked(train, samples, held_out, out, **asked), **others)
