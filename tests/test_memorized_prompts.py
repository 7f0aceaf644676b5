"""Memorized prompts: the magnitude by stock diffusers, how well it tells, and the folder of `iet-agc detect`."""

import json
import shutil
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from sklearn.metrics import roc_curve

from iet_agc.auditing import memorized_prompts
from iet_agc.auditing.memorized_prompts import detect_prompts, planted_prompts, prompt_magnitudes, separation
from iet_agc.metrics.intervals import auc_interval
from iet_agc.text_to_image.pipeline import load_text_pipeline
from tests.miniature import captioned, save_captioned, save_miniature
from tests.processes import in_processes
from tests.tiny_text_runs import TINY, call, stock

CPU = torch.device("cpu")
PROMPTS = ["a red dog", "a bird", "a blue house", "a cat with a hat", "a green bird"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_miniature(tmp_path_factory.mktemp("pipelines") / "epsilon")


@pytest.fixture(scope="module")
def pipeline(folder):
    return load_text_pipeline(folder)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run on 12 images, the first two of which stand three times."""
    from iet_agc import cli

    place = tmp_path_factory.mktemp("runs")
    root = save_captioned(place / "laion", captioned())
    words = ["train", "sd21-laion10k-default", "--out", place / "run", "--init", folder, "--data.root", root, *TINY]
    words += ["--data.planted-images", "2", "--data.planted-copies", "3"]
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    assert stop.value.code == 0
    return place / "run"


# -- the magnitude


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_magnitude_is_that_of_stock_diffusers(tmp_path, prediction, guidance):
    """Stock Stable Diffusion draws; at each latent on its way the noise is worked out twice, from what is predicted."""
    folder = save_miniature(tmp_path / "p", prediction=prediction)
    pipe, visited = stock(folder), []

    def note(module, arguments, named):
        visited.append((arguments[0][:1].clone(), int(arguments[1])))

    hook = pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
    pipe(
        "a red dog", num_inference_steps=4, guidance_scale=guidance, generator=torch.Generator().manual_seed(5),
        output_type="latent",
    )  # fmt: skip
    hook.remove()
    texts = [pipe.encode_prompt(text, CPU, 1, False)[0] for text in ("", "a red dog")]
    expected = []
    for latents, timestep in visited:
        abar = pipe.scheduler.alphas_cumprod[timestep]
        with torch.no_grad():
            noises = [pipe.unet(latents, timestep, encoder_hidden_states=text).sample for text in texts]
        if prediction == "v_prediction":
            noises = [abar.sqrt() * v + (1 - abar).sqrt() * latents for v in noises]
        expected.append((noises[1] - noises[0]).square().sum().sqrt().item())
    found = prompt_magnitudes(load_text_pipeline(folder), [5], ["a red dog"], 4, guidance)
    assert found.shape == (1, 4)
    torch.testing.assert_close(found[0], torch.tensor(expected).double(), rtol=1e-4, atol=1e-6)
    assert min(expected) > 1e-3


def test_a_magnitude_depends_on_its_seed_and_prompt_only(pipeline):
    seeds = [*range(40), 3]
    prompts = [PROMPTS[seed % 5] for seed in seeds]
    whole = prompt_magnitudes(pipeline, seeds, prompts, 2)
    assert torch.equal(whole[40], whole[3])
    for place in (7, 33):
        assert torch.equal(prompt_magnitudes(pipeline, [seeds[place]], [prompts[place]], 2)[0], whole[place])
    assert len({*whole[:, 0].tolist()}) == 40


def test_the_first_steps_are_the_first_of_all(pipeline):
    whole = prompt_magnitudes(pipeline, [0, 1], PROMPTS[:2], 5)
    shares = []
    first = prompt_magnitudes(pipeline, [0, 1], PROMPTS[:2], 5, first_steps=2, on_images=shares.append)
    assert torch.equal(first, whole[:, :2])
    assert shares == [1, 1]
    assert torch.equal(prompt_magnitudes(pipeline, [0, 1], PROMPTS[:2], 5), whole)  # nothing stays cut off


def test_no_text_has_no_magnitude_and_guidance_leads_elsewhere(pipeline):
    assert prompt_magnitudes(pipeline, [0], [""], 3).count_nonzero() == 0
    plain, guided = (prompt_magnitudes(pipeline, [0], PROMPTS[:1], 3, guidance)[0] for guidance in (1.0, 7.5))
    torch.testing.assert_close(plain[0], guided[0])
    assert not torch.allclose(plain[1:], guided[1:], rtol=1e-3)


def test_bfloat16_measures_nearly_the_same(pipeline):
    full, half = (prompt_magnitudes(pipeline, [0], PROMPTS[:1], 2, precision=name) for name in ("float32", "bfloat16"))
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, rtol=0.1, atol=0)


# -- how well it tells


def test_the_area_is_the_share_of_pairs_in_order():
    """Memorized 3 and 5, others 1, 3, 4: of six pairs, 3 > 1, 5 > 1, 5 > 3, 5 > 4, and 3 = 3 counts half."""
    found = separation([3, 1, 5, 3, 4], [True, False, True, False, False])
    assert found.auc == pytest.approx(4.5 / 6)
    assert (found.num_memorized, found.num_others) == (2, 3)
    assert (found.tpr_at_1_percent_fpr.cut, found.tpr_at_1_percent_fpr.share) == (4, 0.5)


@pytest.mark.parametrize(("others", "allowed"), [(20, 0), (100, 0), (101, 1), (500, 4)])
def test_found_prompts_are_those_of_the_roc_curve_below_one_percent(others, allowed):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(1.5, 1, 60), rng.normal(0, 1, others)])
    marks = np.arange(len(values)) < 60
    found = separation(values.tolist(), marks.tolist()).tpr_at_1_percent_fpr
    false, true, _ = roc_curve(marks, values, drop_intermediate=False)
    assert found.share == true[false < 0.01][-1]
    assert (values[60:] > found.cut).sum() == allowed


@pytest.mark.parametrize(("auc", "count", "others"), [(0.9, 10, 20), (0.5, 5, 5), (1.0, 20, 20), (0.0, 3, 8)])
def test_the_interval_solves_newcombes_equation(auc, count, others):
    low, high = auc_interval(auc, count, others)
    areas = np.linspace(0, 1, 100_001)[1:-1]
    both = (count + others) / 2 - 1
    variance = areas * (1 - areas) * (1 + both * ((1 - areas) / (2 - areas) + areas / (1 + areas))) / count / others
    inside = areas[(areas - auc) ** 2 <= 1.959964**2 * variance]
    assert (low, high) == pytest.approx((inside[0], inside[-1]), abs=2e-5)
    assert 0 <= low <= auc <= high <= 1
    assert high - low > 0.05


def test_the_interval_covers(monkeypatch):
    """Normal scores, whose area is known: 0.95, of 20 prompts each."""
    monkeypatch.setattr("sklearn.metrics.roc_auc_score", lambda marks, x: (x[:20, None] > x[20:]).mean())
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        values = np.concatenate([rng.normal(1.6448536 * 2**0.5, 1, 20), rng.normal(0, 1, 20)])
        low, high = separation(values.tolist(), [True] * 20 + [False] * 20).auc_ci95
        covered += low <= 0.95 <= high
    assert 0.93 <= covered / 1000 <= 0.99


def test_one_kind_tells_nothing():
    with pytest.raises(ValueError, match="2 prompts are memorized and 0 are not: give at least one of each"):
        separation([1, 2], [True, True])


# -- the folder


def content(out):
    return json.loads((out / "detect.json").read_text())


def test_a_detection_is_sorted_and_whole(folder, pipeline, tmp_path):
    given = {"steps": 2, "guidance": 3}
    summary = detect_prompts(folder, tmp_path / "d", [*PROMPTS, PROMPTS[0]], PROMPTS[:2], 3, given=given)
    found = content(tmp_path / "d")
    rows = {row["prompt"]: row for row in found["prompts"]}
    assert {*rows} == {*PROMPTS}
    for prompt, row in rows.items():
        expected = prompt_magnitudes(pipeline, range(3), [prompt] * 3, 2, 3).mean(1)
        assert row["by_seed"] == expected.tolist()
        assert (row["magnitude"], row["sd"]) == pytest.approx((expected.mean().item(), expected.std().item()))
        assert row["memorized"] == (prompt in PROMPTS[:2])
    values = [row["magnitude"] for row in found["prompts"]]
    assert values == sorted(values, reverse=True)
    expected = separation(values, [row["memorized"] for row in found["prompts"]])
    assert found["separation"] == expected.model_dump(mode="json")
    assert summary["separation"] == found["separation"]
    highest: Any = summary["highest"]
    assert [row["prompt"] for row in highest] == [row["prompt"] for row in found["prompts"]]
    assert {file.name for file in (tmp_path / "d").iterdir()} - {".lock"} == {"detect.json", "detect.png"}
    assert (tmp_path / "d" / "detect.png").read_bytes().startswith(b"\x89PNG")


def test_a_prompt_alone_has_the_same_numbers(folder, tmp_path):
    given = {"steps": 2}
    detect_prompts(folder, tmp_path / "all", PROMPTS, given=given, num_seeds=1)
    detect_prompts(folder, tmp_path / "one", PROMPTS[2:3], given=given, num_seeds=1)
    (alone,) = content(tmp_path / "one")["prompts"]
    assert alone in content(tmp_path / "all")["prompts"]
    assert alone["sd"] is None
    assert content(tmp_path / "all")["separation"] is None
    assert not (tmp_path / "all" / "detect.png").exists()


def test_a_killed_detection_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memorized_prompts, "_PART", 1)
    monkeypatch.setattr(memorized_prompts, "rows_at_a_time", lambda shape, device: 2)
    calls, honest = [], prompt_magnitudes
    arguments: dict[str, Any] = {"prompts": PROMPTS, "memorized": PROMPTS[:2], "num_seeds": 2, "given": {"steps": 2}}
    longer: dict[str, Any] = {"given": {"steps": 3}}

    def dies(*some):
        calls.append(some)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(*some)

    monkeypatch.setattr(memorized_prompts, "prompt_magnitudes", dies)
    with pytest.raises(KeyboardInterrupt):
        detect_prompts(folder, tmp_path / "a", **arguments)
    assert not (tmp_path / "a" / "detect.json").exists()
    with pytest.raises(ValueError, match=r"holds another detection \(steps is 2, not 3\): choose another output"):
        detect_prompts(folder, tmp_path / "a", **arguments | longer)
    detect_prompts(folder, tmp_path / "a", **arguments)
    assert len(calls) == 4 + 2
    detect_prompts(folder, tmp_path / "b", **arguments)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert (tmp_path / "a" / "detect.png").read_bytes() == (tmp_path / "b" / "detect.png").read_bytes()
    calls.clear()
    summaries = [detect_prompts(folder, tmp_path / place, **arguments) for place in "ab"]
    assert calls == []
    assert summaries[0]["highest"] == summaries[1]["highest"]
    others: list[dict[str, Any]] = [
        {"num_seeds": 3},
        {"memorized": PROMPTS[1:2]},
        {"memorized": None},
        {"first_steps": 1},
    ]
    for change in others:
        with pytest.raises(ValueError, match="holds another detection"):
            detect_prompts(folder, tmp_path / "a", **arguments | change)


def test_processes_share_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(memorized_prompts, "_PART", 1)
    monkeypatch.setattr(memorized_prompts, "rows_at_a_time", lambda shape, device: 2)
    arguments: dict[str, Any] = {"prompts": PROMPTS, "num_seeds": 2, "given": {"steps": 2}}
    detect_prompts(folder, tmp_path / "one", **arguments)

    def share():
        memorized_prompts.distributed.processes = lambda device: nullcontext()  # in a child: they are joined already
        detect_prompts(folder, tmp_path / "two", **arguments)

    in_processes(2, share)
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_a_damaged_detection_is_named(folder, tmp_path):
    (tmp_path / "d").mkdir()
    for text in ("{", "[]"):
        (tmp_path / "d" / "detect.json").write_text(text)
        with pytest.raises(ValueError, match=r"detect\.json is damaged, .* remove .*/d, or choose another output"):
            detect_prompts(folder, tmp_path / "d", PROMPTS)


# -- the command line


def test_planted_captions_against_as_many_others(capsys, run, tmp_path):
    captions = [texts[0] for texts in json.loads((run / "captions.json").read_text())]
    assert len(captions) == 12 + 2 * 2
    prompts, planted = planted_prompts(run)
    assert planted == captions[:2] == captions[12:14]
    assert prompts == captions[:4]
    words = ("detect", run, "--planted", "--seeds", "2", "--weights", "ema", "--out", tmp_path / "d")
    status, out, _ = call(capsys, *words)
    assert status == 0
    summary = json.loads(out)
    assert (summary["num_prompts"], summary["steps"], summary["guidance"]) == (4, 2, 7.5)  # the run's
    assert (summary["separation"]["num_memorized"], summary["separation"]["num_others"]) == (2, 2)
    found = content(tmp_path / "d")
    assert {row["prompt"] for row in found["prompts"] if row["memorized"]} == {*planted}
    assert found["pipeline"].endswith("ema")


def test_of_images_given_from_python_it_is_not_known_what_was_planted(run, monkeypatch):
    monkeypatch.setattr(
        "iet_agc.auditing.memorized_prompts.given_images", lambda run: "images given from Python (a, 16)"
    )
    with pytest.raises(
        ValueError, match=r"trained on images given from Python .* not known what was planted: give pro"
    ):
        planted_prompts(run)


def test_shared_captions_of_planted_images_stand_once(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    captions = json.loads((other / "captions.json").read_text())
    captions[1] = captions[3] = captions[5] = captions[0]
    (other / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(ValueError, match=r"captions.json is not as the run left it: run the same 'iet-agc train'"):
        planted_prompts(other)
    (other / "identity.json").unlink()  # as of a run of which nothing is known
    prompts, planted = planted_prompts(other)
    assert planted == [captions[0][0]]
    assert prompts == [captions[0][0], captions[2][0]]
    (other / "captions.json").write_text(json.dumps([captions[0]] * len(captions)))
    with pytest.raises(ValueError, match="has no captions but those of its planted images"):
        planted_prompts(other)
    for text in ("{", "[[]]", "[1]", "[[1]]"):
        (other / "captions.json").write_text(text)
        with pytest.raises(ValueError, match=r"captions\.json .*: give prompts, and which of them are memorized"):
            planted_prompts(other)


def test_prompts_of_a_file(capsys, folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "memorized.txt").write_text(PROMPTS[3])
    words = ["detect", folder, "--prompts", tmp_path / "prompts.txt", "--steps", "3", "--first-steps", "1"]
    words += ["--guidance", "2", "--device", "cpu", "--seeds", "1"]
    status, out, _ = call(capsys, *words, "--out", tmp_path / "a")
    assert (status, json.loads(out)["separation"]) == (0, None)
    status, out, _ = call(capsys, *words, "--memorized", tmp_path / "memorized.txt", "--out", tmp_path / "b")
    summary = json.loads(out)
    assert (status, summary["separation"]["num_memorized"], summary["first_steps"]) == (0, 1, 1)
    status, out, _ = call(capsys, "detect", folder, "--prompt", PROMPTS[0], *words[4:], "--out", tmp_path / "c")
    assert (status, len(json.loads(out)["highest"])) == (0, 1)


def test_bad_inputs_get_one_line_and_leave_nothing(capsys, folder, run, tmp_path):
    from iet_agc.diffusion.process import make_scheduler
    from iet_agc.diffusion.unet import build_unet, save_pipeline

    save_pipeline(build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4), make_scheduler(), tmp_path / "pixels")
    (tmp_path / "empty folder").mkdir()
    unplanted, unfinished, pixels = (shutil.copytree(run, tmp_path / name) for name in ("plain", "half", "pixel run"))
    (unfinished / "captions.json").unlink()
    shutil.rmtree(unfinished / "raw")
    for place, section, changes in ((unplanted, "data", {"planted_images": 0}), (pixels, "model", {"kind": "image"})):
        config = json.loads((place / "config.json").read_text())
        config[section] |= changes
        (place / "config.json").write_text(json.dumps(config))
    texts = {
        "p": "a dog\na cat", "all": "a cat\na dog", "other": "a bird", "none": "", "gap": "a dog\n\na cat",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "latin.txt").write_bytes("ein Bär".encode("latin-1"))
    file = {name: tmp_path / f"{name}.txt" for name in (*texts, "latin", "nowhere")}
    cases = [
        ([tmp_path / "nowhere", "--prompt", "a"], "nowhere is not a diffusers pipeline: it has no model_index.json"),
        ([tmp_path / "empty folder", "--prompt", "a"], "is not a diffusers pipeline: it has no model_index.json"),
        (
            [tmp_path / "pixels", "--prompt", "a"],
            "pixels is no text-to-image pipeline of a known kind, its U-Net is a UNet2DModel",
        ),
        ([unfinished, "--prompt", "a"], "is not finished: run the same 'iet-agc train' again to finish it"),
        ([unfinished, "--planted"], "is not finished: run the same 'iet-agc train' again to finish it"),
        ([unplanted, "--planted"], "has no planted images: give prompts, and which of them are memorized"),
        ([pixels, "--planted"], "is no text-to-image run: it has no prompts to detect"),
        ([folder, "--planted"], "is not a run: it has no config.json"),
        ([run], "there is no prompt to look at: give some, or take those planted in a run (--prompts)"),
        ([folder, "--prompt", " "], "a prompt is empty: say what to draw"),
        ([folder, "--prompt", "a " * 40], "has 42 tokens, the text encoder takes 16: shorten it"),
        ([folder, "--prompts", file["none"]], "none.txt holds no prompts: write one per line"),
        ([folder, "--prompts", file["gap"]], "gap.txt has no prompt in line 2"),
        ([folder, "--prompts", file["latin"]], "latin.txt is not UTF-8, at byte 5"),
        ([folder, "--prompts", file["nowhere"]], "nowhere.txt is not there"),
        ([folder, "--prompt", "a", "--prompts", file["p"]], "not allowed with argument"),
        ([run, "--planted", "--memorized", file["p"]], "give --prompts FILE as well"),
        ([folder, "--prompts", file["p"], "--memorized", file["other"]], "'a bird' is not among the prompts"),
        ([folder, "--prompts", file["p"], "--memorized", file["all"]], "all prompts are said to be memorized"),
        ([folder, "--prompts", file["p"], "--memorized", file["none"]], "none.txt holds no prompts"),
        ([folder, "--prompt", "a", "--seeds", "0"], "seeds 0 is not between 1 and 4294967296 (--seeds)"),
        (
            [folder, "--prompt", "a", "--steps", "9", "--first-steps", "10"],
            "first_steps 10 is not between 1 and 9 (--first-steps)",
        ),
        ([folder, "--prompt", "a", "--first-steps", "0"], "first_steps 0 is not between 1 and 50 (--first-steps)"),
        ([folder, "--prompt", "a", "--steps", "0"], "setting sample.steps: input should be greater than or equal to 1"),
        ([folder, "--prompt", "a", "--guidance", "-1"], "setting sample.guidance: input should be greater than or"),
        ([folder, "--prompt", "a\udcff"], "prompt 'a\\udcff' is not UTF-8: write it so"),
    ]
    for words, message in cases:
        status, out, line = call(capsys, "detect", *words, "--out", tmp_path / "d")
        assert (status, out, message in line) == (2, "", True), line
        assert not (tmp_path / "d").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    status, _, line = call(capsys, "detect", folder, "--prompt", "a", "--out", tmp_path / "full")
    assert (status, "is not empty and holds no detection: choose another output" in line) == (2, True)
