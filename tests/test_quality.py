"""Quality: identities, closed forms, agreement with torch-fidelity, and what small sets say."""

import math

import pytest
import torch
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, calculate_metrics
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from iet_agc.metrics import quality as quality_module
from iet_agc.metrics.features import Extractor, Features, load_extractor
from iet_agc.metrics.quality import (
    frechet_distance,
    memorization_distance,
    mifid,
    no_quality,
    precision_recall,
    quality,
)
from iet_agc.metrics.records import Quality, Spread


def _gaussian(count: int, mean: list[float], deviation: list[float], seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, len(mean), dtype=torch.float64, generator=rng)
    return noise * torch.tensor(deviation, dtype=torch.float64) + torch.tensor(mean, dtype=torch.float64)


def _exact(first: Tensor) -> Tensor:
    """The same rows with mean 0 and covariance 1, both exactly (up to rounding)."""
    centred = first - first.mean(0)
    factor = torch.linalg.cholesky(torch.cov(centred.T))
    return torch.linalg.solve_triangular(factor, centred.T, upper=False).T


# Fréchet distance -------------------------------------------------------------------------------------


def test_closed_form_for_diagonal_covariances() -> None:
    # |mu_1 - mu_2|^2 + sum_j (s_1j - s_2j)^2
    base = _exact(_gaussian(500, [0] * 3, [1] * 3, 0))
    mu, one, two = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, -2.0, 0.5], [1.0, 2.0, 0.5], [3.0, 2.0, 1.0]))
    expected = float(mu.square().sum() + (one - two).square().sum())  # 5.25 + 4.25
    assert expected == 9.5
    assert frechet_distance(base * one, base * two + mu) == pytest.approx(expected, rel=1e-9)


def test_large_samples_come_near_the_closed_form() -> None:
    first = _gaussian(20_000, [0, 1, 2, 3], [1, 1, 2, 2], 0)
    second = _gaussian(20_000, [0, 0, 2, 5], [1, 2, 2, 1], 1)
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + 1 + 1, rel=0.03)


def test_closed_form_in_one_dimension() -> None:
    # (mu_1 - mu_2)^2 + (s_1 - s_2)^2; {-1, 1} has deviation sqrt(2), {2, 6} mean 4 and deviation 2 sqrt(2)
    first, second = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([[2.0], [6.0]]).double()
    assert frechet_distance(first, second) == pytest.approx(16 + 2, rel=1e-12)


def test_closed_form_for_covariances_that_do_not_commute() -> None:
    # 2 x 2: tr sqrt(A B) = sqrt(tr(A B) + 2 sqrt(det A det B))
    base = _exact(_gaussian(50, [0] * 2, [1] * 2, 0))
    one, two = torch.tensor([[2.0, 0.0], [1.0, 1.0]]).double(), torch.tensor([[1.0, 3.0], [0.0, 1.0]]).double()
    a, b = one @ one.T, two @ two.T
    root = math.sqrt(float((a @ b).trace()) + 2 * math.sqrt(float(a.det() * b.det())))
    expected = float(a.trace() + b.trace()) - 2 * root
    assert frechet_distance(base @ one.T, base @ two.T) == pytest.approx(expected, rel=1e-9)


def test_rotations_change_nothing() -> None:
    rng = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=rng)).Q
    first, second = _gaussian(300, [0] * 4, [1, 2, 3, 4], 0), _gaussian(200, [1] * 4, [2, 1, 1, 2], 1)
    assert frechet_distance(first @ rotation, second @ rotation) == pytest.approx(
        frechet_distance(first, second), rel=1e-9
    )


def test_zero_on_itself_and_symmetric() -> None:
    first, second = _gaussian(300, [0] * 4, [1, 2, 3, 4], 0), _gaussian(200, [1] * 4, [2, 1, 1, 2], 1)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)
    assert frechet_distance(first, second) > 1


def test_fewer_images_than_features() -> None:
    """Covariances without full rank, as with 28 x 28 pixels and a hundred images."""
    first = torch.rand(30, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(first, first + 1) == pytest.approx(64, rel=1e-5)


@pytest.mark.parametrize(("first", "second"), [(1, 5), (5, 1), (0, 5)])
def test_fewer_than_two_images(first: int, second: int) -> None:
    with pytest.raises(ValueError, match=f"needs 2 images on each side, not {first} and {second}"):
        frechet_distance(torch.rand(first, 3), torch.rand(second, 3))


# Precision and recall ---------------------------------------------------------------------------------


def _literal_coverage(inner: Tensor, outer: Tensor) -> float:
    """Share of `inner` within reach of some row of `outer`, by the definition."""
    within = torch.stack([(outer - row).square().sum(1).sqrt() for row in outer])
    reach = within.sort(dim=1).values[:, 3]
    across = torch.stack([(outer - row).square().sum(1).sqrt() for row in inner])
    return float((across <= reach).any(1).double().mean())


@pytest.mark.parametrize("shift", [0.0, 0.2, 1.0])
def test_precision_and_recall_by_definition_and_by_torch_fidelity(shift: float) -> None:
    samples, real = _gaussian(60, [shift] * 6, [0.7] * 6, 0), _gaussian(90, [0] * 6, [1] * 6, 1)
    found = precision_recall(samples, real)
    assert found["precision"] == pytest.approx(_literal_coverage(samples, real), abs=1e-7)
    assert found["recall"] == pytest.approx(_literal_coverage(real, samples), abs=1e-7)
    theirs = prc_features_to_metric(samples, real, verbose=False)
    assert found == {"precision": theirs["precision"], "recall": theirs["recall"]}
    assert precision_recall(samples, real, memory=100_000) == found


def test_a_set_covers_itself_and_far_sets_do_not() -> None:
    rows = _gaussian(40, [0] * 3, [1] * 3, 0)
    assert precision_recall(rows, rows) == {"precision": 1, "recall": 1}
    assert precision_recall(rows + 100, rows) == {"precision": 0, "recall": 0}


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.7])
@pytest.mark.parametrize("memory", [2 * 1024**3, 48 * 40 * 7])
def test_equal_features_cover_each_other(value: float, memory: int) -> None:
    """Rounded matrix products say 0 for some of these; ties are decided by chance there."""
    rows = torch.full((40, 7), value, dtype=torch.float64)
    assert precision_recall(rows, rows[:23], memory) == {"precision": 1, "recall": 1}


def test_repeated_rows_cover_themselves_whatever_the_block() -> None:
    rows = _gaussian(30, [0] * 50, [1] * 50, 0).repeat(5, 1)
    for memory in (2 * 1024**3, 48 * 150 * 7):
        assert precision_recall(rows, rows, memory) == {"precision": 1, "recall": 1}


# MiFID ------------------------------------------------------------------------------------------------


def test_memorization_distance_by_pencil() -> None:
    # cosines of (1, 0), (0, 2), (3, 4) with (1, 1) and (0, 5): 0.707 and 0; 0.707 and 1; 0.990 and 0.8
    samples = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]).double()
    references = torch.tensor([[1.0, 1.0], [0.0, 5.0]]).double()
    expected = ((1 - math.sqrt(0.5)) + 0 + (1 - 7 / (5 * math.sqrt(2)))) / 3
    assert memorization_distance(samples, references) == pytest.approx(expected, rel=1e-12)
    assert mifid(2.0, expected) == 2.0  # 0.1009...: not below the cut
    assert mifid(2.0, 0.05) == pytest.approx(40, rel=1e-9)


def test_memorization_distance_is_the_mean_over_samples_not_over_references() -> None:
    samples, references = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    assert memorization_distance(samples, references) == 0
    assert memorization_distance(references, samples) == 0.5


def test_opposite_and_scaled_features_are_copies() -> None:
    rows = _gaussian(20, [0] * 4, [1] * 4, 0)
    assert memorization_distance(-rows, rows) == 0
    assert memorization_distance(3 * rows, rows) == pytest.approx(0, abs=1e-30)


def test_features_of_length_zero_are_left_out() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    assert memorization_distance(rows, torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()) == pytest.approx(
        1 - math.sqrt(0.5)
    )
    assert math.isnan(memorization_distance(rows[1:], rows))
    assert math.isnan(mifid(1.0, math.nan))


def test_mifid_of_copies_is_huge_and_of_sets_that_are_equal_not_a_number() -> None:
    assert mifid(1.0, 0.0) == pytest.approx(1e14)
    assert math.isnan(mifid(0.0, 0.0))
    assert math.isnan(mifid(-1e-12, 0.5))


def test_mifid_may_take_near_copies_of_a_whole_set_for_better_than_fresh_images() -> None:
    """As docs/metrics.md says: the Fréchet distance falls about as fast as s, or faster. Of few images, it is huge."""
    train, fresh = (_gaussian(900, [2] * 5, [1] * 5, seed) for seed in (1, 2))
    near = train + _gaussian(900, [0] * 5, [0.05] * 5, 3)
    copied, honest, few = (
        mifid(frechet_distance(rows, train), memorization_distance(rows, train))
        for rows in (near, fresh, near[:30].repeat(30, 1))
    )
    assert copied == pytest.approx(0.25, abs=0.01)
    assert honest == pytest.approx(2.49, abs=0.01)
    assert few > 100 * honest


# The entry --------------------------------------------------------------------------------------------


def _extractor(name: str = "pixels") -> Extractor:
    return Extractor(name, None if name == "pixels" else "ab12", None, "as they come", torch.device("cpu"))


def _entry(*sets: Tensor | None, name: str = "pixels", logits: Tensor | None = None) -> Quality:
    mine, theirs, held = (None if rows is None else Features(rows) for rows in sets)
    assert mine is not None
    assert theirs is not None
    return quality(Features(mine.features, logits), theirs, held, _extractor(name))


def said(entry: Quality) -> list[str]:
    return [warning.sentence for warning in entry.warnings]


def _sets(dimensions: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, training and held-out features, not negative."""
    samples, train, held = (
        _gaussian(count, [mean] * dimensions, [deviation] * dimensions, seed).abs()
        for seed, (count, mean, deviation) in enumerate([(70, 2.2, 0.8), (90, 2, 1), (60, 2, 1)])
    )
    return samples, train, held


def test_the_entry_holds_what_torch_fidelity_says_to_the_bit() -> None:
    samples, train, held = _sets()
    logits = _gaussian(70, [0] * 12, [3] * 12, 9).float()
    entry = _entry(samples, train, held, name="net", logits=logits)
    for part, real in (("train", train), ("held_out", held)):
        statistics = fid_features_to_statistics(samples), fid_features_to_statistics(real)
        frechet = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
        found = {name.removesuffix(f"_{part}"): value for name, value in entry if name.endswith(f"_{part}")}
        assert found["frechet"] == frechet
        kid = kid_features_to_metric(samples, real, kid_subset_size=min(70, len(real)), verbose=False)
        assert found["kid"] == Spread(
            mean=kid["kernel_inception_distance_mean"], std=kid["kernel_inception_distance_std"]
        )
        shares = prc_features_to_metric(samples, real, verbose=False)
        assert (found["precision"], found["recall"]) == (shares["precision"], shares["recall"])
        assert found["mifid"] == mifid(frechet, memorization_distance(samples, real)) > frechet
    assert entry.frechet_train_to_held_out == frechet_distance(train, held)
    score = isc_features_to_metric(logits)
    assert entry.inception_score == Spread(mean=score["inception_score_mean"], std=score["inception_score_std"])
    assert (entry.extractor, entry.sha256, entry.dimensions) == ("net", "ab12", 5)


def test_of_few_images_the_frechet_distance_is_that_of_torch_fidelity_by_the_smaller_matrix() -> None:
    """24 and 30 images of 40 dimensions; equal sets have 0 up to rounding."""
    samples, train = (
        torch.randn(count, 40, generator=torch.Generator().manual_seed(count)).double() for count in (24, 30)
    )
    statistics = fid_features_to_statistics(samples), fid_features_to_statistics(train)
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(samples, train) == pytest.approx(theirs, rel=1e-5)
    assert frechet_distance(samples, samples) == pytest.approx(0, abs=1e-12)


def test_without_quality_the_keys_are_the_same_and_it_says_why() -> None:
    entry = no_quality(False, (3, 64, 64))
    assert {*entry.model_dump()} == {*_entry(*_sets()).model_dump()}
    assert {name for name, value in entry if value is not None} == {
        *("dimensions", "few_images", "warnings", "conventions", "num_held_out", "num_near_copies")
    }
    assert entry.why_not is not None
    assert "images of 3 x 64 x 64 are too large" in entry.why_not
    assert no_quality(True, (3, 64, 64)).why_not == "quality is not measured: as was asked for"
    assert _entry(*_sets()).why_not is None


def test_the_entry_is_json_and_says_its_conventions() -> None:
    samples, train, held = _sets()
    entry = _entry(samples, train, held)
    assert Quality.model_validate_json(entry.model_dump_json()) == entry
    assert list(dict(entry)) == [
        "extractor",
        "sha256",
        "dimensions",
        "frechet_train",
        "frechet_held_out",
        "frechet_train_to_held_out",
        "kid_train",
        "kid_held_out",
        "inception_score",
        "precision_train",
        "recall_train",
        "precision_held_out",
        "recall_held_out",
        "mifid_train",
        "mifid_held_out",
        "few_images",
        "warnings",
        "conventions",
        "num_held_out",
        "num_near_copies",
    ]
    assert entry.conventions["features"] == "as they come"
    for name in ("frechet", "kid", "inception_score", "precision_recall", "mifid"):
        assert "better" in entry.conventions[name]


def test_pairs_are_of_a_fixed_part_of_a_large_set(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, train, held = _sets()
    whole = _entry(samples, train, held)
    monkeypatch.setattr(quality_module, "_MOST_IN_PAIRS", 30)
    part = _entry(samples, train, held)
    assert part == _entry(samples, train, held)
    mine, theirs = (quality_module._some(rows) for rows in (samples, train))
    assert len(mine) == len(theirs) == 30
    assert {tuple(row) for row in mine.tolist()} < {tuple(row) for row in samples.tolist()}
    shares = precision_recall(mine.double(), theirs.double())
    assert (part.precision_train, part.recall_train) == (shares["precision"], shares["recall"])
    distance = memorization_distance(mine.double(), train.double())  # to all of the training set
    assert part.frechet_train is not None
    assert part.mifid_train == mifid(part.frechet_train, distance)
    for name in ("frechet_train", "kid_train", "inception_score"):
        assert getattr(part, name) == getattr(whole, name)


def test_a_set_against_itself() -> None:
    _, train, _ = _sets()
    entry = _entry(train, train, train)
    assert entry.frechet_train == entry.frechet_held_out == pytest.approx(0, abs=1e-9)
    assert entry.kid_train.mean <= 0
    assert (entry.precision_train, entry.recall_train) == (1, 1)


def test_copies_of_a_few_training_images_are_punished_by_mifid_only() -> None:
    samples, train, _ = _sets()
    copies = train[:10].repeat(7, 1)
    honest, copied = _entry(samples, train, None), _entry(copies, train, None)
    assert copied.precision_train == 1
    assert copied.mifid_train == pytest.approx(copied.frechet_train * 1e14)
    assert honest.frechet_train is not None
    assert honest.mifid_train < 100 * honest.frechet_train


def test_without_held_out_images_or_class_scores_there_are_no_such_numbers() -> None:
    samples, train, _ = _sets()
    entry = _entry(samples, train, None)
    absent = [name for name, value in entry if value is None]
    others = [name for name, _ in entry if "held_out" in name or name == "inception_score"]
    assert [*absent, "num_held_out"] == ["sha256", *others]
    assert entry.num_held_out == 0
    assert not any("held" in warning or "inception" in warning for warning in said(entry))


def test_the_same_features_give_the_same_entry() -> None:
    samples, train, held = _sets()
    assert _entry(samples, train, held) == _entry(samples, train, held)


def test_small_sets_are_named_with_their_numbers() -> None:
    samples, train, held = _sets()
    entry = _entry(samples[:5], train, held, name="net", logits=torch.zeros(5, 3))
    subsets = "every subset holds all 5 images of the smaller set, so its deviation understates the uncertainty"
    assert entry.few_images
    assert said(entry) == [
        "the sample set has 5 images for 5 features: its covariance lacks full rank, so Fréchet distances and MiFID "
        "are strongly biased upward",
        "the training set has 90 images, fewer than 2,048: Fréchet distances and MiFID are biased upward",
        "the held-out set has 60 images, fewer than 2,048: Fréchet distances and MiFID are biased upward",
        f"KID to training images: {subsets}",
        f"KID to held-out images: {subsets}",
        "Inception score: not measured, since 20 images are needed and a set has 5",
    ]
    assert not _entry(samples, train, held).few_images


def test_large_sets_need_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iet_agc.metrics.quality._KID_SUBSETS", 4)
    samples, train = (_gaussian(2048, [1] * 3, [1] * 3, seed) for seed in (0, 1))
    entry = _entry(samples, train, None, name="net")
    assert said(entry) == []
    assert entry.kid_train.std > 0


@pytest.mark.parametrize("count", [2, 3])
def test_two_or_three_images(count: int) -> None:
    samples, train, held = _sets()
    entry = _entry(samples[:count], train, held[:1])
    assert entry.frechet_train > 0
    assert math.isfinite(entry.kid_train.mean)
    assert entry.precision_train is entry.recall_train is entry.frechet_held_out is None
    assert (
        "Precision to training images and Recall to training images: not measured, since 4 images are needed and a set "
        f"has {count}" in said(entry)
    )
    assert "Fréchet distance to held-out images: not measured, since 2 images are needed and a set has 1" in said(entry)


def test_features_that_are_all_equal() -> None:
    same, other = torch.ones(30, 3, dtype=torch.float64), torch.full((25, 3), 3.0, dtype=torch.float64)
    entry = _entry(same, same, other, logits=torch.ones(30, 4))
    assert entry.frechet_train == pytest.approx(0, abs=1e-12)
    assert entry.frechet_held_out == pytest.approx(3 * 4)
    assert entry.kid_train == Spread(mean=0, std=0)
    assert (entry.precision_train, entry.recall_train) == (1, 1)
    assert (entry.precision_held_out, entry.recall_held_out) == (0, 0)
    assert entry.inception_score == Spread(mean=1, std=0)
    assert entry.mifid_train is None
    assert any(warning.startswith("MiFID to training images: not given, since") for warning in said(entry))


def test_samples_that_equal_the_training_set_do_not_get_the_best_mifid() -> None:
    """Rounding leaves 1e-13 of Fréchet distance or less, also below 0; copies of half of the set make MiFID huge."""
    _, train, held_out = _sets()
    entry = _entry(train.clone(), train, held_out)
    assert entry.frechet_train is not None
    assert abs(entry.frechet_train) < 1e-6
    assert entry.mifid_train is None
    (told,) = (warning for warning in said(entry) if warning.startswith("MiFID"))
    assert "its best value, even where all are copies" in told
    assert entry.mifid_held_out > 0
    half = _entry(train[: len(train) // 2], train, held_out)
    assert half.frechet_train is not None
    assert half.mifid_train > 1e6 * half.frechet_train > 0


def test_black_images() -> None:
    black = torch.zeros(30, 3, dtype=torch.float64)
    entry = _entry(black, _sets(3)[1], None)
    assert entry.mifid_train is None
    assert "MiFID to training images: not a finite number, so left out" in said(entry)
    assert entry.frechet_train > 0


def test_class_scores_that_leave_a_class_without_probability() -> None:
    samples, train, _ = _sets()
    entry = _entry(samples, train, None, logits=torch.tensor([[0.0, 0.0, -1e4]]).repeat(70, 1))
    assert entry.inception_score is None
    assert said(entry)[-1] == "Inception score: not a finite number, so left out"
    assert entry.frechet_train > 0


def test_features_that_do_not_fit() -> None:
    samples, train, _ = _sets()
    with pytest.raises(ValueError, match="features of several extractors: sample 5, training 3 dimensions"):
        _entry(samples, train[:, :3], None)
    train[0, 0] = math.nan
    with pytest.raises(ValueError, match="the training set has features that are not finite"):
        _entry(samples, train, None)


class _Tiny(FeatureExtractorBase):
    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "pooled", "logits_unbiased"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits_unbiased" if metric == "isc" else "pooled"

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        pooled = torch.nn.functional.adaptive_avg_pool2d(input.float() / 255, 2).flatten(1)
        return tuple({"pooled": pooled, "logits_unbiased": 5 * pooled}[name] for name in self.features_list)


def test_from_images_to_numbers_as_by_torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "tiny", _Tiny)
    rng = torch.Generator().manual_seed(0)
    samples, train = (torch.randint(0, top, (50, 3, 8, 8), dtype=torch.uint8, generator=rng) for top in (200, 256))
    extractor = load_extractor("tiny")
    entry = quality(extractor.extract(samples), extractor.extract(train), None, extractor)
    theirs = calculate_metrics(
        input1=_Dataset(samples),
        input2=_Dataset(train),
        feature_extractor="tiny",
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=50,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert entry.frechet_train == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert entry.kid_train.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert entry.precision_train == pytest.approx(theirs["precision"])
    assert entry.recall_train == pytest.approx(theirs["recall"])
    assert entry.inception_score.mean == theirs["inception_score_mean"]


class _Dataset(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]
