"""Averages of saved models: equal to `average_states` to the bit, LoRAs exact or by factors, and what is refused."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import iet_agc
from iet_agc.method.averaging import average_states
from iet_agc.runtime import tensor_files
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.tensor_files import open_tensors, write_tensors
from iet_agc.training import average
from iet_agc.training.average import average_models
from iet_agc.training.saved_model import find_model
from tests.commands import call
from tests.miniature import save_miniature

WEIGHTS = [3.0, 1.0, 2.0]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def states(count: int = 3) -> list[dict[str, Tensor]]:
    """Of all that a checkpoint may hold: halves, doubles, whole numbers, nothing at all, a single number."""
    kinds = {"half": torch.float16, "brain": torch.bfloat16, "single": torch.float32, "double": torch.float64}
    return [
        {name: numbers(3, 5, seed=10 * k + at, dtype=kind) for at, (name, kind) in enumerate(kinds.items())}
        | {"steps": torch.tensor(7), "mask": torch.tensor([True, False, True]), "none": torch.zeros(0, 4)}
        | {"scale": numbers(seed=100 + k), "eight": numbers(4, seed=200 + k, dtype=torch.float8_e4m3fn)}
        for k in range(count)
    ]


def saved(folder: Path, some: Sequence[Mapping[str, Tensor]], **metadata: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    places = [folder / f"member-{k}.safetensors" for k in range(len(some))]
    for place, state in zip(places, some, strict=True):
        save_file(dict(state), place, {"format": "pt", **metadata})
    return places


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].double(), tensor.double()), name


# The mean ---------------------------------------------------------------------------------------------------


def test_a_file_is_the_mean_by_average_states_to_the_bit(tmp_path: Path) -> None:
    given = states()
    told = average_models(saved(tmp_path / "m", given), out := tmp_path / "mean.safetensors", WEIGHTS)
    assert_equal(load_file(out), average_states(given, WEIGHTS))
    assert (told["kind"], told["tensors"], told["lora"]) == ("file", len(given[0]), None)


def test_by_pencil(tmp_path: Path) -> None:
    places = saved(tmp_path / "m", [{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, -2.0])}])
    average_models(places, tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors")["w"].tolist() == [2.0, 0.0]
    average_models(places, tmp_path / "b.safetensors", [1, 3])
    assert load_file(tmp_path / "b.safetensors")["w"].tolist() == [3.0, -1.0]


def test_one_tensor_of_each_model_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = tensor_files.TensorFile.read
    monkeypatch.setattr(tensor_files.TensorFile, "read", lambda file, name: reads.append(name) or read(file, name))
    places = saved(tmp_path / "m", [{f"w{n}": numbers(2, seed=n) for n in range(5)} for _ in range(3)])
    places[0].write_bytes(b"")  # unlike the others, which are equal
    save_file({f"w{n}": numbers(2, seed=9 + n) for n in range(5)}, places[0], {"format": "pt"})
    average_models(places, tmp_path / "mean.safetensors")
    assert reads == [f"w{n}" for n in range(5) for _ in range(3)]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three that share all but their U-Nets."""
    folder = tmp_path_factory.mktemp("pipelines")
    places = [save_miniature(folder / f"member-{seed}", seed=seed) for seed in range(3)]
    for place in places[1:]:
        shutil.copytree(places[0] / "vae", place / "vae", dirs_exist_ok=True)
        shutil.copytree(places[0] / "text_encoder", place / "text_encoder", dirs_exist_ok=True)
    return places


def unet(place: Path) -> dict[str, Tensor]:
    return load_file(place / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_pipeline_is_averaged_part_by_part_and_loads(pipelines: list[Path], tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    told = average_models(pipelines, out := tmp_path / "mean", WEIGHTS)
    assert_equal(unet(out), average_states(map(unet, pipelines), WEIGHTS))
    for name in ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "tokenizer/vocab.json"):
        if (pipelines[0] / name).exists():
            assert (out / name).read_bytes() == (pipelines[0] / name).read_bytes()
    assert told["tensors"] == len(unet(out))
    assert StableDiffusionPipeline.from_pretrained(out).unet is not None


def test_what_else_lies_in_a_trainers_folder_is_not_looked_at(pipelines: list[Path], tmp_path: Path) -> None:
    places = [shutil.copytree(place, tmp_path / place.name) for place in pipelines]
    (places[0] / "README.md").write_text("trained by me")
    (places[1] / "checkpoint-100").mkdir()
    (places[1] / "checkpoint-100" / "optimizer.bin").write_bytes(b"")
    average_models(places, tmp_path / "mean", WEIGHTS)
    assert not (tmp_path / "mean" / "README.md").exists()


def test_a_models_folder_in_several_files_is_averaged_file_by_file(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    places = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, layers_per_block=1,
        )  # fmt: skip
        places.append(tmp_path / f"member-{seed}")
        model.save_pretrained(places[-1], max_shard_size="20KB")
    assert len([*places[0].glob("*.safetensors")]) > 1
    average_models(places, out := tmp_path / "mean")
    first, second, mean = (UNet2DModel.from_pretrained(place).state_dict() for place in (*places, out))  # pyright: ignore[reportAttributeAccessIssue]
    assert_equal(mean, average_states([first, second], [1, 1]))
    (places[1] / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"only .*member-0 has .*index\.json; save both in one way"):
        average_models(places, tmp_path / "other")


# LoRA -------------------------------------------------------------------------------------------------------


def loras(count: int, rank: int, alpha: float | None, style: str = "peft", seed: int = 0) -> list[dict[str, Tensor]]:
    down, up = {
        "peft": ("lora_A.weight", "lora_B.weight"),
        "kohya": ("lora_down.weight", "lora_up.weight"),
        "diffusers": ("lora.down.weight", "lora.up.weight"),
    }[style]
    return [
        {f"unet.to_q.{down}": numbers(rank, 6, seed=seed + 10 * k), f"unet.to_q.{up}": numbers(5, rank, seed=k + 1)}
        | {
            f"unet.conv.{down}": numbers(rank, 3, 3, 3, seed=k + 7),
            f"unet.conv.{up}": numbers(4, rank, 1, 1, seed=k + 8),
        }
        | ({} if alpha is None else {f"unet.{name}.alpha": torch.tensor(alpha) for name in ("to_q", "conv")})
        for k in range(count)
    ]


def product(state: Mapping[str, Tensor], name: str, scale: float | None = None) -> Tensor:
    """What a LoRA adds to a weight, by the rule of those that read it: alpha is the rank where nothing is said."""
    (down,) = (tensor.double() for key, tensor in state.items() if name in key and ("A." in key or "down" in key))
    (up,) = (tensor.double() for key, tensor in state.items() if name in key and ("B." in key or "up" in key))
    alpha = state.get(f"unet.{name}.alpha", torch.tensor(float(len(down)))).double()
    return (alpha / len(down) if scale is None else scale) * up.flatten(1) @ down.flatten(1)


@pytest.mark.parametrize("style", ["peft", "kohya", "diffusers"])
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_the_exact_mean_is_that_of_the_products_and_factors_is_not(tmp_path: Path, style: str, alpha: Any) -> None:
    given = loras(3, 2, alpha, style)
    places = saved(tmp_path / "m", given)
    told = average_models(places, tmp_path / "exact.safetensors", WEIGHTS, "exact")
    average_models(places, tmp_path / "factors.safetensors", WEIGHTS)
    exact, factors = (load_file(tmp_path / f"{name}.safetensors") for name in ("exact", "factors"))
    assert_equal(factors, average_states(given, WEIGHTS))
    for name in ("to_q", "conv"):
        products = torch.stack([product(state, name) for state in given])
        mean = torch.tensordot(torch.tensor(WEIGHTS).double(), products, 1) / sum(WEIGHTS)
        torch.testing.assert_close(product(exact, name), mean, rtol=1e-6, atol=1e-6)
        assert (product(factors, name) - mean).norm() > 0.1 * mean.norm()
    assert {tensor.shape[0] for name, tensor in exact.items() if "down" in name or "_A" in name} == {6}
    assert told["lora"] == "exact"


def test_an_alpha_that_stands_in_the_metadata_is_folded_into_the_factors(tmp_path: Path) -> None:
    given = loras(2, 4, None)
    adapter = json.dumps({"unet.r": 4, "unet.lora_alpha": 8, "unet.use_dora": False, "unet.rank_pattern": {}})
    places = saved(tmp_path / "m", given, lora_adapter_metadata=adapter)
    average_models(places, out := tmp_path / "exact.safetensors", lora="exact")
    mean = (product(given[0], "to_q", 2.0) + product(given[1], "to_q", 2.0)) / 2
    torch.testing.assert_close(product(load_file(out), "to_q"), mean, rtol=1e-6, atol=1e-6)
    assert "lora_adapter_metadata" not in open_tensors(out).metadata
    average_models(places, tmp_path / "factors.safetensors")
    assert open_tensors(tmp_path / "factors.safetensors").metadata["lora_adapter_metadata"] == adapter


def test_stock_diffusers_draws_with_the_exact_mean_what_the_mean_of_weights_draws(
    pipelines: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from diffusers import UNet2DConditionModel

    from iet_agc.text_to_image.lora import add_lora, factors
    from iet_agc.text_to_image.stable_diffusion import StableDiffusion

    def fresh() -> Any:
        return UNet2DConditionModel.from_pretrained(pipelines[0] / "unet").eval()  # pyright: ignore[reportAttributeAccessIssue]

    given = []
    for seed in range(2):
        add_lora(model := fresh(), StableDiffusion.PROJECTIONS, 2, 2.0, seed)
        given.append({f"unet.{name}": tensor for name, tensor in factors(model).items()})
        for at, name in enumerate(each for each in given[-1] if "lora_B" in each):  # zero at the start
            given[-1][name] = 0.3 * numbers(*given[-1][name].shape, seed=100 * seed + at)
    average_models(saved(tmp_path / "m", given), tmp_path / "exact.safetensors", [1, 3], "exact")
    adapted, by_hand = fresh(), fresh()
    adapted.load_lora_adapter(
        {k.removeprefix("unet."): v for k, v in load_file(tmp_path / "exact.safetensors").items()}, prefix=None
    )
    for name in (each.removesuffix(".lora_A.weight") for each in given[0] if each.endswith("lora_A.weight")):
        layer = by_hand.get_submodule(name.removeprefix("unet."))
        products = [state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"] for state in given]
        layer.weight.data += (products[0] + 3 * products[1]) / 4
    noise, text = numbers(1, 4, 8, 8), numbers(1, 16, 16, seed=1)
    with torch.no_grad():
        found, expected, plain = (model(noise, 10, text).sample for model in (adapted, by_hand, fresh()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - plain).abs().max() > 0.01


def test_loras_that_no_formula_here_fits_are_refused(tmp_path: Path) -> None:
    given = loras(2, 2, 1.0)
    places = saved(tmp_path / "m", [given[0], given[1] | {"unet.to_q.alpha": torch.tensor(2.0)}])
    with pytest.raises(UserError, match=r"unet\.to_q\.alpha differs, and has no mean"):
        average_models(places, tmp_path / "x.safetensors")
    average_models(places, tmp_path / "exact.safetensors", lora="exact")
    odd = saved(tmp_path / "odd", [state | {"unet.to_q.dora_scale": numbers(5)} for state in given])
    with pytest.raises(UserError, match=r"unet\.to_q\.dora_scale is no factor of a LoRA and no alpha"):
        average_models(odd, tmp_path / "x.safetensors", lora="exact")
    rank = saved(tmp_path / "rs", loras(2, 2, None), lora_adapter_metadata='{"unet.use_rslora": true}')
    with pytest.raises(UserError, match=r"has unet\.use_rslora true: average the factors"):
        average_models(rank, tmp_path / "x.safetensors", lora="exact")
    plain = saved(tmp_path / "plain", states(2))
    with pytest.raises(UserError, match="is no LoRA file"):
        average_models(plain, tmp_path / "x.safetensors", lora="exact")
    assert not (tmp_path / "x.safetensors").exists()


# Again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_same_again_changes_nothing_another_is_refused_and_damage_is_mended(
    pipelines: list[Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = pipelines if kind == "folder" else saved(tmp_path / "m", states())
    out = tmp_path / ("mean" if kind == "folder" else "mean.safetensors")
    weights = out / "unet" / "diffusion_pytorch_model.safetensors" if kind == "folder" else out
    told = average_models(places, out, WEIGHTS)
    before, time = weights.read_bytes(), weights.stat().st_mtime_ns
    assert average_models(places, out, WEIGHTS) == told
    assert weights.stat().st_mtime_ns == time
    with pytest.raises(
        UserError, match=r"holds another average \(weights is \[3.0, 1.0, 2.0\], not \[1.0, 1.0, 1.0\]\)"
    ):
        average_models(places, out)
    with pytest.raises(UserError, match=r"holds another average \(of other models\)"):
        average_models([*places[1:], places[0]], out, WEIGHTS)
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    average_models(places, out, WEIGHTS)
    assert weights.read_bytes() == before


def test_an_average_of_averages_says_what_it_is_itself(tmp_path: Path) -> None:
    places = saved(tmp_path / "m", states(2))
    means = [tmp_path / f"{name}.safetensors" for name in "ab"]
    average_models(places, means[0], [1, 3])
    average_models(places, means[1], [3, 1])
    told = average_models(means, out := tmp_path / "c.safetensors")
    assert json.loads(open_tensors(out).metadata["iet_agc_average"]) == told
    assert average_models(means, out) == told


def test_what_is_there_is_not_written_over(pipelines: list[Path], tmp_path: Path) -> None:
    files = saved(tmp_path / "m", states())
    (folder := tmp_path / "thesis").mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no average"):
        average_models(pipelines, folder, WEIGHTS)
    save_file({"w": numbers(2)}, other := tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match="is there and is no average of ours"):
        average_models(files, other, WEIGHTS)
    with pytest.raises(UserError, match=r"the mean of files is a file, name it \.safetensors"):
        average_models(files, tmp_path / "mean", WEIGHTS)
    with pytest.raises(UserError, match="is one of the models"):
        average_models(files, files[1], WEIGHTS)


def test_a_kill_leaves_nothing_that_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, out = saved(tmp_path / "m", states()), tmp_path / "mean.safetensors"

    def killed(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(average, "_mean", killed)
        with pytest.raises(KeyboardInterrupt):
            average_models(places, out, WEIGHTS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
    average_models(places, out, WEIGHTS)


# Bad input --------------------------------------------------------------------------------------------------


def test_tensors_that_do_not_match_are_refused_by_name(tmp_path: Path) -> None:
    first, second = states(2)
    for change, line in (
        ({"extra": numbers(2)}, "extra is in one of them only"),
        ({"single": numbers(5, 3)}, r"single is float32 \(3, 5\) in the first, float32 \(5, 3\) in the other"),
        ({"half": numbers(3, 5)}, r"half is float16 \(3, 5\) in the first, float32 \(3, 5\) in the other"),
        ({"steps": torch.tensor(8)}, "steps differs, and has no mean"),
        (
            {"single": torch.full((3, 5), torch.nan)},
            r"member-1\.safetensors: single is not finite, so its training broke",
        ),
        ({"half": torch.full((3, 5), torch.inf).half()}, r"member-1\.safetensors: half is not finite"),
    ):
        places = saved(tmp_path / "m", [first, second | change])
        with pytest.raises(UserError, match=line):
            average_models(places, tmp_path / "mean.safetensors")
        assert not (tmp_path / "mean.safetensors").exists()


def test_parts_that_are_no_weights_must_be_equal(pipelines: list[Path], tmp_path: Path) -> None:
    places = [shutil.copytree(place, tmp_path / place.name) for place in pipelines[:2]]
    config = places[1] / "unet" / "config.json"
    before = config.read_text()
    config.write_text(before.replace('"_diffusers_version"', '"_name_or_path": "elsewhere", "_diffusers_version"'))
    average_models(places, tmp_path / "mean")
    for name, old, new, line in (
        (
            "unet/config.json",
            '"sample_size": 8',
            '"sample_size": 16',
            r"unet/config\.json differs in sample_size, 8 and 16",
        ),
        (
            "scheduler/scheduler_config.json",
            '"beta_end": 0.012',
            '"beta_end": 0.02',
            r"differs in beta_end, 0.012 and 0.02",
        ),
        ("tokenizer/tokenizer.json", "dog", "god", r"tokenizer/tokenizer\.json differs"),
    ):
        text = (places[1] / name).read_text()
        assert old in text
        (places[1] / name).write_text(text.replace(old, new))
        with pytest.raises(UserError, match=line):
            average_models(places, tmp_path / "other")
        (places[1] / name).write_text(text)
    shutil.rmtree(places[1] / "vae")
    with pytest.raises(UserError, match=r"names vae in model_index\.json, but has no such folder"):
        average_models(places, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "pytorch_lora_weights.bin"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match=r"is a pickle, which can run code: .* save it as safetensors"):
        find_model(tmp_path / name)


def test_a_pipeline_with_a_pickle_is_refused(pipelines: list[Path], tmp_path: Path) -> None:
    place = shutil.copytree(pipelines[0], tmp_path / "p")
    (place / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        find_model(place)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"not JSON at all.")
    with pytest.raises(UserError, match="is no whole safetensors file"):
        average_models([tmp_path / "a.safetensors"], tmp_path / "mean.safetensors")
    with pytest.raises(UserError, match=r"is no model, it has neither model_index\.json nor config\.json"):
        find_model(tmp_path)
    save_file({"w": numbers(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(UserError, match=r"give .*pytorch_lora_weights\.safetensors"):
        find_model(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has no weights in safetensors"):
        find_model(tmp_path / "c")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"is no folder of a model, and no \.safetensors file"):
        find_model(tmp_path / "notes.txt")


def test_the_verb_weighs_by_shards_and_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: Any) -> None:
    import numpy as np

    np.save(tmp_path / "a.npy", np.zeros((7, 1, 4, 4), dtype=np.uint8))
    iet_agc.shards(tmp_path / "a.npy", 3, out=tmp_path / "s", quiet=True)
    given = states()
    places = saved(tmp_path / "m", given)
    out = tmp_path / "mean.safetensors"
    status, told, _ = call(capsys, "average", *places, "--shards", tmp_path / "s", "--out", out)
    assert (status, json.loads(told)["weights"]) == (0, [3.0, 2.0, 2.0])
    assert_equal(load_file(out), average_states(given, [3, 2, 2]))
    again = iet_agc.average(places, weights=tmp_path / "s", out=out, quiet=True)
    assert again == out
    for words, line in (
        (
            [places[0], places[1], "--weights", 1],
            "2 models, and 1 weights: give as many, in the same order (--weights)",
        ),
        ([places[0], places[1], "--weights", 1, 0], "weight 0 is not a finite number above 0 (--weights)"),
        ([places[0], places[1], "--weights", 1, "nan"], "weight nan is not a finite number above 0 (--weights)"),
        ([places[0], places[1], "--weights", 1e308, 1e308], "the sum of weights is beyond float64"),
        ([places[0], places[0]], "stands there twice"),
        ([places[0], "nowhere"], "nowhere is not there"),
        ([places[0], places[1], "--shards", tmp_path], "shards.json is not there: give a folder that"),
        ([places[0], places[1], "--shards", tmp_path / "s"], "2 models, and 3 weights"),
        ([places[0], "--lora", "exact"], "is no LoRA file, of which products could be averaged (--lora)"),
    ):
        status, told, err = call(capsys, "average", *words, "--out", tmp_path / "x.safetensors")
        assert (status, told) == (2, ""), words
        assert line in err
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "x.safetensors").exists()


# Files of tensors -------------------------------------------------------------------------------------------


def test_a_file_that_was_written_tensor_by_tensor_is_what_the_library_reads(tmp_path: Path) -> None:
    state = states(1)[0]
    save_file(state, tmp_path / "theirs.safetensors", {"format": "pt"})
    layouts = open_tensors(tmp_path / "theirs.safetensors").layouts
    write_tensors(tmp_path / "ours.safetensors", layouts, state.__getitem__, {"format": "pt"})
    assert_equal(load_file(tmp_path / "ours.safetensors"), state)
    sealed = tmp_path / "sealed.safetensors"
    write_tensors(sealed, layouts, state.__getitem__, {}, "seal")
    assert open_tensors(sealed).metadata == {"seal": tensor_files.data_sha256(sealed)}
