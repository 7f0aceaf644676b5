"""The paper's U-Net, its pipeline folder, and dropout that replicas share."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DDIMPipeline, UNet2DModel  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from iet_agc.diffusion.dropout import BatchDropout, use_rows
from iet_agc.diffusion.process import make_scheduler
from iet_agc.diffusion.unet import Network, build_unet, load_pipeline, save_pipeline
from iet_agc.runtime.files import hashes_below

TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "groups": 4}


def _tiny(seed: int = 0, **changes: object) -> UNet2DModel:
    torch.manual_seed(seed)
    return build_unet(8, 1, **(TINY | changes))  # pyright: ignore[reportArgumentType]


# -- architecture


def _paper() -> UNet2DModel:
    with torch.device("meta"):  # shapes only: no 36 million random numbers
        return build_unet(32, 3)


def test_the_papers_unet() -> None:
    model = _paper()
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_746_307
    assert list(model.config["block_out_channels"]) == [128, 256, 256, 256]
    assert model.config["layers_per_block"] == 2
    assert model.config["dropout"] == 0.1
    assert model.config["norm_num_groups"] == 32
    assert model.training


def test_attention_is_where_it_should_be_and_has_one_head() -> None:
    heads = {name: module.heads for name, module in _paper().named_modules() if type(module).__name__ == "Attention"}
    down = [f"down_blocks.1.attentions.{i}" for i in range(2)]
    up = [f"up_blocks.2.attentions.{i}" for i in range(3)]  # levels come in reverse: this is 16 px again
    assert heads == dict.fromkeys([*down, *up, "mid_block.attentions.0"], 1)


def test_every_residual_block_drops_with_the_batch() -> None:
    model = _tiny(dropout=0.3)
    dropouts = {name: module.p for name, module in model.named_modules() if isinstance(module, BatchDropout)}
    blocks = [name for name, module in model.named_modules() if type(module).__name__ == "ResnetBlock2D"]
    assert {name: p for name, p in dropouts.items() if "resnets" in name} == dict.fromkeys(
        [f"{block}.dropout" for block in blocks], 0.3
    )
    assert not any(type(module) is nn.Dropout for module in model.modules())


@pytest.mark.parametrize(("size", "channels", "multipliers"), [(8, 1, (1, 2)), (28, 1, (1, 2, 2)), (12, 3, (1,))])
def test_output_has_the_shape_of_the_input(size: int, channels: int, multipliers: tuple[int, ...]) -> None:
    model = build_unet(size, channels, **(TINY | {"multipliers": multipliers, "attention": (size,)})).eval()  # pyright: ignore[reportArgumentType]
    x = torch.zeros(2, channels, size, size)
    assert model(x, torch.tensor([0, 999])).sample.shape == x.shape


def test_weights_are_decided_by_torchs_seed() -> None:
    one, same, other = _tiny(0).state_dict(), _tiny(0).state_dict(), _tiny(1).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def _ends(name: str) -> bool:
    """Whether a residual branch, attention or the model ends in a layer."""
    return name == "conv_out" or name.rsplit(".", 1)[-1] == "conv2" or ".to_out." in name


def test_ddpms_initial_weights_are_xaviers_and_almost_zero_where_a_branch_ends() -> None:
    """The gain of every layer, by the deviation of its weights from that of Xavier; five deviations of a deviation."""
    torch.manual_seed(0)
    model = build_unet(16, 3, 32, (1, 2), 2, (8,), 0.1, 8, 5, "ddpm")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    gains = {}
    for name, layer in layers.items():
        weight = layer.weight.detach()
        field = weight[0, 0].numel()
        gains[name] = float(weight.std()) / math.sqrt(2 / (field * (weight.shape[0] + weight.shape[1])))
        largest = float(weight.abs().max()) / float(weight.std())
        assert 1.6 < largest < 1.75 + 5 / math.sqrt(weight.numel()), name  # uniform: the square root of 3
        assert gains[name] == pytest.approx(1e-5 if _ends(name) else 1, rel=5 / math.sqrt(weight.numel())), name
        assert layer.bias is not None
        assert not layer.bias.any(), name
    blocks = sum(type(module).__name__ == "ResnetBlock2D" for module in model.modules())
    attentions = sum(type(module).__name__ == "Attention" for module in model.modules())
    assert (blocks, attentions) == (12, 6)
    assert sum(gain < 0.5 for gain in gains.values()) == blocks + attentions + 1
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
    assert float(model.class_embedding.weight.detach().std()) == pytest.approx(1, rel=0.2)  # pyright: ignore


def test_a_fresh_block_of_ddpms_is_its_shortcut() -> None:
    torch.manual_seed(0)
    model = build_unet(8, 1, **TINY, initialization="ddpm").eval()  # pyright: ignore[reportArgumentType]
    block: nn.Module = model.down_blocks[0].resnets[0]  # pyright: ignore
    x, embedding = torch.randn(2, 8, 8, 8), torch.randn(2, 32)
    with torch.inference_mode():
        torch.testing.assert_close(block(x, embedding), x, rtol=0, atol=1e-4)
        assert not torch.allclose(_tiny().down_blocks[0].resnets[0](x, embedding), x, rtol=0, atol=1e-2)  # pyright: ignore


def test_the_default_initialization_is_diffusers_own_bitwise() -> None:
    """What stood in every run before there was a choice."""
    model = _tiny(initialization="diffusers")
    torch.manual_seed(0)
    stock = UNet2DModel.from_config(model.config)
    assert isinstance(stock, UNet2DModel)
    _assert_same(model, stock)
    _assert_same(model, _tiny())


def test_ddpms_weights_are_decided_by_torchs_seed() -> None:
    one, same, other = (_tiny(seed, initialization="ddpm").state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv_in.weight"], other["conv_in.weight"])


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (28, {"multipliers": (1, 2, 2, 2)}, "images of 28 px cannot be halved 3 times: use fewer model.multipliers"),
        (2, {"multipliers": (1, 1, 1)}, "images of 2 px cannot be halved 2 times"),
        (9, {}, "images of 9 px cannot be halved 1 times"),
        (8, {"groups": 3}, "model.groups 3 does not divide the model's width 8"),
        (8, {"groups": 16}, "model.groups 16 does not divide the model's width 8"),
    ],
)
def test_impossible_models(size: int, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_unet(size, 1, **(TINY | changes))  # pyright: ignore[reportArgumentType]


# -- pipeline folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pipeline(_tiny(), make_scheduler(), tmp_path / "pipeline")
    return tmp_path / "pipeline"


def _assert_same(one: Network, two: Network) -> None:
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_pipeline_comes_back_bitwise(folder: Path) -> None:
    model, scheduler = load_pipeline(folder)
    _assert_same(model, _tiny())
    assert not model.training
    saved, original = dict(scheduler.config), dict(make_scheduler().config)
    assert {name: saved[name] for name in original if not name.startswith("_")} == {
        name: value for name, value in original.items() if not name.startswith("_")
    }
    x = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(model(x, 5).sample, _tiny().eval()(x, 5).sample)


def test_a_pipeline_is_replaced_whole_and_what_a_person_put_there_stays(folder: Path) -> None:
    (folder / "old.json").write_text("ours")
    (folder / "notes").mkdir()
    (folder / "notes" / "README.md").write_text("theirs")
    written = save_pipeline(_tiny(1), make_scheduler(), folder, {"old.json", "model_index.json"})
    _assert_same(load_pipeline(folder)[0], _tiny(1))
    assert not (folder / "old.json").exists()
    assert (folder / "notes" / "README.md").read_text() == "theirs"
    assert written == {name: digest for name, digest in hashes_below(folder).items() if name != "notes/README.md"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["pipeline"]


def test_a_crash_while_saving_leaves_the_old_pipeline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("diffusers.DDIMPipeline.save_pretrained", crash)
        with pytest.raises(KeyboardInterrupt):
            save_pipeline(_tiny(1), make_scheduler(), folder)
    _assert_same(load_pipeline(folder)[0], _tiny())


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = _tiny()
    save_pipeline(model, make_scheduler(), tmp_path / "p")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_files_are_safetensors_and_json(folder: Path) -> None:
    assert {file.suffix for file in folder.rglob("*") if file.is_file()} == {".safetensors", ".json"}


def test_stock_diffusers_draws_from_it(folder: Path) -> None:
    """Every part is a class of diffusers; tests/test_e2e.py does so in a process that has nothing of ours."""
    pipeline: Any = DDIMPipeline.from_pretrained(folder)
    assert {type(part).__module__.split(".")[0] for part in pipeline.components.values()} == {"diffusers"}
    pipeline.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(0)
    images = pipeline(batch_size=1, num_inference_steps=2, generator=rng, output_type="np").images
    assert images.shape == (1, 8, 8, 1)
    assert pipeline.scheduler.config.steps_offset == 1


def test_what_is_no_pipeline(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"is not a diffusers pipeline: it has no model_index.json"):
            load_pipeline(path)


def _without_weights(unet: Path) -> None:
    (unet / "diffusion_pytorch_model.safetensors").unlink()


def _truncated(unet: Path) -> None:
    file = unet / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _no_json(unet: Path) -> None:
    (unet / "config.json").write_text("{")


def _no_scheduler(unet: Path) -> None:
    (unet.parent / "scheduler" / "scheduler_config.json").unlink()


def _other_architecture(unet: Path) -> None:
    """As of a Stable Diffusion pipeline."""
    file = unet / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "UNet2DConditionModel"}))


def _a_tensor_less(unet: Path) -> None:
    """diffusers would go on with random numbers for it."""
    file = unet / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["conv_out.weight"]
    safetensors.torch.save_file(tensors, file, {"format": "pt"})


def _a_wrong_shape(unet: Path) -> None:
    file = unet / "diffusion_pytorch_model.safetensors"
    safetensors.torch.save_file(
        safetensors.torch.load_file(file) | {"conv_out.bias": torch.zeros(7)}, file, {"format": "pt"}
    )


@pytest.mark.parametrize(
    "damage",
    [_without_weights, _truncated, _no_json, _no_scheduler, _other_architecture, _a_tensor_less, _a_wrong_shape],
)
def test_damaged_pipelines_are_named_in_one_line(folder: Path, damage) -> None:
    damage(folder / "unet")
    with pytest.raises(ValueError, match="cannot be read as a diffusers pipeline") as error:
        load_pipeline(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


# -- dropout


def _drop(dropout: nn.Module, x: torch.Tensor, seed: int = 7) -> torch.Tensor:
    torch.manual_seed(seed)
    return dropout(x)


@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6), (0, 1, 5, 6)])
def test_replicas_drop_what_one_process_drops(cuts: tuple[int, ...]) -> None:
    x = torch.randn(6, 4, 3, 3)
    whole = _drop(BatchDropout(0.4), x)
    assert 0 < (whole == 0).sum() < whole.numel()
    parts = []
    for start, stop in itertools.pairwise(cuts):
        dropout = BatchDropout(0.4)
        use_rows(dropout, (start, 6))
        parts.append(_drop(dropout, x[start:stop]))
    assert torch.equal(torch.cat(parts), whole)


def test_replicas_stay_in_step_over_several_layers() -> None:
    """Each draws the masks of the whole batch, so the generator stands at the same place afterwards."""
    x = torch.randn(6, 5)
    layers = [nn.Sequential(BatchDropout(0.5), nn.ReLU(), BatchDropout(0.5)) for _ in range(2)]
    whole = _drop(layers[0], x)
    use_rows(layers[1], (4, 6))
    assert torch.equal(_drop(layers[1], x[4:]), whole[4:])


def test_gradients_pass_the_same_mask() -> None:
    x = torch.ones(4, 10, requires_grad=True)
    dropped = _drop(BatchDropout(0.5), x)
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, dropped.detach())
    assert 0 < (x.grad == 0).sum() < 40


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_it_drops_at_its_rate_and_keeps_the_mean(p: float) -> None:
    n = 1 << 20
    mask = _drop(BatchDropout(p), torch.ones(n))
    deviation = math.sqrt(p * (1 - p) / n)
    assert abs((mask == 0).double().mean() - p) < 5 * deviation + 2**-17
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=2**-13)
    assert abs(mask.double().mean() - 1) < 5 * deviation / (1 - p)
    kept = (mask != 0).double() - (mask != 0).double().mean()
    for lag in range(1, 6):  # four elements share a draw of 64 bits
        assert abs((kept[lag:] * kept[:-lag]).mean()) < 5 * p * (1 - p) / math.sqrt(n)


@pytest.mark.parametrize(("p", "most"), [(1e-7, 30), (1 - 1e-7, (1 << 18) - 1)])
def test_extreme_rates_still_drop_some_and_keep_some(p: float, most: int) -> None:
    dropped = (_drop(BatchDropout(p), torch.ones(1 << 18)) == 0).sum()
    assert 0 < dropped <= most


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_elements_can_be_dropped(count: int) -> None:
    assert _drop(BatchDropout(0.5), torch.ones(count, dtype=torch.bfloat16)).shape == (count,)


def test_evaluation_and_zero_pass_through() -> None:
    x = torch.randn(2, 4)
    for dropout in (BatchDropout(0.5).eval(), BatchDropout(0.0)):
        dropout.rows = (2, 6)
        assert torch.equal(dropout(x), x)


def test_use_rows_reaches_every_dropout_and_can_be_undone() -> None:
    model = _tiny()
    dropouts = [module for module in model.modules() if isinstance(module, BatchDropout)]
    assert len(dropouts) > 3
    use_rows(model, (2, 8))
    assert {module.rows for module in dropouts} == {(2, 8)}
    use_rows(model, None)
    assert {module.rows for module in dropouts} == {None}


def test_attention_at_a_height_that_no_level_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.attention 5: no level has that height, they have 8, 4"):
        build_unet(8, 1, **(TINY | {"attention": (4, 5)}))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    model = _tiny()
    model.conv_out.weight.data[0, 0, 0, 0] = value
    save_pipeline(model, make_scheduler(), folder)
    with pytest.raises(ValueError, match=r"cannot be read .* its weights conv_out.weight are not finite") as error:
        load_pipeline(folder)
    assert "\n" not in str(error.value)
