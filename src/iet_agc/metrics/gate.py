"""Gate: whether an audit shows that more is copied than is allowed. One judgement, for exit status and page. No torch.

The share that is allowed is one of samples below a calibrated cut, so chance is in it: a model that copies nothing has
about 1 %. The cut is drawn with the held-out images, and its rate of false alarms with it; the gate fails where the
lower limit that knows of both draws is above the share (see `iet_agc.metrics.intervals.least_calibrated_share`).
"""

import math
from collections.abc import Mapping
from typing import Any

from iet_agc.metrics.intervals import least_calibrated_share, surely_above
from iet_agc.runtime.files import shown

__all__ = ["fails_by", "gate", "risk", "sentence"]

#: A gate fails at most so often where no more is copied than is allowed: as a 95 % interval lies too high.
_RISK = 0.025

_PIXELS = "below the calibrated cut"

_CONVENTION = (
    "share: of samples below (similarity: above) the calibrated cut, chance included; least: its lower limit, for a "
    "cut of just the nominal rate of false alarms, over the draws of held-out images, Beta(j, H + 1 - j), and of "
    "samples, binomial, both numbers divided by the design effect where prompts repeat; a check fails where least > "
    "fail_above, from fails_from samples on; risk: that any check fails where the share is fail_above (Bonferroni); "
    "harmless: that this one fails where samples are like held-out images"
)


def gate(numbers: Mapping[str, Any], fail_above: float) -> dict[str, Any]:
    """The entry "gate" of audit.json.

    Checked are the distance ratios in pixels and the similarities of descriptors that are made to find copies.

    Args:
        numbers: the content of audit.json; what is checked must be calibrated.
        fail_above: the share that is allowed, in [0, 1], chance included.

    Returns:
        {"fail_above", "risk", "failed", "checks": [{"what", "count", "share", "least", "fails_from", "harmless",
        "failed"}, ...], "convention"}.
    """
    found, total = _checked(numbers), numbers["num_samples"]
    checks = [
        {"what": what} | _check(entry, total, fail_above, _RISK / len(found)) for what, entry in found.items() if entry
    ]
    assert len(checks) == len(found), "what is not calibrated cannot be checked"
    failed = any(check["failed"] for check in checks)
    return {
        "fail_above": fail_above,
        "risk": _RISK,
        "failed": failed,
        "checks": checks,
        "convention": _CONVENTION,
    }


def _checked(numbers: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """What a gate looks at: in words, and the calibrated share, None where there is no cut."""
    found = {_PIXELS: numbers["calibrated"]}
    for name, space in numbers.get("feature_spaces", {}).items():
        alike = space.get("similarity") or {"copy_detection": False}
        if alike["copy_detection"]:
            found[_by(name)] = alike["calibrated"]
    return found


def _by(name: str) -> str:
    return f"above the calibrated cut on similarity by {shown(name)}"


def fails_by(entry: Mapping[str, Any], name: str) -> bool:
    """Whether the check on similarity in the features of a network failed; one that was not checked did not."""
    return any(check["failed"] for check in entry["checks"] if check["what"] == _by(name))


def _check(entry: Mapping[str, Any], total: int, fail_above: float, risk: float) -> dict[str, Any]:
    """One check. Where samples of a prompt are alike, so many are worth one: the design effect, rounded in favour."""
    cut, alike = (entry["false_alarm"], entry["num_held_out"]), entry.get("design_effect", 1.0)
    worth = math.ceil(total / alike)
    least = least_calibrated_share(math.floor(entry["count"] / alike), worth, *cut, risk)
    enough, harmless = surely_above(fail_above, worth, *cut, risk)
    fails_from = min(math.ceil(enough * alike), total + 1)
    return {
        "count": entry["count"],
        "share": entry["share"],
        "least": least,
        "fails_from": fails_from,
        "harmless": harmless,
        "failed": least > fail_above,
    }


def sentence(entry: Mapping[str, Any], samples: int) -> str:
    """What a gate found, in words without a full stop.

    Args:
        entry: see `gate`.
        samples: how many there are.
    """
    failed, most = entry["failed"], f"{100 * entry['fail_above']:g}%"
    told = " and ".join(_told(check, samples) for check in entry["checks"] if check["failed"] or not failed)
    verdict = "failed" if failed else "passed"
    return f"check {verdict}: {told}, {'more than' if failed else 'not shown to be more than'} {most}; {risk(entry)}"


def _told(check: Mapping[str, Any], samples: int) -> str:
    least = f"at least {_percent(check['least'])} by the draws of samples and of the cut"
    few = "" if check["fails_from"] > samples else f"; from {check['fails_from']:,} on it fails"
    return f"{check['count']:,} of {samples:,} samples are {check['what']} ({_percent(check['share'])}; {least}{few})"


def risk(entry: Mapping[str, Any]) -> str:
    """How often a gate fails what it should not."""
    harmless, most = [_percent(check["harmless"]) for check in entry["checks"]], f"{100 * entry['fail_above']:g}%"
    each = f"{' and '.join(harmless)} where nothing is copied{', by check' if len(harmless) > 1 else ''}"
    return f"it fails in at most {_percent(entry['risk'])} of draws where the share is {most}, in {each}"


def _percent(share: float) -> str:
    return "<0.01%" if 0 < share < 1e-4 else f"{100 * share:.3g}%"
