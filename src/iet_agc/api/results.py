"""What the verbs return: the folder of a run, a sample set or an audit, with its figures, pictures and table at hand.

Each is a path (`os.PathLike`), reads its folder when it is asked, and shows itself in a notebook.
"""

import importlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iet_agc.runtime.errors import CheckFailed
from iet_agc.runtime.extras import require

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from iet_agc.auditing.schema import AuditRecord, Verdict
    from iet_agc.config.settings import Settings
    from iet_agc.data.image_set import ImageSet
    from iet_agc.metrics.attacks import Attacks
    from iet_agc.metrics.gate import Gate
    from iet_agc.metrics.intervals import Proportion
    from iet_agc.metrics.membership import Correlation
    from iet_agc.metrics.membership import Membership as MembershipRecord
    from iet_agc.reporting.board import BoardRecord

__all__ = ["Attack", "Audit", "Bench", "Membership", "Pack", "Run", "SampleSet", "Shards", "Verification"]

#: Pairs of sample and training image that an audit shows.
_PAIRS = 3


@dataclass(frozen=True)
class _Result(ABC):
    """A result on disk.

    Attributes:
        folder: that holds it.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))  # of one that is opened again, by a text

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    @abstractmethod
    def _title(self) -> str:
        """What came out, in a few words."""

    @abstractmethod
    def _figures(self) -> list[tuple[str, str]]:
        """The figures that matter, by name."""

    @abstractmethod
    def _pictures(self) -> "list[tuple[str, Sequence[NDArray[np.uint8]]]]":
        """Captions, and the pictures over each, uint8 (C, H, W)."""

    def _repr_html_(self) -> str:
        from iet_agc.reporting.notebook import result_html

        return result_html(self._title(), [*self._figures(), ("folder", str(self.folder))], self._pictures())


@dataclass(frozen=True)
class Run(_Result):
    """A finished run. `folder / "raw"` and `folder / "ema"` are diffusers pipelines.

    Attributes:
        folder: of the run.
        images: what it was trained on, where that was given in memory; otherwise its settings read it.
    """

    images: "ImageSet | None" = field(default=None, repr=False, compare=False)

    @property
    def settings(self) -> "Settings":
        """What it was trained with."""
        from iet_agc.config.run_folder import read_settings

        return read_settings(self.folder)

    def to_pandas(self) -> "pd.DataFrame":
        """The training curves, a row for each point: member, step, round, images_seen, loss, skip_rate, ...

        Raises:
            UserError: pandas is not installed, or a curve is damaged.
        """
        pandas = _pandas()
        from iet_agc.runtime.curves import read_curve

        files = sorted((self.folder / "curves").glob("*.jsonl"))
        rows = [
            {"member": number, **{name: value for name, value in point.items() if not isinstance(value, list)}}
            for number, file in enumerate(files)
            for point in read_curve(file)
        ]
        return pandas.DataFrame(rows)

    def _title(self) -> str:
        return f"Trained {self.settings.name or self.folder.name}"

    def _figures(self) -> list[tuple[str, str]]:
        from iet_agc.runtime.exposure import read_telemetry

        method, (seen, skipped) = self.settings.method, read_telemetry(self.folder / "telemetry.csv")
        share = int(skipped.sum()) / int(seen.sum())
        told = f", {100 * share:.1f} % of them skipped" if share else ""
        return [
            ("training images", f"{len(seen):,}"),
            ("images seen", f"{int(seen.sum()):,}{told}"),
            ("members, rounds", f"{method.members}, {method.rounds}"),
        ]

    def _pictures(self) -> "list[tuple[str, Sequence[NDArray[np.uint8]]]]":
        import numpy as np
        from PIL import Image

        files = sorted((self.folder / "previews").glob("round-*.png"))
        if not files:
            return []
        with Image.open(files[-1]) as image:
            pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        return [("drawn after the last round, uncurated", [pixels])]


@dataclass(frozen=True)
class SampleSet(_Result):
    """Generated images, each with its seed."""

    @property
    def images(self) -> "Tensor":
        """uint8 (N, C, H, W)."""
        return self._loaded()[0].images

    @property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return self._loaded()[1] or []

    def __len__(self) -> int:
        return len(self._loaded()[0])

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each image: seed; class and prompt, where the model takes them.

        Raises:
            UserError: pandas is not installed, or the set is damaged.
        """
        pandas = _pandas()
        images, seeds = self._loaded()
        columns: dict[str, Any] = {"seed": seeds}
        if images.labels is not None:
            columns["class"] = images.labels.numpy()
        if images.captions is not None:
            columns["prompt"] = [texts[0] for texts in images.captions]
        return pandas.DataFrame(columns)

    def _loaded(self) -> "tuple[ImageSet, list[int] | None]":
        from iet_agc.sampling.sample_set import load_samples

        return load_samples(self.folder)

    def _title(self) -> str:
        return f"{len(self):,} images drawn"

    def _figures(self) -> list[tuple[str, str]]:
        images, seeds = self._loaded()
        return [("size", images.size), ("seeds", f"{seeds[0]} to {seeds[-1]}" if seeds else "not known")]

    def _pictures(self) -> "list[tuple[str, Sequence[NDArray[np.uint8]]]]":
        from iet_agc.data.grids import image_grid

        images = self.images
        return [(f"the first {min(64, len(images))}, uncurated", [image_grid(images).numpy()])]


@dataclass(frozen=True)
class Audit(_Result):
    """How much of a sample set is copied from a training set."""

    @property
    def record(self) -> "AuditRecord":
        """All numbers: the content of audit.json."""
        from iet_agc.auditing.schema import read_record

        return read_record(self.folder / "audit.json")

    @property
    def verdict(self) -> "Verdict":
        """What the audit allows to say: `outcome` is "copies", "undecided", "chance" or "cannot_tell"; and why."""
        from iet_agc.auditing.verdict import verdict

        record = self.record
        return record.verdict or verdict(record)

    @property
    def copied(self) -> "Proportion":
        """The share of samples that are copied, with its interval: below the calibrated cut, or below 0.15."""
        return self.record.copied

    def check(self, fail_above: float) -> "Gate":
        """Fail where more is copied than is allowed; see `iet-agc check`.

        Args:
            fail_above: the share that is allowed, in [0, 1], chance included, which is 0.01.

        Returns:
            What was found, of an audit that passes.

        Raises:
            CheckFailed: the audit shows that more is copied, or cannot tell.
            UserError: the audit had no held-out images.
        """
        from iet_agc.auditing.verdict import check_audit
        from iet_agc.metrics.gate import sentence

        found = check_audit(self.folder, fail_above)
        if found.failed:
            raise CheckFailed(sentence(found))
        return found

    def to_pandas(self) -> "pd.DataFrame":
        """samples.csv: for each sample its distance ratio, the nearest training image, and so by each feature space.

        Raises:
            UserError: pandas is not installed, or the audit is damaged.
        """
        pandas = _pandas()
        from iet_agc.auditing.schema import read_record

        read_record(self.folder / "audit.json", ["samples.csv"])  # refuses a table that is not as it was written
        return _table(pandas, self.folder / "samples.csv").astype({"mirrored": bool})

    def _title(self) -> str:
        from iet_agc.reporting.audit_page import verdict

        return verdict(self.folder)

    def _figures(self) -> list[tuple[str, str]]:
        from iet_agc.metrics.intervals import three_digits

        record, found = self.record, self.copied
        low, high = found.ci95
        frechet = record.quality.frechet_held_out
        cut = f"{record.cut:.3g}, {'calibrated' if record.calibrated else 'not calibrated: no held-out images'}"
        return [
            ("copied", f"{found.count:,} of {found.total:,}, {three_digits(found.share)}"),
            ("95 % interval", f"{three_digits(low)} to {three_digits(high)}"),
            ("cut", f"distance ratio below {cut}"),
            *([("Fréchet distance", f"{frechet:.4g} to held-out images")] if isinstance(frechet, float) else []),
            *(("", reason) for reason in self.verdict.reasons),
        ]

    def _pictures(self) -> "list[tuple[str, Sequence[NDArray[np.uint8]]]]":
        from iet_agc.reporting.reader import read_audit

        pairs = read_audit(self.folder.name, self.folder).pairs[:_PAIRS]
        return [
            (
                f"sample {pair.row.sample} and training image {pair.row.nearest}, ratio {pair.row.ratio:.3g}",
                [pair.picture, original],
            )
            for pair in pairs
            for original in [pair.original[:, :, ::-1] if pair.row.mirrored else pair.original]
        ]


@dataclass(frozen=True)
class Pack(_Result):
    """Audits in a folder that is handed over. `folder / "index.html"` is its page."""

    @property
    def digest(self) -> str:
        """SHA-256 of its statement, which stands for all of it: hand it over by another way than the pack."""
        from iet_agc.auditing.pack_folder import STATEMENT
        from iet_agc.runtime.files import sha256

        return sha256(self.folder / STATEMENT)

    def _title(self) -> str:
        return "Evidence pack"

    def _figures(self) -> list[tuple[str, str]]:
        audits = sorted(each.name for each in (self.folder / "audits").iterdir())
        return [("audits", ", ".join(audits)), ("digest", self.digest)]

    def _pictures(self) -> "list[tuple[str, Sequence[NDArray[np.uint8]]]]":
        return []


@dataclass(frozen=True)
class Verification:
    """What a check of a pack found.

    Attributes:
        changed: files that are not as they were written, and how.
        differences: each number or line of a document that is another one when it is made again, in words.
        counted: printed numbers that were counted again; `measured`: and measured again, from images.
        only_images: by name, printed numbers that only images can tell and that were not measured again.
        notes: what was not compared, and why.
        digest: SHA-256 of the pack's statement.
    """

    changed: dict[str, str]
    differences: tuple[str, ...]
    counted: int
    measured: int
    only_images: dict[str, int]
    notes: tuple[str, ...]
    digest: str | None

    @classmethod
    def of(cls, found: "Mapping[str, Any]") -> "Verification":
        """From what `iet_agc.auditing.verify.verify_pack` returns."""
        differences = (
            f"{each['where']}: printed {each['printed']}, found {each['found']}" for each in found["differences"]
        )
        return cls(
            changed={each["file"]: each["how"] for each in found["changed"]},
            differences=tuple(differences),
            counted=found["counted"],
            measured=found["measured"],
            only_images=dict(found["only_images"]),
            notes=tuple(found["notes"]),
            digest=found["digest"],
        )

    @property
    def sound(self) -> bool:
        """Whether nothing differs."""
        return not (self.changed or self.differences)

    def check(self) -> None:
        """Go on only where the pack is sound.

        Raises:
            CheckFailed: something differs; the first of it is named.
        """
        if not self.sound:
            odd = [*(f"{name} {how}" for name, how in self.changed.items()), *self.differences]
            raise CheckFailed(f"the pack is not sound: {odd[0]}; {len(odd)} in all")


@dataclass(frozen=True)
class Membership(_Result):
    """How well a model's losses give away which images it was trained on."""

    @property
    def record(self) -> "MembershipRecord":
        """All numbers: the area under the curve, and what is found at each rate of false alarms."""
        from iet_agc.auditing.membership import read_membership

        return read_membership(self.folder)[0]

    @property
    def skips(self) -> "Correlation | None":
        """Rank correlation of the images' scores with how often AGC skipped them; None where none was skipped."""
        from iet_agc.auditing.membership import read_membership

        return read_membership(self.folder)[1]

    def to_pandas(self) -> "pd.DataFrame":
        """images.csv: a row per image, the highest score first.

        Raises:
            UserError: pandas is not installed, or the folder is damaged.
        """
        pandas = _pandas()
        from iet_agc.auditing.membership import read_membership

        read_membership(self.folder, ["images.csv"])  # refuses a table that is not as it was written
        return _table(pandas, self.folder / "images.csv")

    def _title(self) -> str:
        return "Whether losses give away training images"

    def _figures(self) -> list[tuple[str, str]]:
        from iet_agc.metrics.intervals import three_digits
        from iet_agc.metrics.membership import Found

        record = self.record
        low, high = record.auc.ci95
        found = [
            (f"found at {three_digits(each.false_alarm)} false alarms", f"{each.count:,}, {three_digits(each.share)}")
            for each in record.found
            if isinstance(each, Found)
        ]
        return [
            ("area under the curve", f"{record.auc.value:.3f}, by chance 0.5"),
            ("95 % interval", f"{low:.3f} to {high:.3f}"),
            *found,
            ("page", str(self.folder / "membership.html")),
        ]

    def _pictures(self) -> "list[tuple[str, Sequence[NDArray[np.uint8]]]]":
        return []


@dataclass(frozen=True)
class Attack(_Result):
    """How many training images are recovered from a model, and how many held-out images."""

    @property
    def record(self) -> "Attacks":
        """All numbers: of plain sampling, then of targets redrawn, then of what only captions allow."""
        from iet_agc.auditing.attack import read_attacks

        return read_attacks(self.folder)

    def to_pandas(self) -> "pd.DataFrame":
        """images.csv: a row per image that was redrawn, the lowest score first.

        Raises:
            UserError: pandas is not installed, or the folder is damaged.
        """
        pandas = _pandas()
        from iet_agc.auditing.attack import read_attacks

        read_attacks(self.folder, ["images.csv"])  # refuses a table that is not as it was written
        return _table(pandas, self.folder / "images.csv")

    def _title(self) -> str:
        return "Training images that a model gives back"

    def _figures(self) -> list[tuple[str, str]]:
        from iet_agc.metrics.attacks import WAYS

        found = []
        for each in self.record.attacks:
            mine, others = each.train, each.held_out
            told = f"{mine.count:,} of {mine.total:,} training images, {others.count:,} of {others.total:,} held-out"
            found.append((WAYS[each.way], told))
        return [*found, ("page", str(self.folder / "attack.html"))]

    def _pictures(self) -> "list[tuple[str, Sequence[NDArray[np.uint8]]]]":
        return []


@dataclass(frozen=True)
class Bench(_Result):
    """Methods compared: copied share and quality of each, over several seeds."""

    @property
    def record(self) -> "BoardRecord":
        """All numbers: the content of board.json."""
        from iet_agc.reporting.board import read_board

        return read_board(self.folder)

    def to_pandas(self) -> "pd.DataFrame":
        """board.csv: a row for each run, with its method, the value of its knob, its seed and what came out.

        Raises:
            UserError: pandas is not installed, or the board is damaged.
        """
        pandas = _pandas()
        from iet_agc.reporting.board import read_board
        from iet_agc.runtime.reading import read_text

        read_board(self.folder, ["board.csv"])  # refuses a table that is not as it was written
        return pandas.read_csv(io.StringIO(read_text(self.folder / "board.csv")))

    def _title(self) -> str:
        return self.record.title

    def _figures(self) -> list[tuple[str, str]]:
        from iet_agc.metrics.intervals import three_digits

        record = self.record
        fronts = [
            (
                arm.name,
                "; ".join(
                    f"{p.label}: {three_digits(p.copied.mean)} copied, distance {p.held_out_distance.mean:.4g}"
                    for p in arm.front
                ),
            )
            for arm in record.arms
        ]
        failed = [("failed", f"{len(record.failures):,}")] if record.failures else []
        return [*fronts, ("runs", f"{len(record.cells):,}"), *failed, ("page", str(self.folder / "board.html"))]

    def _pictures(self) -> "list[tuple[str, Sequence[NDArray[np.uint8]]]]":
        return []


@dataclass(frozen=True)
class Shards(_Result):
    """An image set that was cut into disjoint parts, for trainers that know nothing of them."""

    @property
    def sizes(self) -> list[int]:
        """The number of images of each: the weights by which members are averaged."""
        from iet_agc.data.shards import shard_sizes

        return shard_sizes(self.folder)

    @property
    def folders(self) -> list[Path]:
        """The folder of each, in the order of `sizes`; none where only lists were written."""
        return sorted(entry for entry in self.folder.glob("shard-*") if entry.is_dir())

    @property
    def lists(self) -> list[list[str]]:
        """The images of each: paths below the source, or of an array file indices."""
        from iet_agc.runtime.reading import read_text

        return [read_text(file).splitlines() for file in sorted(self.folder.glob("shard-*.txt"))]

    def _title(self) -> str:
        return f"{len(self.sizes):,} shards"

    def _figures(self) -> list[tuple[str, str]]:
        return [("images", ", ".join(f"{size:,}" for size in self.sizes))]

    def _pictures(self) -> "list[tuple[str, Sequence[NDArray[np.uint8]]]]":
        return []


def _pandas() -> Any:
    require("pandas", "pandas", "to_pandas")
    return importlib.import_module("pandas")


def _table(pandas: Any, file: Path) -> "pd.DataFrame":
    """A table of ours, as it was written."""
    from iet_agc.runtime.reading import read_text

    return pandas.read_csv(io.StringIO(read_text(file)), keep_default_na=False, engine="python")  # reads floats exactly
