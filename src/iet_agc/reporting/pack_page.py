"""The page of a pack: what is in it, what it supports, and how it is checked. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iet_agc.auditing.schema import AuditRecord
from iet_agc.auditing.verdict import verdict as judge
from iet_agc.metrics.attacks import WAYS
from iet_agc.metrics.intervals import three_digits
from iet_agc.reporting.charts import page
from iet_agc.reporting.evidence import MEASURES, NOT_COMPLIANCE, Fact
from iet_agc.reporting.model_card import Attacked

__all__ = ["PackedAudit", "PackedRun", "render_pack"]

_LABELS = {
    "copies": "Copies found",
    "undecided": "Undecided",
    "chance": "No copying beyond chance shown",
    "cannot_tell": "Cannot tell",
}


@dataclass(frozen=True)
class PackedAudit:
    """An audit in a pack: its folder's name, and its record."""

    name: str
    record: AuditRecord

    @property
    def outcome(self) -> str:
        """Of its verdict."""
        return (self.record.verdict or judge(self.record)).outcome

    @property
    def label(self) -> str:
        """The verdict in words."""
        return _LABELS[self.outcome]


@dataclass(frozen=True)
class PackedRun:
    """A run in a pack: its folder's name, what it is called, and what it was audited by."""

    name: str
    title: str
    audits: Sequence[str]


def render_pack(
    audits: Sequence[PackedAudit],
    runs: Sequence[PackedRun],
    attacks: Sequence[Attacked],
    facts: Sequence[Fact],
    described: Mapping[str, str],
    about: Mapping[str, Any],
) -> str:
    """Lay out what a pack holds.

    Args:
        audits, runs, attacks: in it.
        facts: the numbers, and what asks for their kind.
        described: of each training set's metadata, the file and the audit that it is of.
        about: the facts of the manifest.

    Returns:
        A whole HTML document, with links to the other files.
    """
    return page(
        "pack_page.html.j2",
        {"interval": _interval, "told": _told},
        title="Evidence pack",
        audits=audits,
        runs=runs,
        attacks=attacks,
        ways=WAYS,
        facts=facts,
        described=described,
        about=about,
        measures=MEASURES,
        meaning=NOT_COMPLIANCE,
    )


def _told(fact: Fact) -> str:
    """A value for people: shares in percent."""
    if isinstance(fact.value, float):
        is_share = fact.ci95 is not None or fact.number == "skipped"
        return three_digits(fact.value) if is_share else f"{fact.value:.4g}".replace("-", "\u2212")
    return f"{fact.value:,}" if isinstance(fact.value, int) else str(fact.value).replace("_", " ")


def _interval(fact: Fact) -> str:
    if fact.ci95 is None:
        return ""
    low, high = (three_digits(limit) for limit in fact.ci95)
    return f"{low} to {high}"
