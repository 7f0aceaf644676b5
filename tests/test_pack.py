"""Packs of evidence: what is in one, every byte and every number of it, and what hostile ones meet with."""

import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import iet_agc
from iet_agc.auditing.compute import audit
from iet_agc.auditing.pack import pack_audits
from iet_agc.auditing.pack_folder import MANIFEST, STATEMENT, files_below, statement_text
from iet_agc.auditing.recount import recount
from iet_agc.auditing.run import save_audit
from iet_agc.auditing.verify import Images, verify_pack
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.altered import near_copies
from iet_agc.runtime.errors import CheckFailed, UserError
from iet_agc.runtime.files import digest, sha256
from iet_agc.runtime.seal import write_sealed
from tests.commands import call
from tests.packs import audited_run, content, edited, resealed
from tests.similar_images import scenes
from tests.tamper import unnamed

AUDIT = "audits/audit/audit.json"
SCORES = "audits/audit/scores.npz"


@pytest.fixture(scope="module")
def run(small_networks: None, tmp_path_factory: pytest.TempPathFactory) -> iet_agc.Run:
    return audited_run(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def pack(run: iet_agc.Run) -> Path:
    return iet_agc.pack(run.folder / "audit", out=run.folder.parent / "pack").folder


def words(found: dict[str, Any]) -> str:
    return " ".join(str(each) for each in [*found["changed"], *found["differences"]])


# -- what is in it


def test_a_sound_pack_says_so_and_every_number_is_counted_or_named(pack: Path) -> None:
    found = verify_pack(pack)
    assert (found["sound"], found["changed"], found["differences"], found["notes"]) == (True, [], [], [])
    assert found["counted"] > 3000
    assert found["documents"] == 5
    assert set(found["only_images"]) == {
        "quality",
        "train_copies.near",
        "num_held_out_in_train",
        "num_held_out_repeated",
        "feature space: quality",
        "feature space: dimensions",
    }


def test_it_holds_what_it_says(pack: Path, run: iet_agc.Run) -> None:
    manifest = json.loads((pack / MANIFEST).read_text())
    record = iet_agc.Audit(run.folder / "audit").record
    files = {*content(pack)}
    assert {*manifest["seal"]["files"]} == files - {MANIFEST}
    assert manifest["audits"]["audit"]["images"] == record.sha256.model_dump()
    assert manifest["runs"]["run"]["weights"] == json.loads((run.folder / "identity.json").read_text())["weights"]
    assert {"python", "machine", "iet-agc", "torch"} <= {*manifest["packed_with"]}
    assert {"runs/run/telemetry.csv", "runs/run/curves/member-0000.jsonl", "runs/run/model-card.md"} <= files
    assert {"index.html", "evidence.json", "training-set-audit.json", SCORES} <= files


def test_the_statement_is_of_every_file_and_repeats_the_facts(pack: Path) -> None:
    statement, manifest = (json.loads((pack / name).read_text()) for name in (STATEMENT, MANIFEST))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert subjects == {name: sha256(pack / name) for name in content(pack) if name not in (MANIFEST, STATEMENT)}
    assert statement["predicate"] == {name: value for name, value in manifest.items() if name != "seal"}


def test_numbers_stand_beside_what_asks_for_them_and_none_claims_compliance(pack: Path) -> None:
    found = json.loads((pack / "evidence.json").read_text())
    record = json.loads((pack / AUDIT).read_text())
    by_name = {fact["number"]: fact for fact in found["facts"] if fact["file"] == AUDIT}
    assert by_name["calibrated.share"]["value"] == record["calibrated"]["share"]
    assert {name for fact in found["facts"] for name in fact["supports"]} == {*found["measures"]}
    text = (pack / "index.html").read_text() + json.dumps(found)
    assert "None says that a measure is met" in text
    assert not any(word in text.lower() for word in ("complies", "compliant", "compliance"))


def test_the_training_set_is_described_in_croissant(pack: Path) -> None:
    """The fields that the format requires; where mlcroissant is installed, it reads them as well."""
    file = pack / "training-set-audit.json"
    found = json.loads(file.read_text())
    assert {"@context", "@type", "name", "description", "conformsTo", "distribution", "recordSet"} <= {*found}
    (table,) = found["distribution"]
    assert table["sha256"] == sha256(pack / table["contentUrl"])
    assert "licence" not in found
    assert "license" not in found
    mlcroissant = pytest.importorskip("mlcroissant")
    read = mlcroissant.Dataset(str(file))
    assert read.metadata.name == found["name"]
    assert not read.metadata.issues.errors


# -- every byte


def test_every_changed_byte_is_named(pack: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pack, tmp_path / "pack"))
    files = content(pack)
    for name in files:  # the first and the last byte of each
        for at in (0, -1):
            changed = bytearray(files[name])
            changed[at] ^= 1
            (copy / name).write_bytes(changed)
            assert name in [each["file"] for each in verify_pack(copy)["changed"]], (name, at)
            (copy / name).write_bytes(files[name])
    assert [*unnamed(copy, 200, 0)] == []
    assert content(copy) == files


def test_files_that_are_missing_or_came_from_elsewhere_are_named(pack: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pack, tmp_path / "pack"))
    (copy / "index.html").unlink()
    (copy / "more.json").write_text("{}")
    assert verify_pack(copy)["changed"] == [
        {"file": "index.html", "how": "is not there"},
        {"file": "more.json", "how": "is not in the manifest"},
    ]


def test_a_pack_that_was_written_anew_has_another_digest(pack: Path, tmp_path: Path) -> None:
    told = sha256(pack / STATEMENT)
    assert verify_pack(pack, digest=told.upper())["sound"]
    copy = edited(pack, tmp_path / "pack", MANIFEST, lambda each: each["packed_with"].update(machine="other"))
    assert [each["file"] for each in verify_pack(copy, digest=told)["changed"]] == [STATEMENT]


# -- every number


def lowered(*path: str) -> Callable[[Any], None]:
    """Print a number a hundredth lower."""

    def change(record: Any) -> None:
        for each in path[:-1]:
            record = record[int(each)] if each.isdigit() else record[each]
        last = int(path[-1]) if path[-1].isdigit() else path[-1]
        assert isinstance(record[last], float), record[last]
        record[last] = record[last] * 0.99 - 1e-7

    return change


SPACE = "feature_spaces"


@pytest.mark.parametrize(
    "path",
    [
        "calibrated.cut",
        "calibrated.ci95.0",
        "held_out.mq.0,30.ci95.1",
        "statistics.c_t.value",
        "statistics.near.cut",
        "held_out_check.nearer.ratio.value",
        "SPACE.calibrated.cut",
        "SPACE.similarity.samples.p95.value",
        "SPACE.similarity.train.mean.mean",
        "SPACE.similarity_check.nearer.similarity.value",
    ],
)
def test_an_edited_number_is_named_though_all_digests_agree(pack: Path, tmp_path: Path, path: str) -> None:
    record = json.loads((pack / AUDIT).read_text())
    (space,) = record[SPACE]
    parts = [each.replace(",", ".") for each in path.split(".")]
    parts = [SPACE, space, *parts[1:]] if parts[0] == "SPACE" else parts
    copy = edited(pack, tmp_path / "pack", AUDIT, lowered(*parts))
    found = verify_pack(copy)
    assert not found["sound"]
    assert f"{AUDIT}: {'.'.join(parts)}" in [each["where"] for each in found["differences"]]


def one_copy_less(record: Any) -> None:
    """A count, its share and the verdict's text agree with each other, and not with the distances."""
    found = record["mq"]["0.90"]
    found["count"] -= 1
    found["share"] = found["count"] / found["total"]


def cleaner(arrays: Any) -> None:
    """The sample that is nearest to a training image becomes one that is far."""
    arrays["pixels_distances"][arrays["pixels_distances"][:, 0].argmin()] = 100.0


@pytest.mark.parametrize(
    ("file", "change", "where"),
    [
        (AUDIT, one_copy_less, f"{AUDIT}: mq.0.90.count"),
        (AUDIT, lambda record: record["verdict"].update(outcome="copies"), f"{AUDIT}: verdict.outcome"),
        (
            AUDIT,
            lambda record: record["mq"]["0.15"].update(clusters=3, design_effect=1.5),
            f"{AUDIT}: mq.0.15.clusters",
        ),
        (SCORES, cleaner, "audits/audit/samples.csv: ratio"),
        (
            "audits/audit/samples.csv",
            lambda text: text.replace("\n7,", "\n7,", 1).replace("0.", "0.9", 1),
            "samples.csv",
        ),
        ("audits/audit/training-images.csv", lambda text: re.sub(r"\n5,1,(\d+),", r"\n5,1,9\1,", text), "image 5"),
        ("audits/audit/report.html", lambda text: text.replace(" training images", " images", 1), "report.html, line"),
        ("index.html", lambda text: text.replace("None says", "Each says"), "index.html, line"),
        ("evidence.json", lambda found: found["facts"][0].update(value=0.77), "evidence.json, line"),
        ("runs/run/model-card.md", lambda text: text.replace("members", "member"), "model-card.md, line"),
        ("training-set-audit.json", lambda found: found.update(license="none"), "training-set-audit.json, line"),
    ],
)
def test_an_edited_document_is_named_though_all_digests_agree(
    pack: Path, tmp_path: Path, file: str, change: Callable[[Any], Any], where: str
) -> None:
    found = verify_pack(edited(pack, tmp_path / "pack", file, change))
    assert not found["sound"]
    assert where in words(found)


def test_a_file_that_no_pack_has_is_named_though_the_manifest_has_it(pack: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pack, tmp_path / "pack"))
    (copy / "audits" / "audit" / "more.html").write_text("<p>no copying</p>")
    assert "audits/audit/more.html" in words(verify_pack(resealed(copy)))


def noise(count: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)


PROMPTS = tuple((f"prompt {number % 20}",) for number in range(60))


@pytest.mark.parametrize(
    ("samples", "held_out"),
    [
        (ImageSet(noise(60, 1), "samples"), None),
        (ImageSet(noise(60, 1), "samples"), ImageSet(noise(20, 2), "few")),
        (
            ImageSet(torch.cat([noise(60, 0)[:20], noise(40, 1)]), "copies", captions=PROMPTS),
            ImageSet(noise(120, 2), "x"),
        ),
        (ImageSet(torch.cat([noise(60, 0)[:40] // 2 + 60, noise(20, 1)]), "near"), ImageSet(noise(120, 2) // 8, "far")),
        (
            ImageSet(noise(60, 1), "s"),
            ImageSet(torch.cat([noise(150, 2), near_copies(noise(90, 0))["noise_5"][:4]]), "x"),
        ),
    ],
    ids=["none", "few", "prompts", "far", "copies"],
)
def test_whatever_sets_there_are_what_is_printed_is_counted_again(
    samples: ImageSet, held_out: ImageSet | None, tmp_path: Path
) -> None:
    train = noise(90, 0)
    result = audit(ImageSet(torch.cat([train, train[:3]]), "train"), samples, held_out, extractors=["pixels"])
    found = recount(save_audit(result, tmp_path / "audit"))
    assert (found.differences, found.counted > 100) == ([], True)


def test_held_out_images_that_were_left_out_are_counted_again(tmp_path: Path) -> None:
    photos = scenes(260)
    held_out = torch.cat([photos[140:], near_copies(photos[:4])["jpeg_75"]])
    result = audit(
        ImageSet(photos[:120], "train"),
        ImageSet(photos[120:140], "samples"),
        ImageSet(held_out, "x"),
        measure_quality=False,
    )
    assert recount(save_audit(result, tmp_path / "audit")).differences == []


# -- with the images


def test_with_the_images_distances_and_quality_are_measured_again(pack: Path, run: iet_agc.Run) -> None:
    source = str(run.folder)
    descriptor = run.folder.parent / "descriptor.pt"
    found = verify_pack(pack, Images(source, source, source, extractors=[descriptor]))
    assert (found["sound"], found["differences"], found["only_images"]) == (True, [], {})
    assert found["measured"] > found["counted"]


def test_a_network_is_loaded_only_where_it_is_given(pack: Path, run: iet_agc.Run) -> None:
    """A pack names files, and what it names may be anything on the disk of who checks it."""
    source = str(run.folder)
    found = verify_pack(pack, Images(source, source, source))
    assert (found["sound"], found["differences"]) == (True, [])
    assert {*found["only_images"]} == {"quality", "feature space: quality", "feature space: dimensions"}
    assert "only pixels were measured again" in found["notes"][0]


def test_other_images_are_told_apart(pack: Path, run: iet_agc.Run) -> None:
    samples = np.load(run.folder / "samples" / "samples.npz")["images"].copy()
    samples[7, 0, 0, 0] ^= 1
    found = iet_agc.verify(pack, run, samples, run, quiet=True)
    assert not found.sound
    assert any("sha256.samples" in each for each in found.differences)
    with pytest.raises(CheckFailed, match="not sound"):
        found.check()


# -- hostile packs


def as_link(pack: Path) -> None:
    (pack / "index.html").unlink()
    (pack / "index.html").symlink_to("/etc/hostname")


def with_pipe(pack: Path) -> None:
    os.mkfifo(pack / "more.json")


def with_pickle(pack: Path) -> None:
    (pack / "weights.pkl").write_bytes(b"\x80\x04N.")


def of_objects(pack: Path) -> None:
    np.savez(pack / SCORES, pixels_distances=np.array([{}], dtype=object))
    resealed(pack)


def leading_elsewhere(pack: Path) -> None:
    manifest = json.loads((pack / MANIFEST).read_text())
    seal = manifest.pop("seal")
    files = seal["files"] | {"../../secret.json": "0" * 64}
    sealed = digest({**manifest, "seal": {"files": files}})
    (pack / MANIFEST).write_text(json.dumps({**manifest, "seal": {"content": sealed, "files": files}}, indent=1) + "\n")


def in_other_letters(pack: Path) -> None:
    (pack / "INDEX.html").write_text("")


def nested(pack: Path) -> None:
    (pack / MANIFEST).write_text("[" * 100_000)


def nested_record(pack: Path) -> None:
    (pack / AUDIT).write_text('{"version": ' + "[" * 100_000 + "]" * 100_000 + "}")
    manifest = json.loads((pack / MANIFEST).read_text())
    manifest.pop("seal")
    files = [name for name in files_below(pack) if name not in (MANIFEST, STATEMENT)]
    (pack / STATEMENT).write_text(statement_text(manifest, {name: sha256(pack / name) for name in files}))
    write_sealed(pack / MANIFEST, manifest, [*files, STATEMENT])


def sparse(pack: Path) -> None:
    with (pack / SCORES).open("r+b") as stream:
        stream.truncate(2**40)


def inflated(pack: Path) -> None:
    """A few megabytes that say they are more than a gigabyte, and are."""
    archive, zeros = zipfile.ZipFile(pack / SCORES, "w", zipfile.ZIP_DEFLATED, compresslevel=1), bytes(2**20)
    with archive, archive.open("pixels_distances.npy", "w", force_zip64=True) as stream:
        for _ in range(1040):
            stream.write(zeros)
    resealed(pack)


def claiming(pack: Path) -> None:
    """A header that asks for more memory than there are numbers."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 50)})
    with zipfile.ZipFile(pack / SCORES, "w") as archive:
        archive.writestr("pixels_distances.npy", header.getvalue() + bytes(80))
    resealed(pack)


def linked_lock(pack: Path) -> None:
    (pack / ".lock").unlink(missing_ok=True)
    (pack / ".lock").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_link, "is a link"),
        (with_pipe, "is a pipe, a socket or a device"),
        (with_pickle, "is not opened"),
        (of_objects, "never unpickled"),
        (leading_elsewhere, "may lie elsewhere"),
        (in_other_letters, "one name on some disks"),
        (nested, "levels deep"),
        (nested_record, "nested"),
        (sparse, "larger files than a pack has"),
        (inflated, "are allowed"),
        (claiming, "claims"),
        (linked_lock, "is a link"),
    ],
)
def test_hostile_packs_are_refused_in_one_line(
    pack: Path, tmp_path: Path, change: Callable[[Path], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(pack, tmp_path / "pack"))
    change(copy)
    status, out, err = call(capsys, "verify", str(copy))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


# -- the folder


def test_a_killed_pack_goes_on_and_a_repeated_one_is_the_same(
    pack: Path, run: iet_agc.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "again"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("iet_agc.auditing.pack.statement_text", killed)
        with pytest.raises(KeyboardInterrupt):
            pack_audits([run.folder / "audit"], out)
    assert not (out / MANIFEST).exists()
    pack_audits([run.folder / "audit"], out)
    assert content(out) == content(pack)
    before = {name: (out / name).stat().st_mtime_ns for name in content(out)}
    pack_audits([run.folder / "audit"], out)
    assert {name: (out / name).stat().st_mtime_ns for name in content(out)} == before


def test_it_is_written_over_nothing_else(pack: Path, run: iet_agc.Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no pack"):
        pack_audits([run.folder / "audit"], tmp_path)
    other = Path(shutil.copytree(run.folder / "audit", tmp_path / "other"))
    with pytest.raises(UserError, match="holds another pack"):
        pack_audits([other], pack)


def test_an_audit_of_before_scores_were_kept_is_made_again_first(run: iet_agc.Run, tmp_path: Path) -> None:
    old = Path(shutil.copytree(run.folder / "audit", tmp_path / "audit"))
    (old / "scores.npz").unlink()
    record = json.loads((old / "audit.json").read_text())
    names = record.pop("seal")["files"]
    write_sealed(old / "audit.json", record, [name for name in names if name != "scores.npz"])
    with pytest.raises(UserError, match=r"does not hold scores\.npz"):
        pack_audits([old], tmp_path / "pack")


# -- the verbs


def test_the_verbs_tell_by_their_status(pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "verify", str(pack), "--digest", sha256(pack / STATEMENT))
    assert (status, err) == (0, "")
    assert json.loads(out)["sound"]
    copy = Path(shutil.copytree(pack, tmp_path / "pack"))
    (copy / "index.html").write_text("")
    status, out, err = call(capsys, "verify", str(copy))
    assert status == 1
    assert "index.html is not as it was written" in err
    assert not json.loads(out)["sound"]
    assert call(capsys, "verify", str(tmp_path))[0] == 2
    assert call(capsys, "verify", str(pack), "--train", "digits")[0] == 2
