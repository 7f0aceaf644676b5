"""Gate: whether an audit shows that more is copied than is allowed. One judgement, for exit status and page. No torch.

The share that is allowed is one of samples below a calibrated cut, so chance is in it: a model that copies nothing has
about 1 %. The cut is drawn with the held-out images, and its rate of false alarms with it; the gate fails where the
lower limit that knows of both draws is above the share (see `iet_agc.metrics.intervals.least_calibrated_share`).
"""

import math
from collections.abc import Mapping
from typing import Self

from pydantic import model_validator

from iet_agc.metrics.intervals import ROUNDING, Count, Portion, Record, least_calibrated_share, surely_above
from iet_agc.metrics.records import Calibrated

__all__ = ["Check", "Gate", "gate", "risk", "sentence"]

#: A gate fails at most so often where no more is copied than is allowed: as a 95 % interval lies too high.
_RISK = 0.025

_CONVENTION = (
    "share: of samples below (similarity: above) the calibrated cut, chance included; least: its lower limit, for a "
    "cut of just the nominal rate of false alarms, over the draws of held-out images, Beta(j, H + 1 - j), and of "
    "samples, binomial, both numbers divided by the design effect where prompts repeat; a check fails where least > "
    "fail_above, from fails_from samples on; risk: that any check fails where the share is fail_above (Bonferroni); "
    "harmless: that this one fails where samples are like held-out images"
)


class Check(Record):
    """One share that a gate looked at.

    Attributes:
        space: whose features samples are above the cut on similarity in; None: below that on distance ratios in pixels.
        count, total, share: samples beyond the calibrated cut, of how many.
        least: the lower limit of the share, by the draws of samples and of the cut.
        fails_from: from so many samples on it fails; `total` + 1 where it never does.
        harmless: how often it fails where samples are like held-out images.
        failed: `least` is above the share that is allowed.
    """

    space: str | None
    count: Count
    total: Count
    share: Portion
    least: Portion
    fails_from: Count
    harmless: Portion
    failed: bool

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
        failed: one of the checks did.
        checks: of pixels, and of descriptors that are made to find copies.
    """

    fail_above: Portion
    risk: Portion
    failed: bool
    checks: tuple[Check, ...]
    convention: str = _CONVENTION

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for check in self.checks:
            if check.failed != (check.least > self.fail_above):
                allowed = f"{check.least!r} at least, {self.fail_above!r} allowed"
                raise ValueError(f"a check's failed is {check.failed!r}: {allowed}")
        if not self.checks or self.failed != any(check.failed for check in self.checks):
            raise ValueError(f"a gate's failed is {self.failed!r}, with {len(self.checks)} checks")
        return self

    def fails_by(self, space: str) -> bool:
        """Whether the check on similarity in the features of a network failed; one that was not checked did not."""
        return any(check.failed for check in self.checks if check.space == space)


def gate(shares: Mapping[str | None, Calibrated | None], fail_above: float) -> Gate:
    """Judge the shares of an audit.

    Args:
        shares: those of samples beyond their calibrated cuts: below that on distance ratios in pixels (None) and, by
            the name of each descriptor that is made to find copies, above that on similarity. None can be checked that
            is not calibrated.
        fail_above: the share that is allowed, in [0, 1], chance included.
    """
    checks = [
        _check(space, found, fail_above, _RISK / len(shares)) for space, found in shares.items() if found is not None
    ]
    assert len(checks) == len(shares), "what is not calibrated cannot be checked"
    failed = any(check.failed for check in checks)
    return Gate(fail_above=fail_above, risk=_RISK, failed=failed, checks=tuple(checks))


def _check(space: str | None, found: Calibrated, fail_above: float, risk: float) -> Check:
    """One check. Where samples of a prompt are alike, so many are worth one: the design effect, rounded in favour."""
    cut, alike = (found.false_alarm, found.num_held_out), found.design_effect or 1.0
    worth = math.ceil(found.total / alike)
    least = least_calibrated_share(math.floor(found.count / alike), worth, *cut, risk)
    enough, harmless = surely_above(fail_above, worth, *cut, risk)
    return Check(
        space=space,
        count=found.count,
        total=found.total,
        share=found.share,
        least=least,
        fails_from=min(math.ceil(enough * alike), found.total + 1),
        harmless=harmless,
        failed=least > fail_above,
    )


def sentence(gate: Gate) -> str:
    """What a gate found, in words without a full stop."""
    most = f"{100 * gate.fail_above:g}%"
    told = " and ".join(_told(check) for check in gate.checks if check.failed or not gate.failed)
    verdict = ("failed", "more than") if gate.failed else ("passed", "not shown to be more than")
    return f"check {verdict[0]}: {told}, {verdict[1]} {most}; {risk(gate)}"


def _told(check: Check) -> str:
    where = "below the calibrated cut"
    if check.space is not None:
        where = f"above the calibrated cut on similarity by {check.space}"
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
