"""The verdict on an audit: one for page, audit.json, terminal and gate. No torch.

Copies are called found only where the interval of the samples lies above the one of false alarms. Where held-out images
do not set a cut that can be trusted, the verdict is "cannot tell"; but copies that are found beyond chance by a cut
that is too low stay found, by one that may be too high they do not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from iet_agc.auditing.schema import AuditRecord, NoCut, Verdict, read_record
from iet_agc.metrics.gate import PIXELS, Gate, Way, decisive, gate
from iet_agc.metrics.gate import sentence as gate_sentence
from iet_agc.metrics.records import Calibrated
from iet_agc.metrics.soundness import OF_SPACE, TooFar, Unsound
from iet_agc.runtime.errors import UserError

__all__ = [
    "FEWEST",
    "Outcome",
    "check_audit",
    "check_share",
    "doubts",
    "outcome",
    "reasons",
    "said",
    "sentence",
    "verdict",
]

#: A cut with 1 % false alarms is the smallest ratio of 99 held-out images; of fewer, there is none.
FEWEST = 99

Outcome = Literal["copies", "undecided", "chance", "cannot_tell"]


def outcome(found: Calibrated | None, doubts: Sequence[Unsound] = ()) -> Outcome:
    """What one share allows to say.

    Args:
        found: the samples beyond a calibrated cut; None where none could be set.
        doubts: why the cut cannot tell.
    """
    if found is None:
        return "cannot_tell"
    low, _ = found.ci95
    if low > found.most_false_alarms and not any(isinstance(doubt, TooFar) for doubt in doubts):
        return "copies"
    if doubts:
        return "cannot_tell"
    return "chance" if low <= found.false_alarm else "undecided"


def reasons(numbers: AuditRecord) -> dict[Way, tuple[Unsound, ...]]:
    """By each way of copying, why its cut cannot tell, as far as held-out images were enough to ask; pixels first."""
    return {way: check.reasons if check else () for way, check in numbers.checks().items()}


def doubts(numbers: AuditRecord, way: Way) -> tuple[Unsound, ...]:
    """Why a way of copying cannot be told: its own reasons, and what is found of the held-out images anywhere."""
    known = reasons(numbers)
    return (*known[way], *(one for other, each in known.items() if other != way for one in each if _of_set(one)))


def _of_set(reason: Unsound) -> bool:
    return not isinstance(reason, OF_SPACE)


def verdict(numbers: AuditRecord) -> Verdict:
    """What an audit allows to say, by all ways of copying that it measured; by pixels where these can tell."""
    shares, known = numbers.ways(), reasons(numbers)
    told = _told(known)
    if copied := [str(way) for way, found in shares.items() if found and outcome(found, known[way]) == "copies"]:
        return Verdict(outcome="copies", by=tuple(copied), reasons=tuple(told))
    able = [way for way in decisive(known) if shares[way]]
    if not able:
        missing = [_no_cut(numbers).sentence] * (shares[PIXELS] is None)
        of_set = _told({way: tuple(filter(_of_set, each)) for way, each in known.items()})
        return Verdict(outcome="cannot_tell", by=(), reasons=(*missing, *(of_set or told)))
    return Verdict(outcome=outcome(shares[able[0]]), by=(str(able[0]),), reasons=tuple(told))


def _told(known: Mapping[Way, Sequence[Unsound]]) -> list[str]:
    """Reasons in words; those of transformed copies are those in pixels, and are told there."""
    own = {way: each for way, each in known.items() if way.by != "transformed"}
    return [f"{_capital(str(way))}: {reason.sentence}" for way, each in own.items() for reason in each]


def sentence(found: Verdict) -> str:
    """What a verdict that has reasons says, for a terminal; from a small letter on, without a full stop."""
    why = "; ".join(found.reasons)
    if found.outcome == "cannot_tell":
        return f"cannot tell how much is copied: {why}"
    return f"judged {' and '.join(found.by)}; cannot tell otherwise: {why}"


def said(numbers: AuditRecord) -> str:
    """What a terminal is told of an audit: what a gate found or else why it cannot tell; nothing where it can."""
    if numbers.gate:
        return gate_sentence(numbers.gate)
    return sentence(numbers.verdict) if numbers.verdict and numbers.verdict.reasons else ""


def check_share(numbers: AuditRecord, fail_above: float) -> Gate:
    """Whether more is copied than is allowed, by every way of copying whose cut is set. See `iet_agc.metrics.gate`.

    A feature space whose held-out images are too few to set a cut on its distance ratios is not looked at.

    Args:
        numbers: of the audit.
        fail_above: the share that is allowed, in [0, 1], chance included.

    Returns:
        A gate that cannot tell where held-out images are too few to set a cut in pixels, or of a descriptor that is
        made to find copies.

    Raises:
        UserError: the audit had no held-out images.
    """
    if numbers.held_out is None:
        raise UserError(
            "the audit had no held-out images, so nothing says what is chance: audit again with held-out images",
            "held_out",
        )
    shares = {way: found for way, found in numbers.ways().items() if found or way.space is None or way.by != "ratio"}
    known = reasons(numbers)
    without_cut = [_why_no_cut(numbers, way, known[way]) for way, found in shares.items() if found is None]
    return gate(shares, fail_above, numbers.checks(), without_cut)


def _why_no_cut(numbers: AuditRecord, way: Way, found: Sequence[Unsound]) -> str:
    """In words: what was found of the held-out images, such as that they are near copies, or else that they are few."""
    return f"{way}, {'; '.join([_no_cut(numbers, way).reason, *(reason.sentence for reason in found)])}"


def check_audit(folder: Path, fail_above: float) -> Gate:
    """`check_share` of a finished audit in its folder, which stays as it is.

    Raises:
        UserError: see `check_share` and `iet_agc.auditing.schema.read_record`.
    """
    return check_share(read_record(folder / "audit.json"), fail_above)


def _no_cut(numbers: AuditRecord, way: Way = PIXELS) -> NoCut:
    """Why there is no cut: as the audit warned, or none were given."""
    copies = numbers if way.space is None else numbers.feature_spaces[way.space]
    known = next((warning for warning in copies.warnings if isinstance(warning, NoCut)), None)
    return known or NoCut(num_held_out=copies.total_held_out, num_needed=FEWEST)


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
