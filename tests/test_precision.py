"""Precision and speed of a step: float32 where it must be, nothing waits for the device, compiling is the same."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from iet_agc.config.run_folder import read_settings
from iet_agc.diffusion.process import make_scheduler
from iet_agc.diffusion.samplers import sample
from iet_agc.diffusion.unet import build_unet
from iet_agc.runtime import precision
from iet_agc.runtime.precision import resolved
from iet_agc.training.loop import train
from iet_agc.training.member import Member
from iet_agc.training.pixels import Pixels
from tests.tiny_runs import images, settings, weights

CPU = torch.device("cpu")
NAMES = ("float32", "bfloat16")


def member(device=CPU, **changes):
    given = settings(**changes)
    torch.manual_seed(0)
    model = build_unet(8, 1, **given.model.architecture())
    return Member(0, model, Pixels(images().images), given.train, given.method, device)


@pytest.mark.parametrize("has", ["avx512_bf16", "amx_tile", None])
def test_auto_follows_the_instructions(monkeypatch, has):
    monkeypatch.setattr(precision, "cpu_has", lambda name: name == has)
    assert resolved("auto", CPU) == ("bfloat16" if has else "float32")
    assert resolved("float32", CPU) == "float32"
    assert resolved("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_on_gpus(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolved("auto", torch.device("cuda", 0)) == expected


@pytest.mark.parametrize("name", NAMES)
def test_products_take_the_precision_and_what_is_kept_is_float32(name):
    one, seen = member(train__precision=name), []
    convolution = next(module for module in one.model.modules() if isinstance(module, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    one.to(CPU)
    for losses, _, _ in one.train(2, make_scheduler()):
        assert losses.dtype == torch.float32
    assert seen == [torch.bfloat16 if name == "bfloat16" else torch.float32] * 2
    kept = {**one.shared(), **one.own()}
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {torch.float32}


def test_bfloat16_losses_are_those_of_float32_but_for_its_rounding():
    first = [next(member(train__precision=name).train(1, make_scheduler()))[0] for name in NAMES]
    assert not torch.equal(*first)
    torch.testing.assert_close(*first, rtol=0.02, atol=0.02)


def test_a_run_writes_down_its_precision_and_goes_on_in_no_other(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(precision, "cpu_has", lambda name: True)
        train(settings(train__precision="auto"), images(), tmp_path, CPU)
    assert read_settings(tmp_path).train.precision == "bfloat16"
    monkeypatch.setattr(precision, "cpu_has", lambda name: False)
    with pytest.raises(ValueError, match=r"another run \(train.precision bfloat16 is now float32\)"):
        train(settings(train__precision="auto"), images(), tmp_path, CPU)
    train(settings(train__precision="bfloat16"), images(), tmp_path, CPU)


def test_a_compiled_model_trains_to_the_same_weights(tmp_path, monkeypatch):
    """By the tracing half of torch.compile, which changes no number; the code that it would generate rounds anew."""
    compiled, honest = [], torch.compile
    train(settings(), images(), tmp_path / "plain", CPU)

    def traced(model):
        compiled.append(model)
        return honest(model, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    train(settings(train__compile=True), images(), tmp_path / "compiled", CPU)
    assert len(compiled) == settings().method.members
    for kind in ("raw", "ema"):
        plain, other = weights(tmp_path / "plain", kind), weights(tmp_path / "compiled", kind)
        assert plain.keys() == other.keys()
        for name, tensor in plain.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


class _NoWaiting(TorchDispatchMode):
    """Refuses what would make a host wait for its device: a number taken out of a tensor, or indices found."""

    forbidden = frozenset({"aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero"})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        assert name not in self.forbidden, f"{name} waits for the device"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_the_device(name):
    one = member(train__precision=name, method__skip_below=0.9, data__flips=True)
    steps = one.train(5, make_scheduler())
    next(steps)
    with _NoWaiting():
        next(steps)
    with pytest.raises(AssertionError, match="waits for the device"), _NoWaiting():
        torch.ones(1).item()  # the check can fail


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_for_the_gpu():
    device = torch.device("cuda")
    one = member(device, method__skip_below=0.9, data__flips=True)
    one.to(device)
    steps = one.train(5, make_scheduler())
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(steps)
        with pytest.raises(RuntimeError):
            torch.ones(1, device=device).item()  # the check can fail
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_samples_in_bfloat16_are_close_and_do_not_depend_on_their_company():
    model = build_unet(8, 1, channels=32, multipliers=(1, 2), blocks=1, attention=()).eval()
    drawn = {name: sample(model, make_scheduler(), range(5), (1, 8, 8), 5, precision=name) for name in NAMES}
    assert (drawn["float32"].int() - drawn["bfloat16"].int()).abs().float().mean() < 20
    alone = sample(model, make_scheduler(), [3], (1, 8, 8), 5, precision="bfloat16")
    assert torch.equal(alone[0], drawn["bfloat16"][3])
