"""The record of an audit: all of audit.json, version 2. No torch, so that pages read it as well as audits write it.

A record is checked when it is made and when it is read: numbers are finite and within their ranges, shares are those of
their counts, counts within what they are counted in, intervals in order around their share. `docs/audit.schema.json`
is the JSON Schema of it; `python -m iet_agc.auditing.schema` prints it. What numbers mean stands in docs/metrics.md.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, JsonValue, ValidationError, model_validator

from iet_agc.metrics.gate import Gate, Way
from iet_agc.metrics.intervals import ROUNDING, Count, Portion, Proportion, Record
from iet_agc.metrics.records import (
    AboutPrompts,
    Alignment,
    Calibrated,
    Crowded,
    Quality,
    Similarity,
    Statistics,
    StatisticsOfReal,
    Transformed,
    Warned,
)
from iet_agc.metrics.soundness import Farther, HeldOutCheck
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.paths import check_audit_place
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.seal import unsealed

__all__ = [
    "CUT",
    "FLAT",
    "AuditRecord",
    "AuditWarning",
    "Conventions",
    "Copies",
    "CopyGroups",
    "CopiesLeftOut",
    "Coverage",
    "Fingerprints",
    "HeldOut",
    "LeftOut",
    "ManyNearCopies",
    "Mended",
    "Names",
    "NoCut",
    "Provenance",
    "Space",
    "TrainingCopies",
    "UnknownImages",
    "UnknownOrigin",
    "Verdict",
    "json_schema",
    "one_line",
    "read_record",
]

#: The version of audit.json; it is raised when keys come, go or change their meaning.
VERSION = 2

#: The cuts of MQ, the paper's nine, as they are written; the first is that of audits that are not calibrated.
CUTS = ("0.15", "0.20", "0.30", "0.40", "0.50", "0.60", "0.70", "0.80", "0.90")
CUT = CUTS[0]

#: An image is flat where in each channel the standard deviation of its pixels is at most this share of their range.
FLAT = 0.02


#: So many held-out images are named where they are left out; audit.json has all.
_MOST_NAMED = 5


# Warnings ---------------------------------------------------------------------------------------------------


class ManyNearCopies(Warned):
    """More held-out images are near copies of training images than by chance."""

    words: ClassVar[str] = (
        "{num_near_copies} of {num_held_out} held-out images are near copies of training images (d1/d2 < 1/3). They "
        "set no cut and count neither for C_T nor for quality: see whether held-out images are apart from the training "
        "set"
    )
    code: Literal["many_near_copies"] = "many_near_copies"
    num_near_copies: Count
    num_held_out: Count


class _SetNoCut(Warned):
    """Held-out images that set no cut, and what it is with them and without them."""

    code: str
    held_out: Annotated[tuple[Count, ...], Field(min_length=1)]
    total: Count
    cut: float | None
    cut_with_them: float | None

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        named = [f"number {one:,}" for one in self.held_out[:_MOST_NAMED]]
        further = len(self.held_out) - len(named)
        which = ", ".join([*named, *([f"and {further:,} more"] if further else [])])
        cuts = ["not set" if cut is None else f"{cut:.3f}" for cut in (self.cut_with_them, self.cut)]
        return {"count": len(self.held_out), "total": self.total, "which": which, "with_them": cuts[0], "cut": cuts[1]}


class CopiesLeftOut(_SetNoCut):
    """Held-out images that are training images again, altered, would have moved the cut."""

    words: ClassVar[str] = (
        "{count} of {total:,} held-out images are near copies of training images, found by laying them over these "
        "({which}). They were left out: with them the cut is {with_them}, without them {cut}; see whether held-out "
        "images are apart from the training set"
    )
    code: Literal["copies_left_out"] = "copies_left_out"  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)


class TransformedLeftOut(_SetNoCut):
    """Held-out images that are training images again, transformed, set no cut on transformed copies."""

    words: ClassVar[str] = (
        "{count} of {total:,} held-out images are training images again, mirrored, moved, cropped or of other "
        "brightness or contrast ({which}). They set no cut on transformed copies: with them it is {with_them}, without "
        "them {cut}; see whether held-out images are apart from the training set"
    )
    code: Literal["transformed_left_out"] = "transformed_left_out"  # pyright: ignore[reportIncompatibleVariableOverride] (frozen)


class NoCut(Warned):
    """Held-out images are too few to set a cut."""

    words: ClassVar[str] = "{reason}: shares below a calibrated cut are not known"
    code: Literal["no_cut"] = "no_cut"
    num_held_out: Count
    num_needed: Count

    @property
    def reason(self) -> str:
        """The first half of the sentence."""
        return (
            f"{self.num_held_out} held-out images that are no copies or near copies of training images are too few to "
            f"set a calibrated cut, {self.num_needed} are needed"
        )

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        return {"reason": self.reason}


class UnknownImages(Warned):
    """A run does not say which images it was begun with."""

    words: ClassVar[str] = (
        "{source} does not say which {which} images it was begun with: whether they are the same is not checked"
    )
    code: Literal["unknown_images"] = "unknown_images"
    source: str
    which: Literal["training", "held-out"]


class UnknownOrigin(Warned):
    """It is not known whether samples were drawn from the run in whose folder they lie."""

    words: ClassVar[str] = "{samples} {why}, so whether it is the run's own is not checked"
    code: Literal["unknown_origin"] = "unknown_origin"
    samples: str
    run: str
    says_origin: bool

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        why = "does not say which weights drew it"
        if self.says_origin:
            why = f"cannot be compared, {self.run} has no weights"
        return {"samples": self.samples, "why": why}


class LeftOut(Warned):
    """Files of a folder cannot be used and were left out, as was asked for."""

    words: ClassVar[str] = "{num} files of {source} cannot be used and were left out{consequence}"
    code: Literal["left_out"] = "left_out"
    source: str
    images: Literal["train", "samples", "held-out"]
    num: Annotated[Count, Field(ge=1)]

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        consequences = {"train": ": copies of them are not found", "samples": ": whether they are copies is not known"}
        return {**dict(self), "consequence": consequences.get(self.images, "")}


AuditWarning = Annotated[
    ManyNearCopies | CopiesLeftOut | TransformedLeftOut | NoCut | Farther | UnknownImages | UnknownOrigin | LeftOut,
    Field(discriminator="code"),
]


# Copies -----------------------------------------------------------------------------------------------------


def _nine(shares: dict[str, Proportion]) -> dict[str, Proportion]:
    if tuple(shares) != CUTS:
        raise ValueError(f"its cuts are {', '.join(shares) or 'none'}, not {', '.join(CUTS)}")
    return shares


#: Shares below each of the nine cuts.
Quantities = Annotated[dict[str, Proportion], AfterValidator(_nine)]


class HeldOut(Record):
    """The same of held-out images, which is what chance looks like."""

    mq: Quantities
    statistics: StatisticsOfReal


class Copies(Record):
    """How much is copied in one space, that of pixels or of a network's features.

    Attributes:
        mq: memorization quantities, shares of samples with a ratio below each cut.
        held_out: None where no held-out images were given.
        calibrated: the share below the calibrated cut; None where held-out images are too few.
        warnings: why these numbers are not to be trusted.
        statistics: the field's other ones.
        held_out_check: whether the held-out images may set the cut; None where there are too few to ask.
    """

    mq: Quantities
    held_out: HeldOut | None
    calibrated: Calibrated | None
    warnings: tuple[AuditWarning, ...]
    statistics: Statistics
    held_out_check: HeldOutCheck | None = None

    @model_validator(mode="after")
    def _counts_the_same_images(self) -> Self:
        for images, shares in (("samples", [*self.of_samples()]), ("held-out images", [*self.of_held_out()])):
            if odd := [each.total for each in shares if each.total != shares[0].total]:
                raise ValueError(f"shares are of {shares[0].total} and of {odd[0]} {images}")
        cuts = [each for each in (self.calibrated, self.statistics.near) if each]
        for each in cuts:
            if each.cut < 0 or each.num_held_out > self.total_held_out:
                raise ValueError(
                    f"a cut is {each.cut!r}, set by {each.num_held_out} of {self.total_held_out} held-out images"
                )
        return self

    def of_samples(self) -> Iterator[Proportion]:
        """All shares of samples."""
        others = (self.calibrated, self.statistics.d1_d2, self.statistics.auth_pct, self.statistics.near)
        yield from (*self.mq.values(), *(each for each in others if each))

    def of_held_out(self) -> Iterator[Proportion]:
        """All shares of held-out images."""
        if self.held_out:
            yield from (*self.held_out.mq.values(), self.held_out.statistics.d1_d2, self.held_out.statistics.auth_pct)

    @property
    def total_held_out(self) -> int:
        """How many held-out images the shares are of."""
        return self.held_out.mq[CUT].total if self.held_out else 0

    @property
    def cut(self) -> float:
        """Below it a sample is called a copy: the calibrated cut, or 0.15."""
        return self.calibrated.cut if self.calibrated else float(CUT)

    @property
    def copied(self) -> Proportion:
        """The share below `cut`."""
        return self.calibrated or self.mq[CUT]


class Space(Copies):
    """What was found in the features of one network.

    Attributes:
        sha256: of its weights.
        similarity_check: whether held-out images may set the cut on similarity, of descriptors made to find copies.
    """

    sha256: str | None
    dimensions: Count
    quality: Quality
    similarity: Similarity
    similarity_check: HeldOutCheck | None = None
    alignment: Alignment | None


# The audit --------------------------------------------------------------------------------------------------


class Fingerprints(Record):
    """SHA-256 of the sets."""

    train: str
    samples: str
    held_out: str | None


class Names(Record):
    """What was audited, as who asked for it wrote it; without held-out images, nothing."""

    train: str
    samples: str
    held_out: str


class Conventions(Record):
    """How the numbers were taken, in words.

    Attributes:
        k: how many neighbours the mean of the ratio takes.
        flips: mirrored copies count.
        convert_to, resize: the size that images were brought to, and how, if they were.
    """

    distance: str = "squared L2 on [0, 1] pixels, exact; in feature spaces squared L2 between features"
    ratio: str = "nearest distance / mean of the k nearest, the nearest included"
    k: Count
    references: str = "unique training images"
    held_out: str = (
        "unique held-out images that do not stand in the training set; near copies of training images, by d1/d2 < 1/3 "
        "in the space that is measured, set no cut and count neither for C_T nor for quality"
    )
    flips: bool
    below: str = "ratio < cut"
    interval: str
    direction: str = "a lower share is less copied; a lower Fréchet distance is better"
    mq: str = "memorization quantity at the paper's nine cuts, Liu et al., ECCV 2024, arXiv 2407.15328"
    calibrated: str = (
        "the floor((H + 1) / 100)-th smallest ratio of the H held-out images that are no near copies of training "
        "images themselves, by d1/d2 < 1/3"
    )
    convert_to: str | None = None
    resize: str | None = None


class Mended(Record):
    """What was asked for about image files that cannot be used as they are, and what was done.

    Attributes:
        orient, background, on_bad, resize, crop: of folders, see `data.mending.Mending`; a run mends its images as it
            was trained.
        sets: for each set with such files, how many were treated in which way, such as {"oriented": 3, "left out:
            damaged": 1}; of a run, of all files that its images were read from.
    """

    orient: bool
    background: str | None
    on_bad: Literal["fail", "skip"]
    resize: str | None = None
    crop: str | None = None
    sets: dict[Literal["train", "samples", "held_out"], dict[str, Count]]


class Provenance(Record):
    """When and with what an audit was made.

    Attributes:
        date: when it was finished, UTC, such as "2026-03-01T12:00:00Z".
        device: "cpu" or "cuda".
        versions: of iet-agc and torch, by name.
    """

    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    device: str
    versions: dict[str, str]


class Verdict(Record):
    """What an audit allows to say, made by `iet_agc.auditing.verdict.verdict`.

    Attributes:
        outcome: "copies": beyond chance; "undecided"; "chance": no copying beyond chance shown; "cannot_tell".
        by: the ways of copying that show copies, or by which it was judged otherwise; in words.
        reasons: why it cannot be told, by what else it is judged or not; each with its mend, sentences without their
            full stops.
    """

    outcome: Literal["copies", "undecided", "chance", "cannot_tell"]
    by: tuple[str, ...]
    reasons: tuple[str, ...]


class Coverage(Record):
    """How many unique training images the samples' prompts are about; `num_prompts` counts different prompts."""

    num_prompts: Count
    num_train_images: Count
    share: Portion
    convention: str = "different prompts, and unique training images of which one is a caption; share of all of these"


class CopyGroups(Record):
    """Groups of copies of an image: how many, the images in all of them, and those in the largest, 0 of none."""

    groups: Count
    images: Count
    largest: Count

    @model_validator(mode="after")
    def _groups_are_of_two_or_more(self) -> Self:
        rest = self.groups - 1  # groups beside the largest
        if (self.groups and not 2 <= self.largest <= self.images - 2 * rest) or (not self.groups and self.images):
            raise ValueError(f"{self.groups} groups of {self.images} images, the largest of {self.largest}")
        return self


class TrainingCopies(Record):
    """Training images that stand more than once in the training set.

    Attributes:
        exact: of all training images, those that are equal pixel by pixel.
        near: of the unique ones, near copies, and mirrored ones where `Conventions.flips`; None where there are so many
            images that they were not looked for.
    """

    exact: CopyGroups
    near: CopyGroups | None


#: What neighbours are where an audit asks for groups, see `Conventions.references`.
BY_GROUPS = "groups of training images that are exact or near copies of one another, each at its nearest image"


class Groups(Record):
    """What neighbours are in an audit that takes groups of copies among training images for one, see `metrics.groups`.

    Attributes:
        origin: "searched" by the audit, or "given".
        num_groups: how many groups there are, those of one image included.
        crowded: neighbourhoods of training images in which many others are; None without held-out images.
    """

    origin: Literal["searched", "given"]
    num_groups: Annotated[Count, Field(ge=2)]
    crowded: Crowded | None


#: The cut on joint scores, which the same held-out images set as that in pixels.
_TRANSFORMED = Way(None, "transformed")


class _Sets(Record):
    """What was audited: how many images, and which."""

    version: Literal[2] = VERSION
    num_samples: Count
    num_train: Count
    num_train_unique: Annotated[Count, Field(ge=1)]
    sha256: Fingerprints
    num_held_out: Count
    num_held_out_in_train: Count
    num_held_out_repeated: Count
    conventions: Conventions


class AuditRecord(Copies, _Sets):
    """All of audit.json; the shares at the top are those in pixels.

    Attributes:
        num_train, num_train_unique: training images, and those of them that differ.
        num_held_out, num_held_out_in_train, num_held_out_repeated: held-out images that were used, and those that were
            left out, since they stand in the training set or repeat others.
        quality: in the features that were asked for first, or in pixels.
        feature_spaces: by the name of each network.
        verdict: what all this allows to say.
        prompts: None where samples have no prompts, or training images no captions.
        gate: None where none was asked for.
        clip: None likewise.
        mending: None where it was not asked for and no file needed it.
        train_copies: None of audits of before it was counted.
        groups: None where neighbours are single training images.
        transformed: None where transformed copies were not looked for.
        made_of: what the audit follows from, to tell it from another one; None of one that was not made from folders.
        names: None likewise.
        provenance: None likewise, and of audits that were made before it was kept.
    """

    quality: Quality
    feature_spaces: dict[str, Space]
    verdict: Verdict | None = None
    prompts: Coverage | None = None
    gate: Gate | None = None
    clip: AboutPrompts | None = None
    mending: Mended | None = None
    train_copies: TrainingCopies | None = None
    groups: Groups | None = None
    transformed: Transformed | None = None
    made_of: dict[str, JsonValue] | None = None
    names: Names | None = None
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _counts_what_there_is(self) -> Self:
        """Shares are of all samples and of all held-out images, in every space."""
        if self.num_train_unique > self.num_train:
            raise ValueError(f"there are {self.num_train_unique} unique ones of {self.num_train} training images")
        totals = {
            "samples": self.num_samples,
            "training images": self.num_train_unique,
            "held-out images": self.num_held_out,
        }
        for images, total in self._totals():
            if total != totals[images]:
                raise ValueError(f"a share is of {total} {images}, and there are {totals[images]}")
        if self.prompts and abs(self.prompts.num_train_images / self.num_train_unique - self.prompts.share) > ROUNDING:
            raise ValueError(
                f"prompts are about {self.prompts.num_train_images} images, a share of {self.prompts.share!r}"
            )
        return self

    def _totals(self) -> Iterator[tuple[str, int]]:
        """What shares are of, and of how many; within a space, they agree."""
        for copies in (self, *self.feature_spaces.values()):
            yield "samples", copies.mq[CUT].total
            yield "held-out images", copies.total_held_out
        joint = self.transformed and self.transformed.calibrated
        if joint:
            yield "samples", joint.total
        for space in self.feature_spaces.values():
            found = space.similarity
            yield "samples", found.samples.above.total
            yield "training images", found.train.above.total
            yield "held-out images", found.held_out.above.total if found.held_out else 0

    def ways(self) -> dict[Way, Calibrated | None]:
        """The share beyond the cut by each way of copying, pixels first; similarity where it is made to find copies."""
        found = {Way(None): self.calibrated}
        if self.transformed:
            found[_TRANSFORMED] = self.transformed.calibrated
        for name, space in self.feature_spaces.items():
            found[Way(name)] = space.calibrated
            if space.similarity.copy_detection:
                found[Way(name, "similarity")] = space.similarity.calibrated
        return found

    def checks(self) -> dict[Way, HeldOutCheck | None]:
        """By the same ways, whether held-out images may set the cut."""
        found = {Way(None): self.held_out_check, _TRANSFORMED: self.held_out_check}
        for name, space in self.feature_spaces.items():
            found |= {Way(name): space.held_out_check, Way(name, "similarity"): space.similarity_check}
        return {way: found[way] for way in self.ways()}

    @model_validator(mode="after")
    def _held_out_images_set_a_cut_or_not(self) -> Self:
        """Held-out images that are transformed copies set no cut on these."""
        joint = self.transformed and self.transformed.calibrated
        copies = (self.transformed and self.transformed.num_held_out_copies) or 0
        if copies + (joint.num_held_out if joint else 0) > self.num_held_out:
            raise ValueError(f"{copies} of {self.num_held_out} held-out images set no cut, and too many set it")
        return self

    @model_validator(mode="after")
    def _gate_looked_at_it(self) -> Self:
        """A gate counts what the calibrated shares count."""
        for check in self.gate.checks if self.gate else ():
            found = self.ways().get(check.way)
            if found is None or (found.count, found.total) != (check.count, check.total):
                raise ValueError(f"a gate's count is {check.count} of {check.total}, that of the audit is another")
        return self


# Files ------------------------------------------------------------------------------------------------------

_AGAIN = "run the same 'iet-agc audit' again"


def read_record(file: Path, files: Collection[str] = ()) -> AuditRecord:
    """Read an audit.json.

    Args:
        file: that one.
        files: beside it, which have to be as they were written, too.

    Raises:
        UserError: it is not there, of another version, or damaged; one line.
    """
    check_audit_place(file.parent)
    content = read_object(file, _AGAIN)
    if (version := content.get("version")) != VERSION:
        raise UserError(f"{file} has version {version!r}, this iet-agc reads {VERSION}: {_AGAIN}")
    try:
        record = AuditRecord.model_validate_json(json.dumps(unsealed(file, content, _AGAIN, files)))
    except ValidationError as error:
        raise UserError(f"{file} is damaged: {one_line(error)}; {_AGAIN}") from None
    if record.names is None:
        raise UserError(f"{file} is damaged: names are not there; {_AGAIN}")
    return record


def one_line(error: ValidationError) -> str:
    """What a record is refused for, in one line: where, why and, if it is short, what stands there."""
    first = error.errors(include_url=False)[0]
    where, why = ".".join(map(str, first["loc"])), " ".join(first["msg"].removeprefix("Value error, ").split())
    said = (
        "" if isinstance(first["input"], dict | list | tuple | BaseModel | bytes) else f", not {first['input']!r:.60}"
    )
    return f"{where}: {why}{said}" if where else f"{why}{said}"


def json_schema() -> str:
    """The content of docs/audit.schema.json: the record, and the seal that the file has besides."""
    schema = AuditRecord.model_json_schema()
    schema["properties"]["seal"] = {"type": "object", "description": "SHA-256 of the file and of those beside it"}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
