"""Gate: whether an audit shows that more is copied than is allowed. One judgement, for exit status and page. No torch.

The share that is allowed is one of samples below a calibrated cut, so chance is in it: a model that copies nothing has
about 1 %. The cut is drawn with the held-out images, and its rate of false alarms with it; the gate fails where the
lower limit that knows of both draws is above the share (see `iet_agc.metrics.intervals.least_calibrated_share`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self

from pydantic import model_validator

from iet_agc.metrics.intervals import ROUNDING, Count, Portion, Record, least_calibrated_share, surely_above
from iet_agc.metrics.records import Calibrated
from iet_agc.metrics.soundness import OF_SPACE, HeldOutCheck, Unsound

__all__ = ["PIXELS", "Check", "Gate", "Way", "decisive", "gate", "risk", "sentence"]

#: A gate fails at most so often where no more is copied than is allowed: as a 95 % interval lies too high.
_RISK = 0.025

_CONVENTION = (
    "share: of samples below (similarity: above) the calibrated cut, chance included; least: its lower limit, for a "
    "cut of just the nominal rate of false alarms, over the draws of held-out images, Beta(j, H + 1 - j), and of "
    "samples, binomial, both numbers divided by the design effect where prompts repeat; a check fails where least > "
    "fail_above, from fails_from samples on; risk: that any check fails where the share is fail_above (Bonferroni); "
    "harmless: that this one fails where samples are like held-out images"
)


#: By which number copies are told: distance ratios, similarity, or ratios and what transformations are left, joined.
By = Literal["ratio", "similarity", "transformed"]


class Way(NamedTuple):
    """A way of copying: in whose features, or, None, in pixels; and by which number."""

    space: str | None
    by: By = "ratio"

    def __str__(self) -> str:
        if self.by == "similarity":
            return f"on similarity by {self.space}"
        if self.by == "transformed":
            return "in pixels, transformed"
        return "in pixels" if self.space is None else f"in the features of {self.space}"


#: The first way, which every audit looks at.
PIXELS = Way(None)


class Check(Record):
    """One share that a gate looked at.

    Attributes:
        space: the name of a network; None: pixels.
        by: samples are below the cut on distance ratios or on joint scores, or above that on similarity.
        count, total, share: samples beyond the calibrated cut, of how many.
        least: the lower limit of the share, by the draws of samples and of the cut.
        fails_from: from so many samples on it fails; `total` + 1 where it never does.
        harmless: how often it fails where samples are like held-out images.
        failed: `least` is above the share that is allowed. A cut that is too low finds fewer copies, not more, so a
            check may fail by one that cannot tell; it cannot pass by it.
        reasons: why the cut cannot tell; empty where it can.
    """

    space: str | None
    by: By = "ratio"
    count: Count
    total: Count
    share: Portion
    least: Portion
    fails_from: Count
    harmless: Portion
    failed: bool
    reasons: tuple[Unsound, ...] = ()

    @property
    def way(self) -> Way:
        """Of copying."""
        return Way(self.space, self.by)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if not math.isclose(self.count, self.share * self.total, abs_tol=ROUNDING * self.total):
            raise ValueError(f"a gate's share is {self.share!r}, and its count is {self.count} of {self.total}")
        return self


class Gate(Record):
    """Whether more is copied than `fail_above`; see this module.

    Attributes:
        fail_above: the share that is allowed, chance included.
        risk: how often any check fails where the share is `fail_above`.
        failed: one of the checks did, or it cannot tell.
        checks: of distance ratios in pixels and in features, and of similarity by descriptors that are made to find
            copies, as far as these are calibrated.
        without_cut: why other ways of copying, which have to be looked at, have no cut, in words; then it cannot tell.
    """

    fail_above: Portion
    risk: Portion
    failed: bool
    checks: tuple[Check, ...]
    without_cut: tuple[str, ...] = ()
    convention: str = _CONVENTION

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for check in self.checks:
            if check.failed != (check.least > self.fail_above):
                allowed = f"{check.least!r} at least, {self.fail_above!r} allowed"
                raise ValueError(f"a check's failed is {check.failed!r}: {allowed}")
        looked_at = self.checks or self.without_cut
        if not looked_at or self.failed != (any(check.failed for check in self.checks) or self.cannot_tell):
            raise ValueError(f"a gate's failed is {self.failed!r}, with {len(self.checks)} checks")
        return self

    @property
    def cannot_tell(self) -> bool:
        """Whether no check failed, and none can tell or one could not be made: then the gate fails all the same."""
        return not any(check.failed for check in self.checks) and _is_unknown(self.checks, self.without_cut)

    def fails_by(self, space: str) -> bool:
        """Whether the check on similarity in the features of a network failed; one that was not checked did not."""
        return any(check.failed for check in self.checks if check.way == Way(space, "similarity"))


def decisive(reasons: Mapping[Way, Sequence[Unsound]]) -> list[Way]:
    """By which ways of copying an audit can be judged; none where it cannot tell.

    A cut that is blind or too high is one of its space: another way that can tell stands in for it. Held-out images
    that are too close to the training set are so for every way, whichever of them notices.

    Args:
        reasons: by each calibrated way, why its cut cannot tell; pixels first.
    """
    if any(not isinstance(reason, OF_SPACE) for each in reasons.values() for reason in each):
        return []
    return [way for way, each in reasons.items() if not each]


def gate(
    shares: Mapping[Way, Calibrated | None],
    fail_above: float,
    held_out: Mapping[Way, HeldOutCheck | None] | None = None,
    without_cut: Sequence[str] = (),
) -> Gate:
    """Judge the shares of an audit.

    Args:
        shares: those of samples beyond their calibrated cuts, by way of copying; None where there is no cut.
        fail_above: the share that is allowed, in [0, 1], chance included.
        held_out: what was found of the held-out images that set the cuts; by default they are taken for sound.
        without_cut: why there is none, of each way that has none.
    """
    assert len(without_cut) == sum(found is None for found in shares.values()), "what has no cut has a reason"
    known = {way: each.reasons for way, each in (held_out or {}).items() if each}
    checks = [
        _check(way, found, fail_above, _RISK / len(shares), known.get(way, ()))
        for way, found in shares.items()
        if found is not None
    ]
    failed = any(check.failed for check in checks) or _is_unknown(checks, without_cut)
    return Gate(fail_above=fail_above, risk=_RISK, failed=failed, checks=tuple(checks), without_cut=tuple(without_cut))


def _is_unknown(checks: Sequence[Check], without_cut: Sequence[str]) -> bool:
    return bool(without_cut) or not decisive({check.way: check.reasons for check in checks})


def _check(way: Way, found: Calibrated, fail_above: float, risk: float, reasons: tuple[Unsound, ...]) -> Check:
    """One check. Where samples of a prompt are alike, so many are worth one: the design effect, rounded in favour."""
    cut, alike = (found.false_alarm, found.num_held_out), found.design_effect or 1.0
    worth = math.ceil(found.total / alike)
    least = least_calibrated_share(math.floor(found.count / alike), worth, *cut, risk)
    enough, harmless = surely_above(fail_above, worth, *cut, risk)
    return Check(
        space=way.space,
        by=way.by,
        count=found.count,
        total=found.total,
        share=found.share,
        least=least,
        fails_from=min(math.ceil(enough * alike), found.total + 1),
        harmless=harmless,
        failed=least > fail_above,
        reasons=reasons,
    )


def sentence(gate: Gate) -> str:
    """What a gate found, in words without a full stop."""
    if gate.cannot_tell:
        return f"check failed, as it cannot tell whether more than {100 * gate.fail_above:g}% are copied: {_why(gate)}"
    most = f"{100 * gate.fail_above:g}%"
    judged = [check for check in gate.checks if (check.failed if gate.failed else not check.reasons)]
    told = " and ".join(_told(check) for check in judged)
    verdict = ("failed", "more than") if gate.failed else ("passed", "not shown to be more than")
    doubt = f"; cannot tell {why}" if (why := _why(gate)) else ""
    return f"check {verdict[0]}: {told}, {verdict[1]} {most}; {risk(gate)}{doubt}"


def _why(gate: Gate) -> str:
    """Why cuts cannot tell, by way of copying; what is found of the held-out images themselves is enough."""
    reasons = [(check.way, reason) for check in gate.checks for reason in check.reasons]
    of_set = [(way, reason) for way, reason in reasons if not isinstance(reason, OF_SPACE)]
    return "; ".join([*gate.without_cut, *(f"{way}, {reason.sentence}" for way, reason in of_set or reasons)])


def _told(check: Check) -> str:
    where = f"{'above' if check.by == 'similarity' else 'below'} the calibrated cut"
    if check.way != PIXELS:
        where += f" {check.way}"
    least = f"at least {_percent(check.least)} by the draws of samples and of the cut"
    few = "" if check.fails_from > check.total else f"; from {check.fails_from:,} on it fails"
    return f"{check.count:,} of {check.total:,} samples are {where} ({_percent(check.share)}; {least}{few})"


def risk(gate: Gate) -> str:
    """How often a gate fails what it should not."""
    harmless, most = [_percent(check.harmless) for check in gate.checks], f"{100 * gate.fail_above:g}%"
    each = f"{' and '.join(harmless)} where nothing is copied{', by check' if len(harmless) > 1 else ''}"
    return f"it fails in at most {_percent(gate.risk)} of draws where the share is {most}, in {each}"


def _percent(share: float) -> str:
    return "<0.01%" if 0 < share < 1e-4 else f"{100 * share:.3g}%"
