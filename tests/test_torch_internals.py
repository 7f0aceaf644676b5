"""Where a version of torch lacks a private name, the other way gives the same."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from iet_agc.runtime import torch_internals
from iet_agc.runtime.torch_internals import cpu_has, has_integer_product, integer_product, step_unless


@pytest.fixture(autouse=True)
def ask_again():
    yield
    cpu_has.cache_clear()
    torch_internals._looks_at_flag.cache_clear()


def _torch_with(monkeypatch, **names):
    """Have the module find a torch whose `torch.cpu` has these names only."""
    monkeypatch.setattr(torch_internals, "torch", SimpleNamespace(cpu=SimpleNamespace(**names)))
    cpu_has.cache_clear()


@pytest.mark.parametrize("instructions", torch_internals._OLDER_NAMES)
def test_instructions_by_either_name_are_the_same(monkeypatch, instructions):
    newest, older = cpu_has(instructions), torch_internals._OLDER_NAMES[instructions]
    _torch_with(monkeypatch, **{older: getattr(torch.cpu, older)})
    assert cpu_has(instructions) == newest
    _torch_with(monkeypatch, **{older: lambda: True})
    assert cpu_has(instructions)
    _torch_with(monkeypatch, get_capabilities=lambda: {instructions: True}, **{older: lambda: False})
    assert cpu_has(instructions)


@pytest.mark.parametrize("names", [{}, {"get_capabilities": dict}])
def test_instructions_that_torch_cannot_tell_are_not_there(monkeypatch, names):
    _torch_with(monkeypatch, **names)
    assert not cpu_has("avx512_vnni")


@pytest.mark.skipif(not has_integer_product(), reason="this torch has none")
def test_integer_products_are_exact_at_the_ends_and_go_where_they_are_told():
    rows, columns = torch.full((32, 64), -128, dtype=torch.int8), torch.full((16, 64), 127, dtype=torch.int8)
    columns[0] = -128
    out = torch.empty(32, 16, dtype=torch.int32)
    assert integer_product(rows, columns, out) is out
    assert out[0].tolist() == [64 * 128 * 128] + [-64 * 128 * 127] * 15
    assert torch.equal(integer_product(rows, columns), out)


def test_a_torch_without_integer_products_says_so(monkeypatch):
    monkeypatch.delattr(torch, "_int_mm")
    assert not has_integer_product()


def _steps(flags: list[float], fused: bool) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Weights and moments after a step for each flag."""
    torch.manual_seed(0)
    model, frozen = nn.Linear(3, 2), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([*model.parameters(), frozen], lr=0.1, weight_decay=0.3, fused=fused)
    for number, flag in enumerate(flags):
        optimizer.zero_grad()
        model(torch.full((1, 3), number + 1.0)).square().sum().backward()
        if flag:
            model.weight.grad.fill_(torch.nan)  # pyright: ignore[reportOptionalMemberAccess]
        step_unless(optimizer, torch.tensor(flag))
    parameters = [*model.parameters(), frozen]
    return [each.detach() for each in parameters], [copy.deepcopy(optimizer.state[each]) for each in parameters]


def _same(found, expected):
    assert all(map(torch.equal, found[0], expected[0]))
    for mine, theirs in zip(found[1], expected[1], strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("flags", [[0.0, 0.0, 0.0], [1.0], [0.0, 1.0], [0.0, 1.0, 0.0]])
def test_a_step_is_held_back_by_either_way_to_the_same_bits(monkeypatch, flags):
    expected = _steps(flags, fused=True)
    assert torch_internals._looks_at_flag(torch.optim.AdamW, torch.device("cpu"))
    monkeypatch.setattr(torch_internals, "_looks_at_flag", lambda kind, device: False)
    _same(_steps(flags, fused=True), expected)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_held_back_changes_nothing(fused):
    _same(_steps([0.0, 1.0], fused), _steps([0.0], fused))
    assert not torch.equal(_steps([0.0, 0.0], fused)[0][0], _steps([0.0], fused)[0][0])


def test_an_optimizer_that_does_not_look_at_the_flag_is_found_out():
    class Deaf(torch.optim.AdamW):
        def step(self, closure=None):
            self.__dict__.pop("found_inf", None)
            return super().step(closure)

    assert not torch_internals._looks_at_flag(Deaf, torch.device("cpu"))
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    step_unless(Deaf([weight]), torch.tensor(1.0))
    assert weight.tolist() == [1, 1]
