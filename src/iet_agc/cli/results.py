"""What verbs return, as far as lines for people read it: their JSON, by verb. For type checkers."""

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

__all__ = [
    "Audited",
    "Averaged",
    "Benched",
    "Built",
    "Carded",
    "Check",
    "Compared",
    "Copies",
    "Curve",
    "Cut",
    "Deduplicated",
    "Detected",
    "Drawn",
    "Gate",
    "Inferred",
    "Initialized",
    "Mean",
    "Packed",
    "Prompt",
    "Quality",
    "Recommended",
    "Reported",
    "Shown",
    "Stopped",
    "Trained",
    "TrainingCopies",
    "Verified",
]


class Mean(TypedDict):
    """A number that has a spread, or an interval."""

    mean: float
    ci95: NotRequired[Sequence[float] | None]


class _Share(TypedDict):
    count: int
    share: float
    ci95: Sequence[float]


class _Calibrated(_Share):
    cut: float
    false_alarm: float


class Copies(TypedDict):
    """Copies in a folder."""

    looked_for: str
    groups: int
    largest: int
    redundant: int


class Initialized(TypedDict):
    """Of `init`."""

    settings: str
    images: int
    formats: Mapping[str, int]
    grey: int
    width: Sequence[int]
    height: Sequence[int]
    enlarged: int
    mending: Mapping[str, int]
    copies: Copies
    captions: str | None
    classes: int
    training_images: int
    held_out_images: int
    shape: Sequence[int]
    members: int
    rounds: int
    steps: int
    batch_size: int
    device: str
    train_seconds: float
    samples: int
    sample_seconds: float
    memory: int
    warnings: Sequence[str]


class Recommended(TypedDict):
    """Which point of a curve to keep."""

    step: int | None
    sentence: str


class Stopped(TypedDict):
    """Where a run ended early, and of which step the weights are that it leaves."""

    step: int
    weights_of_step: int


class Privacy(TypedDict):
    """What the weights of a run of DP-SGD guarantee; see `training.private.Privacy`."""

    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    accountant: str


class Curve(TypedDict):
    """Of `curve`."""

    run: str
    points: int
    measured: str
    recommendation: Recommended
    files: Mapping[str, str]


class Trained(TypedDict):
    """Of `train`."""

    run: str
    preset: str
    training_images: int
    held_out_images: int
    steps: int
    images_seen: int
    skip_rate: float
    seconds: float
    recommendation: NotRequired[Recommended]
    stopped: NotRequired[Stopped]
    privacy: NotRequired[Privacy]


class _Guarded(TypedDict):
    turned_down: int
    drawn: int


_OfClass = TypedDict("_OfClass", {"class": NotRequired[int]})


class _Guided(TypedDict):
    """Anti-Memorization Guidance of a sample set."""

    strength: float
    cut: float


class Drawn(_OfClass):
    """Of `sample`."""

    samples: str
    num: int
    first_seed: int
    steps: int
    seconds: float
    prompts: NotRequired[int]
    guidance: NotRequired[float]
    guard: NotRequired[_Guarded]
    amg: NotRequired[_Guided]


class Check(TypedDict):
    """A check of one way of copying."""

    space: str | None
    by: str
    count: int
    total: int
    share: float
    least: float
    failed: bool


class Gate(TypedDict):
    """Of `check`."""

    fail_above: float
    failed: bool
    checks: Sequence[Check]


class Quality(TypedDict):
    """Quality in an audit."""

    extractor: str | None
    frechet_held_out: float | Mean | None
    frechet_train: float | Mean | None
    warnings: Sequence[object]


class _Groups(TypedDict):
    groups: int
    largest: int


class TrainingCopies(TypedDict):
    """Copies in a training set."""

    exact: _Groups
    near: _Groups | None


class _Verdict(TypedDict):
    reasons: Sequence[str]


class _Crowded(TypedDict):
    train: _Share


class Groups(TypedDict):
    """What neighbours are, where they are groups."""

    num_groups: int
    crowded: _Crowded | None


class Transformed(TypedDict):
    """Copies as they are, and under transformations."""

    calibrated: _Calibrated | None
    others: _Share | None


class Audited(TypedDict):
    """Of `audit`: audit.json."""

    num_samples: int
    mq: Mapping[str, _Share]
    calibrated: _Calibrated | None
    quality: Quality
    gate: Gate | None
    train_copies: TrainingCopies | None
    groups: Groups | None
    transformed: Transformed | None
    verdict: _Verdict | None
    warnings: Sequence[object]


class Carded(TypedDict):
    """Of `card`."""

    card: str
    run: str
    outcomes: Sequence[str]
    verdict: str


class Packed(TypedDict):
    """Of `pack`."""

    pack: str
    audits: Sequence[str]
    runs: Sequence[str]
    attacks: Sequence[str]
    files: int
    bytes: int
    digest: str


class _Changed(TypedDict):
    file: str
    how: str


class _Differing(TypedDict):
    where: str
    printed: str
    found: str


class Verified(TypedDict):
    """Of `verify`."""

    pack: str
    sound: bool
    digest: str | None
    files: int
    changed: Sequence[_Changed]
    differences: Sequence[_Differing]
    counted: int
    documents: int
    measured: int
    only_images: Mapping[str, int]
    notes: Sequence[str]


class Reported(TypedDict):
    """Of `report`."""

    report: str


class _Row(TypedDict):
    runs: Sequence[str]
    copied: Mean | None
    calibrated: Mean | None
    frechet_held_out: Mean | None


class Compared(TypedDict):
    """Of `compare`."""

    presets: Mapping[str, _Row]
    warnings: Sequence[str]
    files: NotRequired[Mapping[str, str]]


class _Point(TypedDict):
    copied: Mean
    held_out_distance: Mean


class _Arm(TypedDict):
    front: Sequence[str]
    points: Mapping[str, _Point]


class _Failed(TypedDict):
    folder: str
    reason: str


class Benched(TypedDict):
    """Of `bench`."""

    title: str
    seeds: Sequence[int]
    runs: int
    arms: Mapping[str, _Arm]
    failures: Sequence[_Failed]
    files: Mapping[str, str]


class Shown(TypedDict):
    """Of `demo`."""

    presets: Mapping[str, Audited]
    report: str
    seconds: float


class Prompt(TypedDict):
    """A prompt that was looked at."""

    prompt: str
    magnitude: float


class _Separation(TypedDict):
    auc: float


class Detected(TypedDict):
    """Of `detect`."""

    detect: str
    num_prompts: int
    seconds: float
    separation: _Separation | None
    highest: Sequence[Prompt]


class _Area(TypedDict):
    value: float
    ci95: Sequence[float]


class _FoundAt(TypedDict):
    false_alarm: float
    share: NotRequired[float]
    ci95: NotRequired[Sequence[float]]
    num_held_out: int
    num_needed: NotRequired[int]


class Inferred(TypedDict):
    """Of `membership`; what is found at each rate of false alarms has a share, or says what is missing."""

    membership: str
    num_train: int
    num_held_out: int
    draws: int
    auc: _Area
    found: Sequence[_FoundAt]
    page: str


class _Recovered(_Share):
    total: int


class _Rate(TypedDict):
    value: float
    ci95: Sequence[float]


class _Difference(TypedDict):
    ci95: Sequence[float]


class Way(TypedDict):
    """One way to look for copies."""

    way: str
    evaluations: int
    train: _Recovered
    held_out: _Recovered
    beyond_chance: _Difference
    per_1000_samples: _Rate
    per_hour: _Rate
    sampling_by_then: int | None


class Attacked(TypedDict):
    """Of `attack`."""

    attack: str
    num_train: int
    num_held_out: int
    unit: str
    attacks: Sequence[Way]
    page: str


class _Redundant(TypedDict):
    count: int
    share: float


class _Kinds(TypedDict):
    exact: int
    near: int


class _KeepList(TypedDict):
    file: str


class _Allowed(TypedDict):
    fail_above: float
    failed: bool


class Deduplicated(TypedDict):
    """Of `duplicates`."""

    images: int
    redundant: _Redundant
    groups: _Kinds
    near: bool
    largest_group: int
    kept: int
    keep_list: _KeepList | None
    gate: _Allowed | None


class Cut(TypedDict):
    """Of `shards`."""

    out: str
    num_images: int
    num_classes: int
    sizes: Sequence[int]
    keep_together: str | None
    groups: int
    largest_group: int
    left_out: int
    folders: bool
    captioned: NotRequired[int]
    left_behind: NotRequired[int]


class Averaged(TypedDict):
    """Of `average`."""

    out: str
    kind: str
    models: Sequence[str]
    weights: Sequence[float]
    tensors: int
    equal_files: int
    lora: str | None


class Built(TypedDict):
    """Of `pipeline`."""

    steps: int
    train_db: float
    held_out_db: float
