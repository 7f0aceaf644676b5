"""What a verb has done, in a few lines for people: how it went, what figures matter, where files are, what comes next.

Pure functions of a result, as a verb prints it as JSON, to lines without colour. No torch, no files, no terminal.
"""

import shlex
from collections.abc import Sequence
from itertools import groupby
from pathlib import PurePath
from typing import TYPE_CHECKING

from iet_agc.cli.terminal import table, wrapped

if TYPE_CHECKING:
    from iet_agc.cli import results

__all__ = [
    "attack",
    "audit",
    "average",
    "bench",
    "card",
    "check",
    "compare",
    "demo",
    "detect",
    "duplicates",
    "init",
    "membership",
    "pack",
    "pipeline",
    "presets",
    "report",
    "sample",
    "shards",
    "train",
    "verification",
]

#: Width of the names of figures.
_NAMES = 17

_CUT = "0.15"


def init(result: "results.Initialized", most: int) -> list[str]:
    """Settings for a folder.

    Args:
        result: of `iet_agc.training.first_run.init_folder`.
        most: columns of the terminal.
    """
    copies, mended = result["copies"], result["mending"]
    formats = ", ".join(f"{count:,} {name}" for name, count in result["formats"].items())
    (least, widest), (lowest, highest) = result["width"], result["height"]
    shape = "x".join(map(str, result["shape"]))
    lines = [f"{_many(result['images'], 'image')} looked at, and settings written to {result['settings']}"]
    lines += [
        _figure("files", f"{formats}; {result['grey']:,} grey" if result["grey"] else formats),
        _figure("size", f"{least} x {lowest} to {widest} x {highest}, brought to {shape}"),
    ]
    lines += [_figure("enlarged", f"{result['enlarged']:,} that are smaller")] if result["enlarged"] else []
    lines += [_figure("mended", ", ".join(f"{count:,} {what}" for what, count in mended.items()))] if mended else []
    lines += [_figure("copies", _repeated(copies))]
    if result["captions"]:
        lines.append(_figure("captions", f"{result['captions']} (not used: the settings say how)"))
    if result["classes"] > 1:
        lines.append(_figure("classes", f"{result['classes']:,} subfolders (not used: the settings say how)"))
    again = f"iet-agc train {_word(result['settings'])} --out run"
    lines += [
        _figure("training images", f"{result['training_images']:,}, and {result['held_out_images']:,} held out"),
        _figure("training", f"{_ensemble(result)}{_many(result['steps'], 'step')} of {result['batch_size']} images"),
        _figure("expected", _expected(result)),
        *(line for warning in result["warnings"] for line in wrapped(f"warning: {warning}", 0, most).splitlines()),
    ]
    return [*lines, _next(again)]


def _repeated(copies: "results.Copies") -> str:
    what = "equal or near copies" if copies["looked_for"] == "near" else "equal copies"
    if not copies["redundant"]:
        return f"no {what}"
    groups = _many(copies["groups"], "group")
    return f"{groups} of {what}, the largest of {copies['largest']:,}: {copies['redundant']:,} left out"


def _ensemble(result: "results.Initialized") -> str:
    members, rounds = result["members"], result["rounds"]
    return f"{members} members, {_many(rounds, 'round')}, " if members > 1 else ""


def _expected(result: "results.Initialized") -> str:
    drawn = f"{_time(result['sample_seconds'])} for {result['samples']:,} samples"
    memory = f"{result['memory'] / 2**30:.1f} GiB"
    return (
        f"{_time(result['train_seconds'])} of training, {drawn}, {memory}, on this {result['device']} as busy as it is"
    )


def train(result: "results.Trained") -> list[str]:
    """A finished run.

    Args:
        result: of `iet_agc.training.loop.start`.
    """
    run, held_out = result["run"], result["held_out_images"]
    skipped = f", {result['skip_rate']:.1%} of them skipped" if result["skip_rate"] else ""
    return [
        f"Trained {result['preset']}: {_many(result['steps'], 'step')} in {_time(result['seconds'])}",
        _figure("images seen", f"{result['images_seen']:,}{skipped}"),
        _figure("training images", f"{result['training_images']:,}, and {held_out:,} held out"),
        *_watched(result),
        *_private(result),
        _figure("run", f"{run} (previews in {PurePath(run, 'previews')})"),
        _next(f"iet-agc sample {_word(run)} --out {_word(PurePath(run, 'samples'))}"),
    ]


def _private(result: "results.Trained") -> list[str]:
    """What a run of DP-SGD guarantees; nothing of other runs."""
    if not (found := result.get("privacy")):
        return []
    return [
        _figure("privacy", f"epsilon {found['epsilon']:.3g}, delta {found['delta']:g}: the weights, of any one image"),
        _figure("", "whoever knows train.seed can undo it: for research, not for release"),
    ]


def _watched(result: "results.Trained") -> list[str]:
    """What the watch of a run found; nothing where there was none."""
    lines = []
    if stopped := result.get("stopped"):
        weights = f"it leaves the weights of step {stopped['weights_of_step']:,}"
        lines.append(_figure("stopped", f"at step {stopped['step']:,}, as it copies; {weights}"))
    if found := result.get("recommendation"):
        lines += [_figure("watch", sentence) for sentence in f"{found['sentence']}".split(". ")[:1]]
        lines += [_figure("", sentence) for sentence in f"{found['sentence']}".split(". ")[1:]]
    return lines


def curve(result: "results.Curve") -> list[str]:
    """The curve of a run.

    Args:
        result: of `iet_agc.auditing.curve.draw_curve`.
    """
    first, *others = result["recommendation"]["sentence"].split(". ")
    files = result["files"]
    return [
        first,
        *(_figure("", sentence) for sentence in others),
        _figure("points", f"{result['points']}, {result['measured']}"),
        _figure("curve", f"{files['html']}, {PurePath(files['csv']).name}, {PurePath(files['json']).name}"),
    ]


def sample(result: "results.Drawn", source: str, held_out: bool | None) -> list[str]:
    """A sample set.

    Args:
        result: of `iet_agc.sampling.sample_set.sample_run`.
        source: what drew it.
        held_out: whether the source holds images out, None where it is no run.
    """
    out, first, num = result["samples"], result["first_seed"], result["num"]
    guard, prompts = result.get("guard"), result.get("prompts")
    lines = [f"{_many(num, 'image')} drawn in {_time(result['seconds'])}, {_many(result['steps'], 'step')} each"]
    lines += [_figure("first seed", f"{first}")] if first else []
    if (label := result.get("class")) is not None:
        lines.append(_figure("class", f"{label}"))
    if prompts and (guidance := result.get("guidance")) is not None:
        lines.append(_figure("prompts", f"{prompts:,}, guidance scale {guidance:g}"))
    if amg := result.get("amg"):
        lines.append(_figure("AMG", f"strength {amg['strength']:g}, away from ratios below {amg['cut']:.3g}"))
    if guard:
        lines.append(_figure("guard", f"{guard['turned_down']:,} of {guard['drawn']:,} turned down as copies"))
    train = "IMAGES" if held_out is None else _word(source)
    real = "IMAGES" if held_out is None else _word(source)
    audit = PurePath(out).parent / "audit"
    given = f" --held-out {real}" if held_out is not False else ""
    asked = f"iet-agc audit --train {train} --samples {_word(out)}{given} --out {_word(audit)}"
    return [*lines, _figure("samples", out), _next(asked)]


def audit(result: "results.Audited", out: str, verdict: str) -> list[str]:
    """An audit.

    Args:
        result: the content of audit.json.
        out: its folder.
        verdict: of its page.
    """
    quality, gate = result["quality"], result["gate"]
    warnings = [*result["warnings"], *quality["warnings"]]
    frechet = {"held-out": _mean(quality["frechet_held_out"]), "training images": _mean(quality["frechet_train"])}
    words = ", ".join(f"{value:.4g} to {what}" for what, value in frechet.items() if value is not None)
    lines = [verdict, _figure("copied", _copied(result)), _figure("", _below(result))]
    if words and quality["extractor"]:
        lines.append(_figure("Fréchet distance", f"{words} ({PurePath(quality['extractor']).name})"))
    lines += [_figure("training copies", again)] if (again := _repeats(result["train_copies"])) else []
    lines += [_figure("neighbours", _neighbours(result["groups"]))] if result["groups"] else []
    lines += [_figure("transformed", _transformed(result["transformed"]))] if result["transformed"] else []
    lines += [_figure("quality", _no_quality(quality))] if quality["extractor"] is None else []
    lines += [_figure("check", _least(gate))] if gate and gate["checks"] else []
    lines += [_figure("held-out", reason) for reason in result["verdict"]["reasons"]] if result["verdict"] else []
    lines += [_figure("warnings", f"{len(warnings)}, on the page and in audit.json")] if warnings else []
    lines.append(_figure("audit", f"{out} (audit.json, samples.csv, training-images.csv)"))
    return [*lines, _next(f"iet-agc report {_word(out)}")]


def _copied(result: "results.Audited") -> str:
    found = result["calibrated"] or result["mq"][_CUT]
    low, high = found["ci95"]
    count, total = found["count"], result["num_samples"]
    return f"{_percent(found['share'])}, 95 % interval {_percent(low)} to {_percent(high)} ({count:,} of {total:,})"


def _below(result: "results.Audited") -> str:
    """By what a sample is called copied."""
    if found := result["calibrated"]:
        return f"distance ratio below {found['cut']:.3g}, calibrated: {_percent(found['false_alarm'])} by chance"
    return f"distance ratio below {_CUT}, not calibrated: give held-out images, 99 or more"


def _repeats(copies: "results.TrainingCopies | None") -> str:
    """What stands more than once in the training set; nothing where nothing does."""
    found = [(copies["exact"], "equal images"), (copies["near"], "near copies")] if copies else []
    told = [
        f"{_many(some['groups'], 'group')} of {what}, the largest of {some['largest']:,}"
        for some, what in found
        if some and some["groups"]
    ]
    return "; ".join(told)


def _neighbours(groups: "results.Groups") -> str:
    """Groups, and how many of them lie in a crowd."""
    told = f"{groups['num_groups']:,} groups of copies"
    crowded = groups["crowded"]
    return f"{told}; {_percent(crowded['train']['share'])} in crowded neighbourhoods" if crowded else told


def _transformed(copies: "results.Transformed") -> str:
    """Copies under transformations."""
    found, others = copies["calibrated"], copies["others"]
    if found is None or others is None:
        return "held-out images are too few to set a cut"
    told = f"{_percent(found['share'])} copied as they are or transformed, {_percent(found['false_alarm'])} by chance"
    return f"{told}; {_percent(others['share'])} not by distance ratio"


def _no_quality(quality: "results.Quality") -> str:
    """Why quality was not measured."""
    from iet_agc.metrics.records import Quality

    return (Quality.model_validate(quality).why_not or "").removeprefix("quality is ")


def _least(gate: "results.Gate") -> str:
    """What a gate decided by: the largest lower limit of its checks."""
    least = max(check["least"] for check in gate["checks"])
    return f"at least {_percent(least)}, and {100 * gate['fail_above']:g} % allowed, chance included"


def check(result: "results.Gate", out: str, reasons: Sequence[str] = ()) -> list[str]:
    """A check of a finished audit.

    Args:
        result: a gate.
        out: folder of the audit.
        reasons: why held-out images cannot tell, if they cannot.
    """
    checks, words = result["checks"], "failed" if result["failed"] else "passed"
    cannot_tell = result["failed"] and not any(check["failed"] for check in checks)
    lines = [f"Check {words}: {'cannot tell how much is copied' if cannot_tell else _least(result)}"]
    lines += [_figure(_way(check), _checked(check)) for check in checks]
    lines += [_figure("held-out", reason) for reason in reasons]
    return [*lines, _figure("audit", out), _next(f"iet-agc report {_word(out)}")]


def _way(check: "results.Check") -> str:
    """A way of copying, in a word or two."""
    return "pixels" if check["space"] is None else f"{PurePath(check['space']).name}, {check['by']}"


def _checked(check: "results.Check") -> str:
    return f"{check['count']:,} of {check['total']:,}, {_percent(check['share'])}; at least {_percent(check['least'])}"


def card(result: "results.Carded") -> list[str]:
    """A model card.

    Args:
        result: of `iet_agc.auditing.model_card.write_card`.
    """
    run, after = result["run"], "read it, then upload the folder"
    if not result["outcomes"]:
        after = f"iet-agc card {_word(run)} --audit AUDIT, with an audit of its samples"
    verdict = result["verdict"]
    return [f"Model card written: {verdict[:1].lower()}{verdict[1:]}", _figure("card", result["card"]), _next(after)]


def pack(result: "results.Packed") -> list[str]:
    """A pack of evidence.

    Args:
        result: of `iet_agc.auditing.pack.pack_audits`.
    """
    parts = {"audit": result["audits"], "attack": result["attacks"], "run": result["runs"]}
    *first, last = [_many(len(names), what) for what, names in parts.items() if names]
    return [
        f"Packed: {' and '.join([', '.join(first), last] if first else [last])}",
        _figure("files", f"{result['files']:,}, {result['bytes'] / 2**20:.1f} MiB"),
        _figure("digest", result["digest"]),
        _figure("page", f"{result['pack']}/index.html"),
        _next(f"iet-agc verify {_word(result['pack'])}"),
    ]


def verification(result: "results.Verified") -> list[str]:
    """What a check of a pack found: how much was compared, and everything that differs.

    Args:
        result: of `iet_agc.auditing.verify.verify_pack`.
    """
    lines = [f"{'Sound' if result['sound'] else 'NOT SOUND'}: {result['pack']}"]
    lines += [_figure("changed", f"{each['file']} {each['how']}") for each in result["changed"]]
    for each in result["differences"]:
        lines.append(_figure("differs", f"{each['where']}: printed {each['printed']}, found {each['found']}"))
    if result["changed"]:
        return [*lines, _figure("not counted", "numbers, since files are not as they were written")]
    lines.append(_figure("files", f"{result['files']:,} as they were written"))
    lines.append(_figure("numbers", f"{result['counted']:,} counted again; {_many(result['documents'], 'document')}"))
    if result["measured"]:
        lines.append(_figure("images", f"{result['measured']:,} numbers measured again"))
    if result["only_images"]:
        total, names = sum(result["only_images"].values()), ", ".join(result["only_images"])
        lines.append(_figure("not counted", f"{total:,} that only images tell ({names}): needs --train and --samples"))
    lines += [_figure("note", note) for note in result["notes"]]
    return [*lines, _figure("digest", str(result["digest"]))]


def report(result: "results.Reported") -> list[str]:
    """A page."""
    return ["Report written", _figure("page", result["report"]), _next("open the page in a browser")]


def compare(result: "results.Compared", most: int) -> list[str]:
    """A comparison.

    Args:
        result: of the verb: rows by preset, differences, warnings, and files where some were written.
        most: columns of the terminal.
    """
    rows = result["presets"]
    titles = "preset", "runs", f"ratio < {_CUT}", "calibrated", "Fréchet, held-out"
    cells = [
        (
            name,
            str(len(row["runs"])),
            *(_cell(row[column], "{:.1%}") for column in ("copied", "calibrated")),
            _cell(row["frechet_held_out"], "{:.4g}"),
        )
        for name, row in rows.items()
    ]
    lines = [f"{_many(len(rows), 'experiment')} compared; brackets: 95 % intervals"]
    lines += ["", *table(titles, cells, most), ""]
    lines += [line for warning in result["warnings"] for line in wrapped(f"warning: {warning}", 0, most).splitlines()]
    if files := result.get("files"):
        return [*lines, *(_figure("" if number else "written", one) for number, one in enumerate(files.values()))]
    return [*lines, _next("the same with --out FOLDER, which writes plots, a page and tables")]


def _cell(values: "results.Mean | None", form: str) -> str:
    if values is None:
        return "-"
    interval = f" [{', '.join(form.format(bound) for bound in limits)}]" if (limits := values.get("ci95")) else ""
    return f"{form.format(values['mean'])}{interval}"


def bench(result: "results.Benched", most: int) -> list[str]:
    """A board.

    Args:
        result: of the verb: arms with their points, failures and files.
        most: columns of the terminal.
    """
    seeds, failures = len(result["seeds"]), result["failures"]
    lines = [f"{result['title']}: {_many(result['runs'], 'run')}, {_many(seeds, 'seed')}; brackets: 95 % intervals"]
    for name, arm in result["arms"].items():
        titles = name.upper(), "", "copied", "Fréchet, held-out"
        rows = [
            (
                label,
                "front" if label in arm["front"] else "",
                _cell(point["copied"], "{:.1%}"),
                _cell(point["held_out_distance"], "{:.4g}"),
            )
            for label, point in arm["points"].items()
        ]
        lines += ["", *table(titles, rows, most)]
    lines += ["", *(f"failed: {each['folder']}: {each['reason']}" for each in failures)]
    few = "warning: no difference should be claimed from fewer than 3 seeds"
    lines += [few] if seeds < 3 else []
    lines += ["warning: the same command tries what failed again"] if failures else []
    return [*lines, _figure("page", result["files"]["html"]), _figure("table", result["files"]["csv"])]


def demo(result: "results.Shown", most: int) -> list[str]:
    """A demo.

    Args:
        result: of `iet_agc.cli.demo.demo`.
        most: columns of the terminal.
    """
    rows = []
    for name, numbers in result["presets"].items():
        below, quality = numbers["mq"][_CUT], numbers["quality"]
        low, high = below["ci95"]
        copied = f"{below['share']:.1%} [{low:.1%}, {high:.1%}]"
        rows.append((name, copied, f"{quality['frechet_held_out']:.3f}", f"{quality['frechet_train']:.3f}"))
    titles = "", f"copied (ratio < {_CUT})", "Fréchet, held-out", "Fréchet, train"
    return [
        f"Trained, sampled and audited {_many(len(rows), 'preset')} in {_time(result['seconds'])}",
        "",
        *table(titles, rows, most),
        "",
        _figure("page", result["report"]),
        _next("open the page in a browser"),
    ]


def detect(result: "results.Detected", most: int) -> list[str]:
    """A detection of memorized prompts.

    Args:
        result: of `iet_agc.auditing.memorized_prompts.detect_prompts`.
        most: columns of the terminal.
    """
    separation = result["separation"]
    lines = [f"{_many(result['num_prompts'], 'prompt')} looked at in {_time(result['seconds'])}"]
    if separation:
        lines.append(_figure("AUC", f"{separation['auc']:.3f} (memorized against other prompts)"))
    lines.append(_figure("most memorized", ""))
    lines += [f"  {_prompt(row)}"[:most] for row in result["highest"][:5]]
    return [*lines, _figure("files", f"{result['detect']} (detect.json)")]


def membership(result: "results.Inferred") -> list[str]:
    """How well losses tell training images from others.

    Args:
        result: of `iet_agc.auditing.membership.infer_members`.
    """
    auc = result["auc"]
    low, high = auc["ci95"]
    shown = "can be told" if low > 0.5 else "are not shown to be told"
    lines = [
        f"Training images {shown} from others by their losses",
        _figure("AUC", f"{auc['value']:.3f}, 95 % interval {low:.3f} to {high:.3f}; 0.5 is chance"),
    ]
    for each in result["found"]:
        rate = f"at {100 * each['false_alarm']:g} %"
        if "share" in each and "ci95" in each:
            limits = " to ".join(_percent(limit) for limit in each["ci95"])
            told = f"{_percent(each['share'])} of training images found, 95 % interval {limits}"
        else:
            needed = each.get("num_needed", 0)
            told = f"not measured: {each['num_held_out']:,} held-out images, {needed:,} are needed"
        lines.append(_figure(f"{rate} false", told))
    images = f"{result['num_train']:,} training, {result['num_held_out']:,} held-out"
    lines.append(_figure("images", f"{images}; losses of each: {result['draws']:,}"))
    return [*lines, _figure("page", result["page"]), _next("open the page in a browser")]


def attack(result: "results.Attacked") -> list[str]:
    """How many training images each way recovers.

    Args:
        result: of `iet_agc.auditing.attack.attack_model`.
    """
    beyond = any(each["beyond_chance"]["ci95"][0] > 0 for each in result["attacks"])
    none = "Training images are not shown to be recovered more often than held-out images"
    lines = ["Training images are recovered" if beyond else none]
    for each in result["attacks"]:
        mine, others = each["train"], each["held_out"]
        limits = " to ".join(_percent(limit) for limit in mine["ci95"])
        found = f"{mine['count']:,} of {mine['total']:,} training images, {_percent(mine['share'])} ({limits})"
        lines.append(_figure(each["way"], f"{found}; {others['count']:,} of {others['total']:,} held-out"))
        rates = f"{_rate(each['per_1000_samples']['value'])} for 1,000 samples, {_rate(each['per_hour']['value'])}"
        lines.append(_figure("", f"{rates} per {result['unit']} hour"))
        if each["sampling_by_then"] is not None:
            lines.append(_figure("", f"plain sampling with as many evaluations: {each['sampling_by_then']:,}"))
    images = f"{result['num_train']:,} training, {result['num_held_out']:,} held-out"
    return [*lines, _figure("images", images), _figure("page", result["page"]), _next("open the page in a browser")]


def duplicates(result: "results.Deduplicated", out: str) -> list[str]:
    """The duplicates of an image set.

    Args:
        result: of `iet_agc.auditing.duplicates.find_duplicates`.
        out: folder of the result.
    """
    further, groups, gate = result["redundant"], result["groups"], result["gate"]
    lines = [f"{further['count']:,} of {_many(result['images'], 'image')} repeat another one"]
    if gate:
        said = "failed" if gate["failed"] else "passed"
        lines[0] = f"Check {said}: {lines[0]}, {100 * gate['fail_above']:g} % allowed"
    near = f", {groups['near']:,} of near copies" if result["near"] else ""
    lines += [
        _figure("share", _percent(further["share"])),
        _figure("groups", f"{groups['exact']:,} of equal images{near}, the largest of {result['largest_group']:,}"),
        _figure("kept", f"{result['kept']:,}, one of each group and all others"),
    ]
    lines += [_figure("list of those", result["keep_list"]["file"])] if result["keep_list"] else []
    page = PurePath(out, "report.html")
    return [*lines, _figure("page", f"{page}"), _next("open the page in a browser")]


def _prompt(row: "results.Prompt") -> str:
    return f"{row['magnitude']:8.4g}  {row['prompt']}"


def pipeline(result: "results.Built", out: str, preset: str) -> list[str]:
    """A small pipeline.

    Args:
        result: of `iet_agc.text_to_image.bootstrap.build_pipeline`.
        out: its folder.
        preset: that it was built for.
    """
    return [
        f"Pipeline built: {_many(result['steps'], 'step')} of its VAE",
        _figure("reconstruction", f"{result['train_db']:.1f} dB, of held-out images {result['held_out_db']:.1f} dB"),
        _figure("pipeline", out),
        _next(f"iet-agc train {_word(preset)} --init {_word(out)} --out RUN"),
    ]


def shards(result: "results.Cut") -> list[str]:
    """The shards of an image set.

    Args:
        result: of `iet_agc.data.shards.cut_shards`.
    """
    sizes, out = result["sizes"], result["out"]
    few, most = min(sizes), max(sizes)
    each = f"{few:,} each" if few == most else f"{few:,} to {most:,} each"
    lines = [f"{_many(result['num_images'], 'image')} cut into {_many(len(sizes), 'shard')}, {each}"]
    lines += [_figure("classes", f"{result['num_classes']:,} subfolders")] if result["num_classes"] else []
    if kept := result["keep_together"]:
        groups = (
            f"{_many(result['groups'], 'group')} of {'equal images' if kept == 'exact' else 'equal or near copies'}"
        )
        lines.append(_figure("kept together", f"{groups}, the largest of {result['largest_group']:,}"))
    lines += [_figure("captions", f"of {captioned:,} images")] if (captioned := result.get("captioned")) else []
    lines += [_figure("left out", f"{result['left_out']:,}, listed in {out}")] if result["left_out"] else []
    lines += [_figure("not linked", _many(others, "other file"))] if (others := result.get("left_behind")) else []
    return [*lines, _figure("lists and links" if result["folders"] else "lists", out)]


def average(result: "results.Averaged") -> list[str]:
    """The mean of models.

    Args:
        result: of `iet_agc.training.average.average_models`.
    """
    weights = ", ".join(f"{weight:g}" for weight in result["weights"])
    lines = [f"Mean of {_many(len(result['models']), 'model')} written: {_many(result['tensors'], 'tensor')}"]
    lines += [_figure("weights", weights)]
    if result["lora"]:
        exact = "exact mean of the products B A, of a larger rank"
        lines.append(
            _figure("LoRA", exact if result["lora"] == "exact" else "means of A and of B, not of their product")
        )
    lines += [_figure("equal in all", _many(result["equal_files"], "file"))] if result["equal_files"] else []
    return [*lines, _figure("mean", result["out"])]


def presets(rows: Sequence[tuple[str, str, str, str, str]], most: int) -> list[str]:
    """The presets as tables, one for each image set.

    Args:
        rows: images, name, method, images seen and description of each.
        most: columns of the terminal; descriptions are cut to it.
    """
    lines = [f"{_many(len(rows), 'preset')}, by image set; seen: images that training takes, all epochs counted"]
    for images, group in groupby(rows, lambda row: row[0]):
        titles = f"{images.upper()}", "METHOD", "SEEN", "DESCRIPTION"
        lines += ["", *table(titles, [row[1:] for row in group], most)]
    return [*lines, "", _next("iet-agc train PRESET --help, then iet-agc train PRESET --out RUN")]


# Words -----------------------------------------------------------------------------------------------------


def _figure(name: str, value: str) -> str:
    return f"  {name:<{_NAMES}} {value}".rstrip()


def _next(command: str) -> str:
    return f"next: {command}"


def _word(path: object) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def _many(count: int, unit: str) -> str:
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def _time(seconds: float) -> str:
    """A time in the two largest units that it has."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _percent(share: float) -> str:
    return "<0.01 %" if 0 < share < 1e-4 else f"{100 * share:.3g} %"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _mean(value: "float | results.Mean | None") -> float | None:
    """A number, or the mean of one that has a spread."""
    return value if value is None or isinstance(value, int | float) else value["mean"]
