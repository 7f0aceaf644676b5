"""What asks for evidence of copying, and which numbers of audits and attacks support it. No torch, no compliance.

Each number of a pack stands beside the measures that ask for evidence of its kind. That a number supports a measure
says that it is of the kind that is asked for: not that the measure is met, which no number can say.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from iet_agc.auditing.schema import AuditRecord, Copies
from iet_agc.metrics.attacks import WAYS
from iet_agc.metrics.intervals import Proportion
from iet_agc.reporting.attack_page import ATTACK_FILES
from iet_agc.reporting.charts import place
from iet_agc.reporting.model_card import Attacked

__all__ = ["MEASURES", "NOT_COMPLIANCE", "Fact", "Measure", "attack_facts", "audit_facts", "evidence", "run_facts"]

#: What stands over every table of this kind.
NOT_COMPLIANCE = (
    "Each number is evidence of the kind that a measure asks for. None says that a measure is met: that is for who is "
    "responsible to judge, with all else that the measure asks for."
)


@dataclass(frozen=True)
class Measure:
    """What asks for evidence.

    Attributes:
        document, measure: where it stands.
        asks: for what, in short.
    """

    document: str
    measure: str
    asks: str


#: By a short name.
MEASURES = {
    "GPAI copyright 1.4": Measure(
        "EU General-Purpose AI Code of Practice, copyright chapter, 2025",
        "Measure 1.4",
        "appropriate and proportionate technical safeguards against outputs that reproduce protected training content",
    ),
    "EDPB 28/2024": Measure(
        "European Data Protection Board, Opinion 28/2024 on AI models, 2024",
        "question 1, anonymity of a model",
        "how likely personal data of the training set can be extracted from the model, or obtained by queries",
    ),
    "NIST MS-2.10-001": Measure(
        "NIST AI 600-1, Generative AI Profile, 2024",
        "MEASURE 2.10, action MS-2.10-001",
        "tests of whether training data samples are output, and of extraction and membership inference",
    ),
}

_OUTPUT = ("GPAI copyright 1.4", "EDPB 28/2024", "NIST MS-2.10-001")
_SAFEGUARD = ("GPAI copyright 1.4",)
_DATA = ("EDPB 28/2024", "NIST MS-2.10-001")


@dataclass(frozen=True)
class Fact:
    """A number, or a few words, and what asks for its kind.

    Attributes:
        file: below the pack, where it is printed; `number`: its name there.
        title: what it is.
        value: as printed.
        ci95: its interval, where it has one.
        supports: names of `MEASURES`.
    """

    file: str
    number: str
    title: str
    value: float | int | str | None
    ci95: Sequence[float] | None
    supports: tuple[str, ...]


def audit_facts(name: str, record: AuditRecord) -> list[Fact]:
    """The numbers of an audit.

    Args:
        name: of its folder in the pack.
        record: its audit.json.
    """
    file = f"audits/{name}/audit.json"
    facts = [*_of_space(file, "", "pixels", record)]
    for space, found in record.feature_spaces.items():
        where = f"feature_spaces.{place(space)}."
        facts += _of_space(file, where, f"features of {place(space)}", found)
        alike = found.similarity
        facts.append(
            _share(
                file,
                f"{where}similarity.samples.above",
                f"similarity above the threshold, {place(space)}",
                alike.samples.above,
            )
        )
        if alike.calibrated:
            facts.append(
                _share(
                    file, f"{where}similarity.calibrated", f"similarity above the cut, {place(space)}", alike.calibrated
                )
            )
    if record.verdict:
        facts.append(Fact(file, "verdict.outcome", "verdict", record.verdict.outcome, None, _OUTPUT))
    if record.gate:
        said = "failed" if record.gate.failed else "passed"
        title = f"check of at most {record.gate.fail_above:.3g}"
        facts.append(Fact(file, "gate.failed", title, said, None, _SAFEGUARD))
    if record.train_copies:
        exact = record.train_copies.exact
        facts.append(
            Fact(file, "train_copies.exact.images", "training images that are repeated", exact.images, None, _DATA)
        )
    return facts


def _of_space(file: str, where: str, space: str, found: Copies) -> Iterator[Fact]:
    if found.calibrated:
        title = f"share below the calibrated cut, {space}"
        yield _share(file, f"{where}calibrated", title, found.calibrated)
    yield _share(file, f"{where}mq.0.15", f"share with a distance ratio below 0.15, {space}", found.mq["0.15"])
    if found.held_out:
        title = f"the same of held-out images, {space}"
        yield _share(file, f"{where}held_out.mq.0.15", title, found.held_out.mq["0.15"])
    if found.statistics.near:
        yield _share(
            file, f"{where}statistics.near", f"share nearer than held-out images, {space}", found.statistics.near
        )
    yield _share(file, f"{where}statistics.d1_d2", f"share of near copies by d1/d2, {space}", found.statistics.d1_d2)
    if c_t := found.statistics.c_t:
        yield Fact(file, f"{where}statistics.c_t.value", f"C_T, {space}", c_t.value, None, _OUTPUT)


def _share(file: str, number: str, title: str, found: Proportion) -> Fact:
    return Fact(file, f"{number}.share", title, found.share, found.ci95, _OUTPUT)


def attack_facts(attacked: Attacked) -> list[Fact]:
    """The numbers of an attack: its budget, its outcome and its control, by each way."""
    file = f"attacks/{attacked.name}/{ATTACK_FILES['json']}"
    budget = f"budget, plain samples of {attacked.steps} steps"
    facts = [
        Fact(file, "budget", budget, attacked.budget, None, _DATA),
        Fact(file, "found", "outcome", attacked.outcome, None, _DATA),
    ]
    for number, each in enumerate(attacked.numbers.attacks):
        where, way = f"found.attacks.{number}", WAYS[each.way]
        mine, control = f"training images recovered, {way}", f"held-out images recovered, the control, {way}"
        facts += [
            Fact(file, f"{where}.evaluations", f"evaluations of the model, {way}", each.evaluations, None, _DATA),
            Fact(file, f"{where}.train.share", mine, each.train.share, each.train.ci95, _DATA),
            Fact(file, f"{where}.held_out.share", control, each.held_out.share, each.held_out.ci95, _DATA),
        ]
    return facts


def run_facts(name: str, method: str, skipped: float | None, privacy: Mapping[str, Any] | None) -> list[Fact]:
    """What a run tells of its safeguard.

    Args:
        name: of its folder in the pack.
        method: in words.
        skipped: the share of images that Anti-Gradient Control skipped; None where that was not kept.
        privacy: what DP-SGD guarantees, or None.
    """
    folder = f"runs/{name}"
    facts = [Fact(f"{folder}/config.json", "method", "training method, the safeguard", method, None, _SAFEGUARD)]
    if skipped is not None:
        title = "share of training examples that Anti-Gradient Control skipped"
        facts.append(Fact(f"{folder}/telemetry.csv", "skipped", title, skipped, None, _SAFEGUARD))
    if privacy:
        title = f"epsilon of differential privacy, delta {privacy['delta']:.3g}"
        facts.append(Fact(f"{folder}/identity.json", "privacy.epsilon", title, privacy["epsilon"], None, _OUTPUT))
    return facts


def evidence(facts: Sequence[Fact]) -> dict[str, Any]:
    """The content of evidence.json."""
    return {
        "meaning": NOT_COMPLIANCE,
        "measures": {name: asdict(measure) for name, measure in MEASURES.items()},
        "facts": [asdict(fact) for fact in facts],
    }
