"""Captions: read as data, changed as tokens in training, and prompts changed likewise when drawing."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers")

from diffusers import (  # pyright: ignore[reportPrivateImportUsage]
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from iet_agc.auditing.memorized_prompts import detect_prompts
from iet_agc.config.settings import TextSettings
from iet_agc.data.duplicates import plant_duplicates
from iet_agc.data.grids import save_image
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.samplers import Sampler
from iet_agc.runtime.seeds import generator
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.text_to_image.caption_augmentation import UNCHANGED, Changes, change, vocabulary_of
from iet_agc.text_to_image.pipeline import draw, load_text_pipeline
from iet_agc.training.batches import draw_batch
from iet_agc.training.captioned import Captioned
from iet_agc.training.loop import train
from iet_agc.training.tasks import TextTask
from tests.commands import refused
from tests.drawing import draw_samples
from tests.image_sets import load_named
from tests.miniature import captioned, save_captioned, save_miniature, tokenizer
from tests.tiny_runs import CPU, assert_same
from tests.tiny_text_runs import call, settings, stock, told, unet

MANY = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_miniature(tmp_path_factory.mktemp("pipelines") / "epsilon")


@pytest.fixture(scope="module")
def pipeline(folder):
    return load_text_pipeline(folder)


@pytest.fixture(scope="module")
def words():
    return tokenizer()


def vocabulary(words, padding=None):
    padding = words.eos_token_id if padding is None else padding
    return vocabulary_of(words.get_vocab(), words.all_special_ids, words.eos_token_id, padding)


def rows_of(words, text, count=1, length=16):
    ids = words([text], padding="max_length", max_length=length, truncation=True).input_ids
    return torch.tensor(ids * count)


def spoken(words, row):
    """The words of a row, and a check that it is one: start, text, end, padding."""
    assert row[0] == words.bos_token_id
    end = row.index(words.eos_token_id)
    assert set(row[end:]) <= {words.eos_token_id, words.pad_token_id}
    text = "".join(words.convert_ids_to_tokens(row[1:end]))
    return text.removesuffix("</w>").split("</w>") if text else []


def changed(words, text, changes, count=MANY, length=16):
    rows = change(rows_of(words, text, count, length), changes, vocabulary(words), generator("test", 1))
    return [spoken(words, row) for row in rows.tolist()]


def places(longer, shorter, width=1):
    """Where `width` words may have been put into a text, to give the longer one."""
    return {at for at in range(len(shorter) + 1) if longer[:at] + longer[at + width :] == shorter}


# -- tokens


def test_nothing_is_changed_by_default(words):
    rows = rows_of(words, "a red dog")
    assert change(rows, UNCHANGED, vocabulary(words), generator("test")) is rows
    assert not UNCHANGED.any


def test_a_word_of_the_caption_is_repeated_anywhere(words):
    """Words of several tokens stay whole: z and e are no word of the vocabulary, so that zebra is five tokens."""
    text = ["red", "zebra", "dog"]
    found = changed(words, " ".join(text), Changes(repeat_words=1))
    seen = {(longer[at], at) for longer in found for at in places(longer, text)}
    assert all(len(longer) == 4 and places(longer, text) for longer in found)
    assert seen == {(word, at) for word in text for at in range(4)}
    firsts = [longer[0] for longer in found].count("zebra") / MANY  # only where it was put to the front
    assert abs(firsts - 1 / 3 / 4) < 0.05


def test_numbers_are_put_in_whole(words):
    text = ["a", "red", "dog"]
    found, sizes, at = changed(words, " ".join(text), Changes(random_numbers=1)), set(), set()
    for longer in found:
        digits = [word for word in longer if word.isdigit()]
        sizes.add(len(digits))
        at |= places(longer, text, len(digits))
        assert places(longer, text, len(digits))
        assert len(digits) == 1 or digits[0] != "0"
    assert at == {0, 1, 2, 3}
    assert sizes >= {4, 5}


def test_the_digits_are_those_of_the_number_that_was_drawn(words):
    rows, rng, again = rows_of(words, "a dog", MANY), generator("test", 1), generator("test", 1)
    found = change(rows, Changes(random_numbers=1), vocabulary(words), rng)
    torch.rand(MANY, generator=again, dtype=torch.float64)  # which rows are changed
    drawn = torch.randint(100_000, (MANY, 1), generator=again)[:, 0].tolist()
    told_ = ["".join(word for word in spoken(words, row) if word.isdigit()) for row in found.tolist()]
    assert told_ == [str(number) for number in drawn]


def test_random_words_are_put_in(words):
    text = ["a", "red", "dog"]
    found = changed(words, " ".join(text), Changes(random_tokens=1))
    assert {at for longer in found for at in places(longer, text)} == {0, 1, 2, 3}
    inserted = {longer[at] for longer in found for at in places(longer, text)}
    whole = {entry.removesuffix("</w>") for entry in words.get_vocab() if entry.endswith("</w>")}
    assert whole == inserted
    two = changed(words, " ".join(text), Changes(random_tokens=2))
    assert {len(longer) for longer in two} == {5}


def test_a_random_caption_replaces_all(words):
    found = changed(words, "a red dog", Changes(random_caption=0.4, repeat_words=1))
    replaced = [text for text in found if len(text) == 4 and not {"a", "red", "dog"} <= {*text}]
    assert abs(len(replaced) / MANY - 0.4) < 0.08
    assert len(set(map(tuple, replaced))) > 0.95 * len(replaced)
    (short,) = changed(words, "a", Changes(random_caption=1), 1, length=5)
    assert len(short) == 3


def test_the_rate_is_that_of_changed_captions(words):
    found = changed(words, "a red dog", Changes(random_tokens=1, change_rate=0.3))
    assert abs(sum(len(text) == 4 for text in found) / MANY - 0.3) < 0.08
    with pytest.raises(ValueError, match=r"text\.change_rate has no effect without random_tokens"):
        Changes(random_caption=0.5, change_rate=0.3)


def test_what_does_not_fit_falls_off_behind_the_caption(words):
    """A full row stays full, and ends with its end token."""
    text = [("red", "dog", "cat")[number % 3] for number in range(14)]
    for longer in changed(words, " ".join(text), Changes(random_tokens=1), 50):
        assert len(longer) == 14
        assert any(longer[:at] + longer[at + 1 :] == text[:-1] for at in range(14)) or longer == text
    found = changed(words, " ".join(text[:12]), Changes(random_numbers=3), 50)
    assert {len(longer) for longer in found} == {14}


def test_padding_of_stable_diffusion_2_is_no_text(words):
    """Rows are filled up with another token there, number 0."""
    rows = rows_of(words, "red dog", 50)
    end = int((rows[0] == words.eos_token_id).int().argmax())
    rows[:, end + 1 :] = 0
    known = vocabulary(words, padding=0)
    changes = Changes(random_tokens=1, repeat_words=1, random_numbers=1, random_caption=0.3)
    for row in change(rows, changes, known, generator("test")).tolist():
        end = row.index(words.eos_token_id)
        assert end > 4
        assert 0 not in row[:end]
        assert set(row[end + 1 :]) <= {0}


def test_an_unknown_character_does_not_end_a_caption(words):
    """Its token is the end token."""
    rows = rows_of(words, "red , dog", 50)
    found = change(rows, Changes(random_tokens=1), vocabulary(words), generator("test"))
    kept = [[token for token in row if token in rows[0, [1, 3]]] for row in found.tolist()]
    assert all(len(tokens) >= 2 for tokens in kept)
    behind = [row.index(int(rows[0, 3])) < 4 for row in found.tolist()]
    assert any(behind)
    assert not all(behind)


def test_a_row_does_not_depend_on_the_others(words):
    changes = Changes(0.3, 2, 1, 2, 0.8)
    one = torch.cat([rows_of(words, text) for text in ("a dog", "red cat", "a house with a hat", "bird")])
    other = torch.cat([rows_of(words, text) for text in ("green", "red cat", "cat cat", "bird")])
    found = [change(rows, changes, vocabulary(words), generator("test")) for rows in (one, other)]
    assert torch.equal(found[0][[1, 3]], found[1][[1, 3]])
    assert not torch.equal(found[0][[0, 2]], found[1][[0, 2]])


def test_a_caption_without_words_is_left_alone(words):
    rows = torch.full((3, 8), words.eos_token_id)
    rows[:, 0] = words.bos_token_id
    assert torch.equal(change(rows, Changes(repeat_words=2), vocabulary(words), generator("test")), rows)


def test_tokenizers_that_cannot_be_used():
    entries = {"a": 0, "b": 1, "end": 2}
    with pytest.raises(ValueError, match="the tokenizer has no words, which end with </w> in CLIP's"):
        vocabulary_of(entries, [2], 2, 2)
    assert len(vocabulary_of({"a</w>": 0, "1</w>": 1, "end": 2}, [2], 2, 2).digits) == 0


# -- training


CHANGES = Changes(random_caption=0.2, random_tokens=1, random_numbers=1, repeat_words=1, change_rate=0.7)
CHANGING = TextSettings(**asdict(CHANGES))


@pytest.mark.parametrize(
    "changes",
    [{"random_caption": 0.5}, {"random_tokens": 2}, {"random_numbers": 1}, {"repeat_words": 2}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_step_tells_changed_captions(folder, pipeline, changes):
    """By hand: the caption of each, changed by the batch's own generator behind its other draws, and encoded."""
    data = captioned()
    batch = draw_batch(0, 0, 3, len(data), 8, (4, 8, 8), CPU)
    plain, losses = told(folder, data, batch)
    texts, other = told(folder, data, batch, **{f"text__{name}": value for name, value in changes.items()})
    rng = generator("text", 0, 0, 3)
    torch.randn(8, 4, 8, 8, generator=rng)
    lots = torch.rand(2, 8, generator=rng, dtype=torch.float64)[0].tolist()
    some = [data.captions[place] for place in batch.positions.tolist()]
    tokens = pipeline.tokens([texts[int(lot * len(texts))] for lot, texts in zip(lots, some, strict=True)])
    known = pipeline.vocabulary(Changes(**changes))
    assert known is not None
    expected = pipeline.embed(change(tokens, Changes(**changes), known, rng)[2:8]).embeds
    torch.testing.assert_close(texts, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(texts, plain, atol=1e-3)
    assert not torch.equal(losses, other)


def test_the_rate_has_an_effect(folder):
    data = captioned()
    batch = draw_batch(0, 0, 3, len(data), 8, (4, 8, 8), CPU)
    always, half = (told(folder, data, batch, text__random_tokens=2, text__change_rate=rate)[0] for rate in (1.0, 0.5))
    same = [torch.equal(one, other) for one, other in zip(always, half, strict=True)]
    assert any(same)
    assert not all(same)


def test_only_changing_captions_are_encoded_in_the_step(pipeline):
    data = captioned()
    assert data.captions is not None
    still = Captioned(pipeline, data.images, data.captions, TextSettings()).to(CPU)
    assert still.embeddings is not None
    assert Captioned(pipeline, data.images, data.captions, CHANGING).to(CPU).embeddings is None


def test_replicas_see_the_rows_of_one_batch(pipeline):
    data = captioned()
    assert data.captions is not None
    examples = Captioned(pipeline, data.images, data.captions, CHANGING)
    batch = draw_batch(0, 0, 0, len(data), 8, examples.shape, CPU)
    with torch.no_grad():
        whole, part = (
            examples.losses(pipeline.denoiser, pipeline.scheduler, batch, rows) for rows in (slice(0, 8), slice(3, 8))
        )
    torch.testing.assert_close(part, whole[3:], rtol=1e-4, atol=1e-6)


def test_a_step_reads_nothing_on_the_host(pipeline):
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert not any(word in str(function) for word in ("_local_scalar_dense", "nonzero"))
            return function(*args, **(kwargs or {}))

    data = captioned()
    assert data.captions is not None
    examples = Captioned(pipeline, data.images, data.captions, CHANGING).to(CPU)
    batch = draw_batch(0, 0, 0, len(data), 8, examples.shape, CPU)
    with torch.no_grad(), Watch():
        examples.losses(pipeline.denoiser, pipeline.scheduler, batch, slice(0, 8))


def test_a_killed_run_with_changing_captions_resumes_bitwise(folder, tmp_path):
    chosen = settings(
        folder, method__rounds=1, text__random_caption=0.2, text__repeat_words=1, text__random_numbers=1
    )  # fmt: skip
    train(chosen, captioned(), tmp_path / "whole", CPU)
    steps = []

    def dies(count):
        steps.append(count)
        if len(steps) == 8:  # of 8, after 0: in the second member
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(chosen, captioned(), tmp_path / "run", CPU, dies)
    train(chosen, captioned(), tmp_path / "run", CPU)
    assert_same(unet(tmp_path / "run"), unet(tmp_path / "whole"))
    before, after = load_text_pipeline(folder), load_text_pipeline(tmp_path / "run" / "raw")
    assert_same(before.text_encoder.state_dict(), after.text_encoder.state_dict())
    with pytest.raises(ValueError, match=r"holds another run \(text.repeat_words 1 is now 2\)"):
        train(
            settings(folder, method__rounds=1, text__random_caption=0.2, text__repeat_words=2, text__random_numbers=1),
            captioned(), tmp_path / "run", CPU,
        )  # fmt: skip


def test_changes_that_have_no_effect_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"text\.change_rate has no effect without random_tokens"):
        train(settings(folder, text__change_rate=0.5), captioned(), tmp_path / "run", CPU)
    monkeypatch.setattr("tests.miniature.string.digits", "012345678")
    other = save_miniature(tmp_path / "p")
    with pytest.raises(ValueError, match="the tokenizer has no digits: leave out random_numbers"):
        train(settings(other, text__random_numbers=1), captioned(), tmp_path / "run", CPU)
    TextTask(settings(other, text__random_tokens=1), captioned())
    assert not (tmp_path / "run").exists()


# -- captions that are too long


def test_captions_that_are_too_long_are_cut(folder, pipeline, tmp_path, capsys):
    long, short = "red " * 20, captioned()
    assert short.captions is not None
    captions = ((f"{long} a", f"{long} b"), *short.captions[1:])
    data = ImageSet(short.images, "noise", captions=captions)
    with pytest.raises(ValueError, match=r"has 23 tokens, the text encoder takes 16: shorten it, or set text.too_long"):
        TextTask(settings(folder), data)
    chosen = settings(folder, text__too_long="cut", method__members=1, method__rounds=1, run__preview_images=1)
    train(chosen, data, tmp_path / "run", CPU)
    assert f"2 of {len({*sum(captions, ())})} captions are too long and cut off" in capsys.readouterr().err
    cut = replace(pipeline, cuts=True)
    assert torch.equal(cut.tokens([long, "a dog"])[:, 1:15], pipeline.tokens(["red " * 14, "a dog"])[:, 1:15])
    assert cut.tokens([long])[0, -1] == pipeline.parts["tokenizer"].eos_token_id
    sample_run(tmp_path / "run", tmp_path / "s", {"num": len(data) + 1})  # the same captions are its prompts
    drawn = load_samples(tmp_path / "s")[0].captions
    assert drawn is not None
    assert (drawn[0], drawn[-1]) == ((f"{long} a",), (f"{long} b",))
    found = detect_prompts(tmp_path / "run", tmp_path / "d", [f"{long} a", "a bird"], num_seeds=1, first_steps=1)
    assert found["num_prompts"] == 2  # and are looked at


# -- captions of planted images


def test_planted_copies_have_the_captions_asked_for():
    data = captioned(4)
    texts = (("a", "b"), ("c", "d", "e"), ("f",), ("g", "h"))
    data = ImageSet(data.images, "noise", captions=texts)
    assert plant_duplicates(data, 2, 3).captions == (*texts, *texts[:2], *texts[:2])
    assert plant_duplicates(data, 2, 3, "same").captions == (("a",), ("c",), *texts[2:], ("a",), ("c",), ("a",), ("c",))
    different = plant_duplicates(data, 2, 4, "different")
    expected = [("a",), ("c",), *texts[2:], ("b",), ("d",), ("a",), ("e",), ("b",), ("c",)]
    assert different.captions == tuple(expected)
    assert torch.equal(different.images, data.images[[0, 1, 2, 3, 0, 1, 0, 1, 0, 1]])


def test_captions_of_planted_images_are_a_setting(tmp_path):
    noise = captioned(3)
    root = save_captioned(tmp_path / "set", ImageSet(noise.images, "noise", captions=(("a", "b"),) * 3))
    how: dict[str, Any] = {"shape": tuple(noise.images.shape[1:]), "planted_images": 3, "planted_copies": 2}
    found = [load_named("laion-10k", root, **how, planted_captions=kind)[0] for kind in (None, "same", "different")]
    assert [part.captions and part.captions[3:] for part in found] == [
        (("a", "b"),) * 3,
        (("a",),) * 3,
        (("b",),) * 3,
    ]


def test_captions_of_planted_images_without_effect_are_refused(tmp_path, capsys):
    planted = ("--data.planted_images", "2", "--data.planted_copies", "2", "--data.planted_captions", "different")
    assert "digits has no captions, so data.planted_captions has no effect" in refused(
        capsys, tmp_path, "--data.name", "digits", *planted
    )
    for some in (planted[4:], (*planted[:3], "1", *planted[4:]), ("--data.planted_images", "0", *planted[2:])):
        told_ = refused(capsys, tmp_path, "--data.name", "digits", *some)
        assert "data.planted_captions has no effect: set data.planted_images and data.planted_copies" in told_
    root = save_captioned(tmp_path / "set", captioned(4))
    same = (*planted[:-1], "same", "--data.convert_to", "3x16x16")
    told_ = refused(capsys, tmp_path, "--data.name", "laion-10k", "--data.root", root, *same)
    assert "data.planted_captions has no effect on images alone" in told_
    told_ = refused(capsys, tmp_path, "--data.name", "laion-10k", "--data.root", root, *planted)
    assert "'different', but " in told_
    assert "have one caption only, such as 00" in told_


# -- captions of folders


def pictures(root: Path, *names: str) -> Path:
    for name, image in zip(names, captioned(len(names)).images, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(image, root / name)
    return root


LINES = [
    {"file_name": "b/2.png", "text": ["ein Bär 🐻", "__import__('os').mkdir('executed')"], "score": 3},
    {"file_name": "./1.png", "text": "a dog"},
]


def written(root: Path, lines: list[Any], name: str = "metadata.jsonl") -> Path:
    (root / name).write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return root


EXPECTED = {"1.png": ("a dog",), "b/2.png": ("ein Bär 🐻", "__import__('os').mkdir('executed')")}


def told_of(*parts: ImageSet) -> dict[str, tuple[str, ...]]:
    """The captions of each file."""
    return {file: texts for part in parts for file, texts in zip(part.files or (), part.captions or (), strict=True)}


def test_captions_in_lines(tmp_path):
    root = written(pictures(tmp_path / "set", "1.png", "b/2.png"), LINES)
    train_set, _ = load_named("folder", root, captions="metadata.jsonl")
    assert told_of(train_set) == EXPECTED
    (root / "metadata.jsonl").rename(tmp_path / "other.jsonl")
    assert told_of(load_named("folder", root, captions=str(tmp_path / "other.jsonl"))[0]) == EXPECTED
    assert load_named("folder", root)[0].captions is None
    assert not Path("executed").exists()


def test_captions_beside_images(tmp_path):
    root = pictures(tmp_path / "set", "1.png", "b/2.png")
    (root / "1.txt").write_text("a dog", encoding="utf-8")
    (root / "b" / "2.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(EXPECTED["b/2.png"]).encode() + b"\r\n")
    parts = load_named("folder", root, captions="txt", num_train=1, cache=tmp_path / "cache")
    assert told_of(*parts) == EXPECTED
    (root / "1.txt").write_text("a cat", encoding="utf-8")
    parts = load_named("folder", root, captions="txt", num_train=1, cache=tmp_path / "cache")
    assert told_of(*parts)["1.png"] == ("a cat",)


def test_captions_in_one_object_and_classes_by_folder(tmp_path):
    root = pictures(tmp_path / "set", "a/1.png", "b/2.png")
    (root / "dcr.json").write_text(json.dumps({"/far/a/1.png": ["x"], "2.png": "y"}))
    images, _ = load_named("folder", root, captions="dcr.json", classes="folders")
    assert told_of(images) == {"a/1.png": ("x",), "b/2.png": ("y",)}
    assert images.labels is not None
    assert [("a/1.png", "b/2.png")[label] for label in images.labels] == list(images.files or ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"file_name": "1.png", "text": "a"}\n', "do not match: 1 images have no captions of their own, such as b/2"),
        (b'{"file_name": "3.png", "text": "a"}\n', "1 captions have no image, such as 3.png"),
        (
            b'\n{"file_name": "1.png", "text": " "}',
            "metadata.jsonl, line 2: 1.png has no caption, or one that is",
        ),
        (b'{"file_name": "1.png", "text": []}', "line 1: 1.png has no caption, or one that is empty or no text: give"),
        (b'{"file_name": "1.png", "text": ["a", 3]}', "line 1: 1.png has no caption"),
        (b'{"file_name": "1.png"}', "line 1: 1.png has no caption"),
        (b'{"text": "a"}', "line 1 has no file_name: write an object with file_name and text in each line"),
        (b'["1.png", "a"]', "line 1 has no file_name"),
        (b'{"file_name": "1.png", "text": "a"}\n{"file', "line 2 is damaged, it is not JSON "),
        (b"[" * 100_000, "line 1 is damaged, it is nested too deeply"),
        (b'{"file_name": "1.png", "text": "a", "text": "b"}', "line 1 is damaged, text stands there more"),
        (
            '{"file_name": "1.png", "text": "Bär"}'.encode("latin-1"),
            "line 1 is not UTF-8, at byte 33: write it as",
        ),
        (b'{"file_name": "1.png", "text": "half \\ud83d"}', "line 1 is damaged, '\\ud83d' stands in a text"),
        (
            b'{"file_name": "1.png", "text": "a"}\n{"file_name": "./1.png", "text": "a"}',
            "line 2: ./1.png stands there more than once: give it a list of captions",
        ),
        (b'{"file_name": "../1.png", "text": "a"}', "line 1: ../1.png leaves the folder: give paths below it"),
        (b'{"file_name": "/etc/1.png", "text": "a"}', "line 1: /etc/1.png leaves the folder"),
        (b"", "2 images have no captions of their own"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, capsys, content, message):
    root = pictures(tmp_path / "set", "1.png", "b/2.png")
    (root / "metadata.jsonl").write_bytes(content)
    name = ("--data.name", "folder", "--data.root", root, "--data.captions")
    assert message in refused(capsys, tmp_path, *name, "metadata.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b/2.txt", None, "and its .txt files do not match: 1 images have no captions of their own, such as b/2.png"),
        ("3.txt", b"a", "1 captions have no image, such as 3.txt"),
        ("1.txt", b"", "1.txt has no caption in line 1: write one in every line"),
        ("1.txt", b"a\n\nb", "1.txt has no caption in line 2"),
        ("1.txt", "Bär".encode("latin-1"), "1.txt is not UTF-8, at byte 1: save it as UTF-8"),
        (
            "1.txt",
            PermissionError(13, "Permission denied"),
            "1.txt cannot be read: Permission denied",
        ),
        ("1.bmp", "copied", "1 captions fit more than one image, such as 1.txt"),
    ],
)
def test_files_beside_images_that_cannot_be_used(tmp_path, capsys, monkeypatch, name, content, message):
    root = pictures(tmp_path / "set", "1.png", "b/2.png")
    (root / "1.txt").write_text("a")
    (root / "b" / "2.txt").write_text("a")
    if content is None:
        (root / name).unlink()
    elif isinstance(content, OSError):

        def refuses(file):
            raise content

        monkeypatch.setattr("iet_agc.runtime.reading.open_file", refuses)
    elif content == "copied":
        save_image(captioned(1).images[0], root / name)
    else:
        (root / name).write_bytes(content)
    words_ = ("--data.name", "folder", "--data.root", root, "--data.captions", "txt")
    assert message in refused(capsys, tmp_path, *words_)


def test_captions_that_are_not_there(tmp_path, capsys):
    root = pictures(tmp_path / "set", "1.png")
    told_ = refused(capsys, tmp_path, "--data.name", "folder", "--data.root", root, "--data.captions", "none.jsonl")
    assert "none.jsonl is not there: give the captions" in told_
    told_ = refused(capsys, tmp_path, "--data.name", "folder", "--data.root", root / "1.png", "--data.captions", "txt")
    assert "1.png is no folder: data.captions is for a folder of images" in told_


def test_a_folder_with_captions_trains(capsys, folder, tmp_path):
    data = captioned(4)
    root = save_captioned(tmp_path / "set", data)
    assert data.captions is not None
    written(root, [{"file_name": f"{n:03d}.png", "text": [*some]} for n, some in enumerate(data.captions)])
    status, _, line = call(
        capsys, "train", "sd21-laion10k-default", "--out", tmp_path / "run", "--init", folder, "--data.name", "folder",
        "--data.root", root, "--data.captions", "metadata.jsonl", "--train.steps", "1", "--train.batch-size", "2",
        "--run.preview-images", "0", "--run.device", "cpu",
    )  # fmt: skip
    assert status == 0, line
    kept = json.loads((tmp_path / "run" / "captions.json").read_text())
    assert sorted(kept) == sorted(list(some) for some in data.captions)


# -- drawing


MITIGATIONS: dict[str, Any] = {"random_tokens": 2, "random_numbers": 1, "repeat_words": 2, "embedding_noise": 0.1}


@pytest.mark.parametrize("name", MITIGATIONS)
def test_every_mitigation_changes_what_is_drawn(pipeline, name):
    plain = draw(pipeline, [3, 4], ["a red dog"] * 2, 2, 1.0)
    noise = MITIGATIONS[name] if name == "embedding_noise" else 0.0
    changes = UNCHANGED if noise else Changes(**{name: MITIGATIONS[name]})
    mitigated = draw(pipeline, [3, 4], ["a red dog"] * 2, 2, 1.0, changes=changes, embedding_noise=noise)
    assert not torch.equal(mitigated[0], plain[0])
    assert not torch.equal(mitigated[1], plain[1])


def test_noise_on_the_prompt_is_gaussian_and_of_each_image(pipeline):
    """The U-Net is told the embedding and the noise of the image's own generator; the empty text stays as it is."""
    seen, honest = [], pipeline.denoiser.forward

    def listening(*arguments, **named):
        seen.append(named["encoder_hidden_states"])
        return honest(*arguments, **named)

    pipeline.denoiser.forward = listening
    try:
        draw(pipeline, [5, 6], ["a dog", "a cat"], 1, 7.5, embedding_noise=0.3)
    finally:
        pipeline.denoiser.forward = honest
    without, told_ = seen[0].chunk(2)
    texts, nothing = (pipeline.embed(pipeline.tokens(some)).embeds for some in (["a dog", "a cat"], [""]))
    for row, (seed, prompt) in enumerate([(5, "a dog"), (6, "a cat")]):
        noise = torch.randn(texts[row].shape, generator=generator("prompt", seed, prompt))
        torch.testing.assert_close(told_[row], texts[row] + 0.3 * noise)
        torch.testing.assert_close(without[row], nothing[0])


def test_a_mitigated_image_depends_on_its_seed_and_prompt_only(folder, tmp_path):
    prompts = ["a red dog", "a bird", "a cat"]
    changes = {"random_tokens": 2, "random_numbers": 1, "repeat_words": 1}
    options: dict[str, Any] = {"settings": changes | {"embedding_noise": 0.2}}
    whole, _ = load_samples(draw_samples(folder, range(7), tmp_path / "a", 2, prompts=prompts, **options))
    late, _ = load_samples(draw_samples(folder, range(4, 6), tmp_path / "b", 2, prompts=prompts, **options))
    assert torch.equal(late.images, whole.images[4:6])
    alone, _ = load_samples(draw_samples(folder, range(4, 5), tmp_path / "c", 2, prompts=["a bird"], **options))
    assert torch.equal(alone.images[0], whole.images[4])


def test_mitigations_are_part_of_a_sample_set(capsys, folder, tmp_path):
    words_ = ("sample", folder, "--out", tmp_path / "s", "--num", "2", "--steps", "2", "--prompt", "a red dog")
    given = ("--random-tokens", "2", "--repeat-words", "1", "--embedding-noise", "0.1", "--scheduler", "dpm++")
    status, text, _ = call(capsys, *words_, *given)
    assert status == 0
    summary, about = json.loads(text), json.loads((tmp_path / "s" / "samples.json").read_text())
    assert (summary["random_tokens"], summary["scheduler"]) == (2, "dpm++")
    expected = {"random_caption": 0, "random_tokens": 2, "random_numbers": 0, "repeat_words": 1, "change_rate": 1}
    assert about["mitigations"] == expected | {"embedding_noise": 0.1}
    assert about["sampler"] == "DPM-Solver++, order 2"
    texts = [text.split() for text in about["told"]]
    assert about["prompts"] == ["a red dog"] * 2
    assert [len(text) for text in texts] == [6, 6]
    assert texts[0] != texts[1]
    assert all({"a", "red", "dog"} <= {*text} for text in texts)
    assert call(capsys, *words_, *given)[0] == 0  # finished
    for other in ((), (*given[:-2],), (*given, "--random-numbers", "1"), (*given, "--random-tokens", "3")):
        status, _, line = call(capsys, *words_, *other)
        assert (status, "holds another sample set" in line) == (2, True)
    plain = ("sample", folder, "--out", tmp_path / "t", *words_[4:])
    assert call(capsys, *plain)[0] == 0
    about = json.loads((tmp_path / "t" / "samples.json").read_text())
    assert about["mitigations"] is None
    assert "told" not in about
    del about["mitigations"]  # as sets from before there were any
    (tmp_path / "t" / "samples.json").write_text(json.dumps(about))
    assert call(capsys, *plain)[0] == 0
    assert call(capsys, *plain, "--random-tokens", "1")[0] == 2


STOCK: dict[Sampler, Any] = {
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "euler": (EulerDiscreteScheduler, {}),
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_samplers_draw_what_stock_diffusers_draws(tmp_path, prediction):
    ours, pipe = load_text_pipeline(save_miniature(tmp_path / "p", prediction=prediction)), stock(tmp_path / "p")
    seeds, prompts, config = [3, 4], ["a red dog", "a bird"], pipe.scheduler.config
    drawn = [draw(ours, seeds, prompts, 3, 3.0)]
    for name, (kind, more) in STOCK.items():
        drawn.append(draw(ours, seeds, prompts, 3, 3.0, sampler=name))
        pipe.scheduler = kind.from_config(config, **more)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        theirs = pipe(prompts, num_inference_steps=3, guidance_scale=3.0, generator=generators, output_type="np").images
        theirs = (torch.from_numpy(theirs).permute(0, 3, 1, 2) * 255).round().to(torch.uint8)
        difference = (drawn[-1].int() - theirs.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01
        assert torch.equal(draw(ours, seeds[1:], prompts[1:], 3, 3.0, sampler=name)[0], drawn[-1][1])
    assert len({images.numpy().tobytes() for images in drawn}) == 4


def test_progress_is_whole_whatever_the_sampler(pipeline):
    for name in ("ddim", "dpm++", "pndm", "euler"):
        shares = []
        draw(pipeline, [1, 2], ["a dog"] * 2, 4, 1.0, on_images=shares.append, sampler=name)
        assert sum(shares) == pytest.approx(2)


def test_pixels_have_none_of_it(capsys, tmp_path):
    from iet_agc.diffusion.process import make_scheduler
    from iet_agc.diffusion.unet import build_unet, save_pipeline

    save_pipeline(build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4), make_scheduler(), tmp_path / "pixels")
    for name, value in {**MITIGATIONS, "scheduler": "euler"}.items():
        words_ = (f"--{name.replace('_', '-')}", value)
        status, _, line = call(capsys, "sample", tmp_path / "pixels", "--out", tmp_path / "s", "--num", "1", *words_)
        assert status == 2
        assert f"is no text-to-image pipeline: leave out the {name.replace('_', ' ')}" in line
    for words_ in (("--random-tokens", "76"), ("--embedding-noise", "-1"), ("--repeat-words", "-1")):
        status, _, line = call(capsys, "sample", tmp_path / "pixels", "--out", tmp_path / "s", *words_)
        assert (status, line.startswith("iet-agc: setting sample.")) == (2, True)
    assert not (tmp_path / "s").exists()
