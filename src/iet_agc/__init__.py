"""Train image diffusion models that do not reproduce their training images, and prove it.

The verbs of the command line, from Python, on paths and on images in memory:

    run = iet_agc.train("digits-iet-agc", images, out="runs/a", settings={"train.seed": 1})
    samples = iet_agc.sample(run, 1024, out="runs/a/samples")
    found = iet_agc.audit(run, samples, held_out=others, out="runs/a/audit")
    found.check(fail_above=0.02)
    iet_agc.report(found)
    iet_agc.card(run, found)
    iet_agc.membership(run, out="runs/a/membership").record.auc
    iet_agc.attack(run, out="runs/a/attack").record.attacks
    iet_agc.verify(iet_agc.pack(found, out="pack")).check()
    iet_agc.bench("small", out="board")
    parts = iet_agc.shards("photos", 4, out="shards")
    iet_agc.average(["a", "b", "c", "d"], weights=parts, out="mean")

And the pieces that other programs use. All are loaded when asked for:

    from iet_agc import MemorizationWatch                  # tells in any training loop when copying begins
    from iet_agc import AntiGradientControl, mean_of_kept, partition, average_states
    from iet_agc.metrics import nearest, distance_ratio, memorization_quantity
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iet_agc.api.memorization_watch import MemorizationWatch
    from iet_agc.api.results import Attack, Audit, Bench, Membership, Pack, Run, SampleSet, Shards, Verification
    from iet_agc.api.verbs import (
        attack,
        audit,
        average,
        bench,
        card,
        membership,
        pack,
        report,
        sample,
        shards,
        train,
        verify,
    )
    from iet_agc.method.agc import AntiGradientControl, mean_of_kept
    from iet_agc.method.averaging import average_states
    from iet_agc.method.sharding import partition
    from iet_agc.runtime.errors import CheckFailed, UserError

#: Where each public name stands.
_HOMES = {
    "AntiGradientControl": "method.agc",
    "Attack": "api.results",
    "Audit": "api.results",
    "Bench": "api.results",
    "CheckFailed": "runtime.errors",
    "Membership": "api.results",
    "MemorizationWatch": "api.memorization_watch",
    "Pack": "api.results",
    "Run": "api.results",
    "SampleSet": "api.results",
    "Shards": "api.results",
    "UserError": "runtime.errors",
    "Verification": "api.results",
    "attack": "api.verbs",
    "audit": "api.verbs",
    "average": "api.verbs",
    "average_states": "method.averaging",
    "bench": "api.verbs",
    "card": "api.verbs",
    "mean_of_kept": "method.agc",
    "membership": "api.verbs",
    "pack": "api.verbs",
    "partition": "method.sharding",
    "report": "api.verbs",
    "sample": "api.verbs",
    "shards": "api.verbs",
    "train": "api.verbs",
    "verify": "api.verbs",
}

__all__ = [
    "AntiGradientControl",
    "Attack",
    "Audit",
    "Bench",
    "CheckFailed",
    "Membership",
    "MemorizationWatch",
    "Pack",
    "Run",
    "SampleSet",
    "Shards",
    "UserError",
    "Verification",
    "__version__",
    "attack",
    "audit",
    "average",
    "average_states",
    "bench",
    "card",
    "mean_of_kept",
    "membership",
    "pack",
    "partition",
    "report",
    "sample",
    "shards",
    "train",
    "verify",
]

#: The one place where the version stands: pyproject.toml reads it here.
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # torch takes seconds to import; `iet-agc --help` must not wait for it
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
