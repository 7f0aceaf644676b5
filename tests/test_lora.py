"""LoRA: only factors are trained, the rest is held once, and what is left is what stock diffusers makes of it."""

import pytest
import torch

pytest.importorskip("peft")

from safetensors.torch import load_file

from iet_agc.config.settings import validate
from iet_agc.runtime.trainable import copy_trained, names_of_trained
from iet_agc.sampling.sample_set import load_samples, sample_run
from iet_agc.text_to_image.lora import add_lora, factors, merged
from iet_agc.text_to_image.pipeline import load_text_pipeline
from iet_agc.text_to_image.stable_diffusion import StableDiffusion, UNetAndEncoder
from iet_agc.training.loop import _prepared, train
from iet_agc.training.tasks import TextTask, make_task
from tests.miniature import captioned, save_miniature
from tests.processes import in_processes
from tests.tiny_runs import CPU, assert_same
from tests.tiny_text_runs import killed, settings, stock, unet

FILE = "pytorch_lora_weights.safetensors"


def chosen(init, **changes):
    return settings(init, **({"lora__rank": 4, "lora__alpha": 8.0, "train__learning_rate": 0.03} | changes))


def brief(init, **changes):
    few = {"method__members": 1, "method__rounds": 1, "train__steps": 2, "run__preview_images": 0}
    return chosen(init, **(few | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_miniature(tmp_path_factory.mktemp("pipelines") / "epsilon")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "run"
    train(chosen(folder, run__preview_images=2), captioned(), out, CPU)
    return out


@pytest.fixture(scope="module")
def both(folder, tmp_path_factory):
    """A run whose text encoder has factors, too."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "both"
    train(chosen(folder, text__train_encoder=True), captioned(), out, CPU)
    return out


def is_projection(name):
    return any(part in name for part in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))


def pictures(pipe):
    prompts, rng = ["a red dog", "a bird"], [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    images = pipe(prompts, num_inference_steps=3, guidance_scale=3.0, generator=rng, output_type="np").images
    return torch.from_numpy(images)


# -- what is shared


@pytest.mark.parametrize("encoder", [False, True])
def test_frozen_weights_are_held_once_for_all_members(folder, tmp_path, encoder):
    whole = chosen(folder, text__train_encoder=encoder)
    members = _prepared(whole, captioned(), tmp_path / "run", CPU, None).members
    modules = [module for member in members for module in (member.model, member.ema.module)]
    assert len(modules) == 4
    places = {}
    for module in modules:
        for name, parameter in module.named_parameters():
            places.setdefault(name, set()).add(parameter.data_ptr())
    assert {name: len(some) for name, some in places.items()} == {name: 4 if "lora_" in name else 1 for name in places}
    size = sum(tensor.numel() for tensor in members[0].shared().values())
    assert size == 2 * sum(p.numel() for p in members[0].model.parameters() if p.requires_grad)
    assert size < 0.2 * sum(p.numel() for p in members[0].model.parameters())


def test_members_start_equal_and_at_the_pipeline(folder, tmp_path):
    one, other = _prepared(chosen(folder), captioned(), tmp_path / "run", CPU, None).members
    assert_same(one.shared(), other.shared())
    down, up = ([value for name, value in one.shared().items() if kind in name] for kind in ("lora_A", "lora_B"))
    assert all(value.std() > 0.1 for value in down)
    assert not any(value.any() for value in up)
    assert_same(merged(one.model).state_dict(), load_text_pipeline(folder).denoiser.state_dict())
    again = TextTask(chosen(folder), captioned()).initial.raw
    another = TextTask(chosen(folder, train__seed=1), captioned()).initial.raw
    assert_same(factors(again), factors(one.model))
    assert not torch.equal(*(next(iter(factors(model).values())) for model in (again, another)))


def test_a_module_that_is_trained_whole_is_copied_whole():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    copy = copy_trained(module)
    assert names_of_trained(module) == set(module.state_dict())
    places = [{tensor.data_ptr() for tensor in each.state_dict().values()} for each in (module, copy)]
    assert not places[0] & places[1]
    module[0].requires_grad_(False)
    copy = copy_trained(module)
    assert copy[0].weight is module[0].weight
    assert copy[1].weight is not module[1].weight
    assert names_of_trained(module) == {name for name in module.state_dict() if name.startswith("1.")}


# -- training


def test_only_the_projections_of_attention_change(folder, run):
    before = load_text_pipeline(folder).denoiser.state_dict()
    for kind in ("raw", "ema"):
        after = unet(run, kind)
        assert after.keys() == before.keys()
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert same == {name for name in before if not is_projection(name)}
    assert not torch.equal(*(load_file(run / kind / FILE)[CROSS] for kind in ("raw", "ema")))


CROSS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight"


def test_a_bundle_holds_the_factors_only(run):
    bundle = run / "bundles" / "round-0002"
    shared, own = (load_file(bundle / f"{name}.safetensors") for name in ("shared", "member-0001"))
    assert all("lora_" in name for name in shared)
    assert {name.split(".")[0] for name in shared} == {"raw", "ema"}
    assert all("lora_" in name for name in own if name.startswith("optimizer."))
    name = CROSS.removeprefix("unet.").replace(".weight", ".default.weight")
    assert torch.equal(load_file(run / "raw" / FILE)[CROSS], 2 * shared[f"raw.{name}"])  # alpha / rank


def test_agc_skips(folder, tmp_path):
    far = brief(folder, train__steps=20, train__batch_size=16, method__skip_below=8.0, method__decay=0.0)
    train(far, captioned(), tmp_path / "run", CPU)
    skipped = [int(row.split(",")[-1]) for row in (tmp_path / "run" / "telemetry.csv").read_text().splitlines()[1:]]
    assert sum(skipped) > 20


def test_a_killed_run_resumes_bitwise(folder, both, tmp_path):
    again = chosen(folder, text__train_encoder=True)
    killed(again, tmp_path / "run")
    train(again, captioned(), tmp_path / "run", CPU)
    for kind in ("raw", "ema"):
        assert_same(load_file(tmp_path / "run" / kind / FILE), load_file(both / kind / FILE))
        assert_same(unet(tmp_path / "run", kind), unet(both, kind))


def test_two_processes_train_the_same_factors(folder, both, tmp_path):
    in_processes(2, lambda: train(chosen(folder, text__train_encoder=True), captioned(), tmp_path / "run", CPU))
    for kind in ("raw", "ema"):
        assert_same(load_file(tmp_path / "run" / kind / FILE), load_file(both / kind / FILE))


def test_replicas_train_the_same_factors_to_rounding(folder, both, tmp_path):
    """Two processes per member; of a change of weights."""
    in_processes(4, lambda: train(chosen(folder, text__train_encoder=True), captioned(), tmp_path / "run", CPU))
    before, one, four = (
        load_text_pipeline(folder),
        load_text_pipeline(both / "raw"),
        load_text_pipeline(tmp_path / "run/raw"),
    )
    for part in ("unet", "text_encoder"):
        start, end, other = (each.parts[part].state_dict() for each in (before, one, four))
        changed = max(float((end[name] - start[name]).abs().max()) for name in start)
        assert max(float((other[name] - end[name]).abs().max()) for name in start) < 0.01 * changed


def test_in_bfloat16_a_killed_run_resumes_bitwise_and_learns_as_in_float32(folder, both, tmp_path):
    again = chosen(folder, text__train_encoder=True, train__precision="bfloat16")
    train(again, captioned(), tmp_path / "whole", CPU)
    killed(again, tmp_path / "run")
    train(again, captioned(), tmp_path / "run", CPU)
    whole, exact = load_file(tmp_path / "whole" / "raw" / FILE), load_file(both / "raw" / FILE)
    assert_same(load_file(tmp_path / "run" / "raw" / FILE), whole)
    ups = [name for name in exact if ".lora_B." in name or ".lora.up." in name or ".lora_linear_layer.up." in name]
    one, other = (torch.cat([state[name].flatten() for name in ups]) for state in (whole, exact))
    assert not torch.equal(one, other)
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.9


def test_rank_and_alpha_have_an_effect(folder, tmp_path):
    found = []
    for number, changes in enumerate([{}, {"lora__rank": 2}, {"lora__alpha": 4.0}, {"lora__alpha": None}]):
        train(brief(folder, **changes), captioned(), tmp_path / str(number), CPU)
        found.append(unet(tmp_path / str(number))[CROSS.removeprefix("unet.").replace("lora_B.", "")])
    assert [torch.equal(found[0], other) for other in found] == [True, False, False, False]
    assert torch.equal(found[2], found[3])  # none is the rank


# -- what is left


@pytest.mark.parametrize("kind", ["raw", "ema"])
@pytest.mark.parametrize("name", ["run", "both"])
def test_stock_diffusers_loads_the_factors_and_draws_the_same(folder, name, kind, request):
    done = request.getfixturevalue(name)
    pipe = stock(folder)
    before = pictures(pipe)
    pipe.load_lora_weights(done / kind)
    from_factors, from_merged = pictures(pipe), pictures(stock(done / kind))
    assert (from_merged - before).abs().max() > 0.02
    torch.testing.assert_close(from_factors, from_merged, rtol=0, atol=1e-4)


def test_a_text_encoder_has_factors_if_it_is_trained(folder, run, both):
    for done, differs in ((run, False), (both, True)):
        before, after = (load_text_pipeline(place).text_encoder.state_dict() for place in (folder, done / "raw"))
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert bool(changed) == differs
        assert all("self_attn" in name and name.endswith("proj.weight") for name in changed)
        assert any(name.startswith("text_encoder.") for name in load_file(done / "raw" / FILE)) == differs


def test_merging_changes_no_prediction(folder):
    pipeline = load_text_pipeline(folder)
    model = UNetAndEncoder(pipeline.denoiser, pipeline.text_encoder)
    add_lora(model, StableDiffusion.PROJECTIONS, 4, 6.0, seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    latents, tokens = torch.randn(2, 4, 8, 8), pipeline.tokens(["a dog", "a cat"])
    plain = merged(model)
    assert not any("lora" in name or "base_layer" in name for name in plain.state_dict())
    with torch.no_grad():
        expected, found = (
            each(latents, torch.tensor([5, 900]), each.text_encoder(tokens)[0]).sample for each in (model, plain)
        )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert any("lora" in name for name in model.state_dict())


def test_a_run_is_sampled_and_previewed(run, tmp_path):
    assert (run / "previews" / "round-0002.png").exists()
    sample_run(run, tmp_path / "s", {"num": 3})
    assert load_samples(tmp_path / "s")[0].images.float().std() > 1


def test_a_run_is_trained_further_with_its_average(run, tmp_path):
    """With new factors that are zero, what the average starts from is the average."""
    train(brief(run, train__learning_rate=1e-9, train__ema_decay=1.0), captioned(), tmp_path / "further", CPU)
    assert_same(unet(tmp_path / "further", "ema"), unet(run, "ema"))
    train(settings(run, method__rounds=1), captioned(), tmp_path / "whole", CPU)
    assert not (tmp_path / "whole" / "raw" / FILE).exists()


# -- refusals


def test_settings_without_effect_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="settings of section lora have no effect on images alone: leave them out"):
        train(validate({"lora": {"rank": 4}}), captioned(), tmp_path / "run", CPU)
    with pytest.raises(ValueError, match=r"lora\.alpha 8 has no effect without a rank: set lora\.rank"):
        train(chosen(folder, lora__rank=0), captioned(), tmp_path / "run", CPU)
    with pytest.raises(ValueError, match=r"train.target ambient is of pixels, not of latents: leave it out"):
        train(chosen(folder, train__target="ambient"), captioned(), tmp_path / "run", CPU)
    with pytest.raises(ValueError, match=r"gap of text-to-image is not computed from images: set train.gap_low and"):
        train(chosen(folder, train__timesteps="gap"), captioned(), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_without_peft_it_is_one_line(folder, monkeypatch):
    import importlib.util

    honest = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else honest(name))
    with pytest.raises(ValueError, match=r"^lora\.rank needs the package peft: pip install 'iet-agc\[text\]'$"):
        make_task(chosen(folder), captioned())
