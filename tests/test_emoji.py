"""Emoji: names and pictures of a font; a small pipeline built from them; and the presets that train it."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import matplotlib as mpl
from diffusers import StableDiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]
from fontTools import subset
from fontTools.ttLib import TTFont

from iet_agc.auditing.schema import read_record
from iet_agc.config.data_settings import EmojiData
from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.data.datasets.emoji import emoji_font, read_emoji
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.metrics import distance_ratio, nearest
from iet_agc.metrics.intervals import clustered_share
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import only_one
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.seal import write_sealed
from iet_agc.sampling.sample_set import load_samples
from iet_agc.text_to_image import bootstrap
from iet_agc.text_to_image.bootstrap import build_pipeline, decibels
from iet_agc.text_to_image.pipeline import load_text_pipeline
from tests.commands import call
from tests.image_sets import load_named
from tests.loaded_files import EXAMPLES, load

try:
    FONT = emoji_font(None)
except ValueError as error:
    pytest.skip(str(error), allow_module_level=True)

#: Rocket, dog and their like.
FEW = (
    "\U0001f680\U0001f415\U0001f408\U0001f34b\U0001f344\U0001f3e0\U0001f697\u2764\U0001f31e\U0001f333\U0001f42c"
    "\U0001f3b8\U0001f35e\U0001f34e\U0001f3c0\U0001f511\U0001f451\U0001f308\U0001f682\U0001f40d"
)
#: A keyboard and a white square: near copies at 32 pixels a side (0.110), not at 64 (0.129). Before them a watch, since
#: a font that is cut out loses its first picture.
ALIKE = "\u231a\u2328\u25fb"


@pytest.fixture(scope="module")
def emoji():
    return _read(None)


@pytest.fixture(scope="module")
def small_font(tmp_path_factory):
    """Twenty pictures of the font, as a font."""
    return _cut_out(FEW, tmp_path_factory.mktemp("font"))


def _cut_out(text, folder):
    """The pictures of these characters, as a font."""
    options = subset.Options(layout_closure=False, notdef_glyph=False)
    cutter = subset.Subsetter(options)
    cutter.populate(text=text)
    font = TTFont(FONT)
    cutter.subset(font)
    font.save(folder / "NotoColorEmoji.ttf")
    return folder / "NotoColorEmoji.ttf"


def names(images):
    return [name for captions in images.captions for name in captions]


# -- the image set


def test_emoji_have_their_unicode_names(emoji):
    found = {name: number for number, captions in enumerate(emoji.captions) for name in captions}
    for name in (
        "rocket", "dolphin", "digit one", "keycap, number sign", "flag u s", "flag g b w l s", "woman, rocket",
        "waving white flag, rainbow", "dog, safety vest", "heavy black heart, fire", "man, girl, girl",
    ):  # fmt: skip
        assert (name in found) == (name != "woman, rocket"), name  # a near copy of "man, rocket"
    assert found["flag n o"] == found["flag s j"]
    red, green = (emoji.images[found[f"large {colour} square"]].float().mean((1, 2)) for colour in ("red", "green"))
    assert red[0] > red[1] + 50
    assert green[1] > green[0] + 20


def test_names_are_plain_and_no_one_elses(emoji):
    every = names(emoji)
    assert len(every) == len(set(every))
    assert all(name == name.lower().strip() for name in every)
    assert not [name for name in every if "fitzpatrick" in name or "tag " in name or "zero width" in name]
    assert not [
        name for name in every if name.startswith(("male sign,", "female sign,", "rocket,", "rainbow,", "boy,"))
    ]


def test_there_are_a_thousand_or_more_and_no_near_copies(emoji):
    assert 1000 < len(emoji) < 3000
    assert emoji.shape == (3, 32, 32)
    distances, _ = nearest(emoji.images, emoji.images, k=51)
    assert distances[:, 0].max() == 0
    assert (distances[:, 1] / 3072).sqrt().min() > 0.12
    assert (distance_ratio(distances[:, 1:]) < 0.15).double().mean() < 0.01


def test_debian_12s_font_gives_these(emoji):
    head: Any = TTFont(FONT)["head"]
    if head.fontRevision != pytest.approx(2.042, abs=1e-3):
        pytest.skip("another version of the font")
    assert len(emoji) == 1650


def test_pictures_stand_on_white_and_are_not_cut(emoji):
    corners = emoji.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners > 200).double().mean() > 0.95
    assert emoji.images.double().flatten(1).std(1).min() > 5


def _read(root, **options):
    return read_emoji(EmojiData(root=root and str(root), **options))[0]


def test_reading_is_repeatable_and_sizes_keep_the_set(tmp_path):
    """The set is chosen at 32 pixels, whatever is asked for: of two that are alike there only, the first stays."""
    font = _cut_out(FEW + ALIKE, tmp_path)
    first, again, large = _read(tmp_path), _read(font), _read(font, convert_to="3x64x64")
    assert "keyboard" in names(first)
    assert "white medium square" not in names(first)
    assert again.fingerprint == first.fingerprint
    assert again.captions == large.captions == first.captions
    assert large.shape == (3, 64, 64)
    bilinear = _read(font, resize="bilinear")
    assert bilinear.captions == first.captions
    assert bilinear.fingerprint != first.fingerprint
    halved = torch.nn.functional.avg_pool2d(large.images.double(), 2)
    assert (halved - first.images).abs().mean() < 3


def test_newer_emoji_are_left_out_whatever_this_python_knows(emoji):
    """Unicode 15 named them; Python 3.12 knows these names, 3.11 does not."""
    assert not {"shaking face", "moose", "jellyfish", "pink heart", "wireless"} & set(names(emoji))


def test_a_run_takes_them_by_name(small_font):
    train, held_out = load_named("emoji", small_font.parent, 12, planted_images=2, planted_copies=3)
    assert (len(train), len(held_out)) == (16, 7)
    assert train.captions is not None
    assert train.captions[12:] == train.captions[:2] * 2
    assert torch.equal(train.images[12:14], train.images[:2])
    assert set(names(train)).isdisjoint(names(held_out))
    assert "dolphin" in names(train) + names(held_out)


def _without(file, folder, *tables):
    font = TTFont(file)
    for table in tables:
        del font[table]
    font.save(folder / "font.ttf")
    return folder / "font.ttf"


def test_what_is_no_such_font_is_refused(small_font, tmp_path, monkeypatch):
    mend = "apt-get install fonts-noto-color-emoji, or set data.root to such a font or its folder"
    plain = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    text = tmp_path / "text.ttf"
    text.write_text("no font")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.ttf").touch()
    for root, message in {
        tmp_path / "empty": f"{tmp_path / 'empty'} holds no NotoColorEmoji.ttf",
        plain: f"{plain} has no colour bitmaps (tables CBDT and CBLC)",
        text: f"{text} cannot be read as a font, ",
        tmp_path / "empty.ttf": f"{tmp_path / 'empty.ttf'} cannot be read as a font, ",
        _without(small_font, tmp_path, "cmap"): "font.ttf has no emoji with colour bitmaps: ",
    }.items():
        with pytest.raises(ValueError, match="font") as error:
            _read(root)
        assert message in str(error.value)
        assert str(error.value).endswith(mend)
        assert "\n" not in str(error.value)
    monkeypatch.setattr("iet_agc.data.datasets.emoji._PLACES", (tmp_path / "empty",))
    with pytest.raises(ValueError, match=r"empty holds no NotoColorEmoji.ttf: apt-get install"):
        _read(None)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_font_that_is_cut_short_is_refused(small_font, tmp_path, share):
    content = small_font.read_bytes()
    cut = tmp_path / "cut.ttf"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.ttf .*: apt-get install"):
        _read(cut)


# -- the small pipeline


@pytest.fixture(scope="module")
def data(small_font):
    changes = {"data.root": str(small_font), "data.num_train": "14", "data.planted_images": "2"}
    return override(load_preset("emoji-text-default"), changes | {"data.planted_copies": "3"}).data


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """A step of the VAE sees 8 images, not 32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "_BATCH", 8)
        yield


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "pipeline"
    return out, build_pipeline(data, out, steps=12)


def test_it_is_a_pipeline_for_everyone(built):
    out, told = built
    stock: Any = StableDiffusionPipeline.from_pretrained(out)
    stock.set_progress_bar_config(disable=True)
    images = stock("rocket", num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
    assert images.shape == (1, 32, 32, 3)
    ours = load_text_pipeline(out)
    assert ours.image_shape == (3, 32, 32)
    assert sum(weight.numel() for weight in ours.denoiser.parameters()) < 6e6
    built = json.loads((out / "built.json").read_text())
    assert {name: value for name, value in built.items() if name != "seal"} == told
    assert {"images", "captions", "steps", "seed", "train_db", "held_out_db"} == set(told)


def test_latents_deviate_by_one(built, data):
    pipeline, train = load_text_pipeline(built[0]), load_dataset(data)[0]
    moments = pipeline.moments(train.images[:14])
    noise = torch.randn(moments[:, 0].shape, generator=torch.Generator().manual_seed(0))
    config: Any = pipeline.vae.config
    latents = (moments[:, 0] + moments[:, 1] * noise) * config.scaling_factor
    assert latents.std() == pytest.approx(1, abs=0.02)


def test_every_word_of_the_captions_is_a_token_and_any_text_has_some(built, data):
    pipeline, train = load_text_pipeline(built[0]), load_dataset(data)[0]
    for name in names(train):
        assert pipeline.parts["tokenizer"].tokenize(name) == [f"{word}</w>" for word in name.replace(",", " ,").split()]
    assert len({tuple(row.tolist()) for row in pipeline.tokens(sorted(set(names(train))))}) == len(set(names(train)))
    strange = pipeline.parts["tokenizer"].tokenize("Zebra über 猫 42!")
    assert "".join(strange).startswith("zebra</w>")
    assert not any(part.startswith("<|") for part in strange)


def test_words_are_merged_by_how_often_they_occur():
    from collections import Counter

    merges = bootstrap._merges(Counter({"cat": 2, "at": 1, "cab": 2}))
    # at</w> and ca stand three and four times
    assert merges == [("c", "a"), ("ca", "b</w>"), ("ca", "t</w>"), ("a", "t</w>")]


def test_building_is_repeatable_and_by_seed(data, tmp_path):
    def files(out):
        return {
            file.relative_to(out): file.read_bytes() for file in sorted(out.rglob("*")) if file.suffix == ".safetensors"
        }

    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        build_pipeline(data, tmp_path / name, steps=2, seed=seed)
    first, again, other = (files(tmp_path / name) for name in ("first", "again", "other"))
    assert len(first) == 3
    assert first == again
    assert all(other[name] != content for name, content in first.items())


def test_the_vae_learns_from_each_training_image_once(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(bootstrap, "_train_vae", lambda vae, images, steps, seed: seen.append(images))
    build_pipeline(data, tmp_path / "out", steps=1)
    assert torch.equal(seen[0], load_dataset(data)[0].images[:14])


def test_more_steps_are_better(built, data, tmp_path):
    assert built[1]["train_db"] > build_pipeline(data, tmp_path / "out", steps=1)["train_db"] + 0.2


def test_decibels_by_hand():
    class Off:
        """Reconstructs 0 as 0.2, of a range of 2."""

        def encode(self, batch):
            return type("Found", (), {"latent_dist": type("Moments", (), {"mean": batch + 0.2})})

        def decode(self, latents):
            return type("Decoded", (), {"sample": latents})

    images = torch.full((40, 3, 8, 8), 127, dtype=torch.uint8)
    assert decibels(Off(), images) == pytest.approx(20, abs=1e-4)
    assert decibels(Off(), images[:0]) is None


def test_what_is_there_is_kept_or_refused(built, data, tmp_path):
    out, told = built
    before = (out / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    assert build_pipeline(data, out, steps=12) == told
    assert (out / "vae" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds another pipeline \(steps is 12, not 13\): choose another output"):
        build_pipeline(data, out, steps=13, seed=2)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "novel.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty and holds no pipeline"):
        build_pipeline(data, tmp_path / "theirs", steps=1)
    assert [file.name for file in (tmp_path / "theirs").iterdir()] == ["novel.txt"]
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "built.json").write_text("[")
    with pytest.raises(ValueError, match=r"built\.json is damaged, .*: remove"):
        build_pipeline(data, tmp_path / "damaged", steps=1)


def test_without_transformers_nothing_is_built(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs the package transformers: pip install 'iet-agc\[text\]'"):
        build_pipeline(data, tmp_path / "out", steps=1)
    assert not (tmp_path / "out").exists()


def test_a_kill_leaves_nothing_half_written(data, tmp_path, monkeypatch):
    def broken(self, folder):
        folder.mkdir()
        (folder / "model_index.json").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusionPipeline, "save_pretrained", broken)
        with pytest.raises(KeyboardInterrupt):
            build_pipeline(data, tmp_path / "out", steps=1)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == [".lock"]
    with only_one(tmp_path / "out"), pytest.raises(ValueError, match="another process is at work"):
        build_pipeline(data, tmp_path / "out", steps=1)
    build_pipeline(data, tmp_path / "out", steps=1)
    assert not (tmp_path / "out" / ".lock").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_bad_input_of_the_verb(capsys, small_font, tmp_path):
    out = ["--out", tmp_path / "out"]
    for arguments, message in {
        ("digits-default",): "digits has no captions",
        ("emoji-text-default", "--data.convert-to", "3x36x36"): "multiple of 8 pixels: set data.convert_to",
        ("emoji-text-default", "--data.convert-to", "1x32x32"): "emoji has images of 1 x 32 x 32",
        ("emoji-text-default", "--train.seed", "1"): "setting 'train.seed' has no effect on a pipeline",
        ("emoji-text-default", "--steps", "0"): "--steps 0 --seed 0: give 1 step or more",
        ("emoji-text-defalt",): "unknown preset 'emoji-text-defalt'; did you mean 'emoji-text-default'?",
    }.items():
        root = [] if arguments[0] == "digits-default" else ["--data.root", small_font, "--data.num-train", "14"]
        root += ["--data.planted-images", "2"] if root else []
        status, printed, told = call(capsys, "pipeline", *arguments, *out, *root)
        assert (status, printed) == (2, "")
        assert message in told
        assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# -- the presets

TINY = [
    *("--data.num-train", "14", "--data.planted-images", "2", "--data.planted-copies", "3", "--method.rounds", "1"),
    *("--train.steps", "2", "--train.batch-size", "4", "--run.preview-images", "2", "--run.device", "cpu"),
    *("--sample.num", "3", "--sample.steps", "2"),
]


def test_the_presets_go_their_whole_way(capsys, built, small_font, tmp_path):
    for name, members in (("default", 1), ("iet-agc", 2)):
        run = tmp_path / name
        status, text, _ = call(
            capsys, "train", f"emoji-text-{name}", "--out", run, "--init", built[0], "--data.root", small_font, *TINY
        )
        assert status == 0
        assert json.loads(text)["steps"] == 2 * members
        assert call(capsys, "sample", run, "--out", run / "samples")[0] == 0
        samples = load_samples(run / "samples")[0]
        assert (len(samples), samples.shape) == (3, (3, 32, 32))


def test_the_example_tells_copies_by_what_samples_were_told(capsys, built, small_font, tmp_path):
    example = load(EXAMPLES / "emoji.py")
    run, file = tmp_path / "default", tmp_path / "prompts.txt"
    start = ["train", "emoji-text-default", "--out", run, "--init", built[0], "--data.root", small_font, *TINY]
    assert call(capsys, *start)[0] == 0
    example.write_prompts(run, file)
    prompts, (train, held_out) = file.read_text().splitlines(), example.image_sets(run)
    assert (len(prompts), len(train), len(held_out)) == (6, 14, 5)
    assert prompts[::3] == names(train)[:2]
    assert prompts[1::3] == names(train)[2:4]
    assert prompts[2::3] == names(held_out)[:2]
    assert call(capsys, "sample", run, "--num", 12, "--prompts", file, "--out", run / "samples")[0] == 0
    paint(run / "samples", prompts, train)
    options = ["--train", run, "--held-out", run, "--extractor", "pixels", "--out", run / "audit"]
    assert call(capsys, "audit", "--samples", run / "samples", *options)[0] == 0
    assert read_record(run / "audit" / "audit.json").cut == 0.15  # of five images there is no 1 %
    found = example.table([run], "pixels")[str(run)]
    assert [found[kind]["copied"]["count"] for kind in example.KINDS] == [4, 0, 0]
    assert found["planted"]["alignment"]["top1"]["share"] == 1
    assert found["other"]["alignment"]["top1"]["share"] <= 0.5  # two prompts, told of by one picture
    assert found["planted"]["copied"] == clustered_share([True] * 4, prompts[::3] * 2).model_dump(mode="json")
    example.figure(tmp_path / "figure.png", [run], columns=2)
    assert Image.open(tmp_path / "figure.png").width > 150


def test_the_example_compares_methods_over_seeds():
    example = load(EXAMPLES / "emoji.py")
    prompts = [place % 24 for place in range(144)]

    def kinds(copied, aligned):
        entry = clustered_share([place < copied for place in range(144)], prompts).model_dump()
        return {key: {"copied": entry, "alignment": {"percentile": {"mean": aligned}}} for key in example.KINDS}

    runs = {f"runs/a-{s}": kinds(140 + s, 0.9 + s / 100) for s in range(3)}
    runs |= {f"runs/b-{s}": kinds(0, 0.8) for s in range(3)} | {"runs/early-0": kinds(0, 0.7)}
    found = example.over_seeds(runs)
    assert list(found["methods"]) == ["a", "b"]
    none = found["methods"]["b"]["planted"]["copied"]
    assert none == {"counts": [0] * 3, "share": 0, "ci95": clustered_share([False] * 144, prompts).ci95}
    apart = found["differences"]["b minus a"]["planted"]
    assert apart["copied"]["difference"] == pytest.approx(-141 / 144)
    assert -1 <= apart["copied"]["ci95"][0] < -0.97 < apart["copied"]["ci95"][1] < -0.7
    assert apart["alignment"]["values"] == pytest.approx([-0.1, -0.11, -0.12])


def paint(folder, prompts, train):
    """Put in the place of the samples: of planted captions their emoji, of others the first planted one's negative."""
    of = dict(zip(names(train), train.images, strict=False))
    with np.load(folder / "samples.npz") as content:
        seeds = content["seeds"]
    images = [of[prompts[seed % 6]] if seed % 3 == 0 else 255 - of[prompts[0]] for seed in seeds]
    np.savez(folder / "samples.npz", images=torch.stack(images).numpy(), seeds=seeds)
    content = read_object(folder / "samples.json")
    write_sealed(folder / "samples.json", content, content.pop("seal")["files"])


def test_the_presets_see_as_many_images():
    runs = [load_preset(f"emoji-text-{method}") for method in ("default", "iet-agc", "agc")]
    assert len({run.total_steps * run.train.batch_size for run in runs}) == 1
    assert len({run.data for run in runs}) == 1
