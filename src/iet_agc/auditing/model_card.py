"""The model card of a run: its facts, compared with each other, to README.md beside the weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iet_agc.auditing.schema import AuditRecord, read_record
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.config.settings import Settings
from iet_agc.reporting.model_card import MARK, Attacked, Audited, CardFacts, ImagesTold, render_card, verdict_words
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import replace_text, shown, writing
from iet_agc.runtime.progress import say
from iet_agc.runtime.reading import read_text
from iet_agc.sampling.sample_set import load_samples, read_origin
from iet_agc.training.identity import are_its_samples, check_pipeline, is_going_on, read_identity

__all__ = ["card_facts", "drawn_from", "told_facts", "write_card"]


def write_card(run: Path, audits: Sequence[Path] = (), out: Path | None = None) -> dict[str, Any]:
    """Write the model card of a run: what `iet-agc card` does.

    Args:
        run: a finished run.
        audits: folders of audits of its samples; without any, the card says that it was not audited.
        out: the card; by default README.md in the run's folder. A card that was written here before is replaced, the
            same one left as it is.

    Returns:
        A summary, JSON values only.

    Raises:
        UserError: no finished run, or its weights are not as they were exported; an audit against other training
            images, or of samples that other weights drew; or `out` is there and is no card of ours.
    """
    out = out or run / "README.md"
    facts = card_facts(run, audits)
    text = render_card(facts)
    if not _holds(out, text):
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            replace_text(out.resolve(), text)
    outcomes = [audit.verdict.outcome for audit in facts.audits]
    return {"card": str(out), "run": str(run), "outcomes": outcomes, "verdict": verdict_words(facts.audits)}


def card_facts(run: Path, audits: Sequence[Path]) -> CardFacts:
    """What the card of a run says, compared with the run and the audits; see `write_card`."""
    if not is_run(run):
        raise UserError(f"{shown(run)} is not a run: it has no config.json", "run")
    settings, known = read_settings(run), read_identity(run)
    if known is None or known.get("weights") is None or is_going_on(run):
        raise UserError(f"{shown(run)} is not finished: run the same 'iet-agc train' again to finish it", "run")
    for name in known["weights"]:
        check_pipeline(run / name)
    audited = [_audited(run, _told(known["train"]), folder) for folder in audits]
    return told_facts(settings.name or run.resolve().name, settings, known, audited)


def told_facts(
    title: str,
    settings: Settings,
    known: Mapping[str, Any],
    audits: Sequence[Audited],
    attacks: Sequence[Attacked] = (),
) -> CardFacts:
    """What a card says, of what was compared before.

    Args:
        title: what the model is called.
        settings: of the run.
        known: what its identity.json says.
        audits: of its samples.
        attacks: on its weights.
    """
    return CardFacts(
        title=title,
        settings=settings,
        train=_told(known["train"]),
        held_out=_told(known["held_out"]) if known["held_out"] else None,
        given=bool(known.get("given")),
        weights=known["weights"],
        audits=audits,
        attacks=attacks,
        stopped=known.get("stopped"),
        privacy=known.get("privacy"),
    )


def _told(about: dict[str, Any]) -> ImagesTold:
    return ImagesTold(about["name"], about["num"], about["sha256"])


def _audited(run: Path, train: ImagesTold, folder: Path) -> Audited:
    """An audit, after comparing what it is of with the run.

    Raises:
        UserError: it is of other training images, or of samples of other weights.
    """
    numbers = read_record(folder / "audit.json")
    if numbers.sha256.train != train.sha256:
        raise UserError(f"{shown(folder)} is an audit against other images than {shown(run)} was trained on: audit it")
    return Audited(numbers, _are_own(run, numbers, folder))


def _are_own(run: Path, numbers: AuditRecord, folder: Path) -> bool:
    """Whether the samples of an audit are there still, and say that the run's weights drew them.

    Raises:
        UserError: they say that others did.
    """
    place, origin = _origin(numbers)
    if origin is None:
        return False
    if not are_its_samples(run, origin):
        raise UserError(f"{shown(folder)} is an audit of samples that other weights than those of {shown(run)} drew")
    return _are_the_samples(place, numbers)


def drawn_from(numbers: AuditRecord) -> dict[str, str] | None:
    """The files that drew the samples of an audit, name -> SHA-256; None where these are not there, or do not tell."""
    place, origin = _origin(numbers)
    return origin if origin is not None and _are_the_samples(place, numbers) else None


def _origin(numbers: AuditRecord) -> tuple[Path, dict[str, str] | None]:
    """Where the samples of an audit were, and what drew those that are there now."""
    named = Path(numbers.names.samples if numbers.names else "")
    place = named / "samples" if is_run(named) else named
    return place, read_origin(place) if (place / "samples.json").is_file() else None


def _are_the_samples(place: Path, numbers: AuditRecord) -> bool:
    """Whether samples are those that were audited."""
    shape = None
    if size := numbers.conventions.convert_to:
        channels, height, width = map(int, size.split("x"))
        shape = channels, height, width
    resize = "bilinear" if numbers.conventions.resize == "bilinear" else "bicubic"
    images, _ = load_samples(place, shape, resize=resize)
    return images.fingerprint == numbers.sha256.samples


def _holds(out: Path, text: str) -> bool:
    """Whether the card is there already, the same.

    Raises:
        UserError: something else is there.
    """
    if not out.exists():
        return False
    there = read_text(out) if out.is_file() else ""
    if MARK not in there:
        raise UserError(
            f"{shown(out)} is there and is no model card of ours: choose another output, or remove it", "out"
        )
    if there == text:
        say(f"{shown(out)} holds this card: nothing to do")
    return there == text
