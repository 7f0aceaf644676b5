"""What the trained weights depend on: the identity of a run, and how two runs differ."""

from iet_agc.config.settings import Settings
from iet_agc.runtime.files import digest

__all__ = ["ADDED", "as_found", "differences", "essence", "fingerprint", "goes_on"]

#: Settings that came after runs had been trained, and what was done before, by section; see `fingerprint`.
ADDED: dict[str, dict[str, object]] = {
    "data": {
        "resize": "bicubic",
        "orient": False,
        "background": None,
        "on_bad": "fail",
        "crop": None,
        "caption": None,
        "deduplicate": None,
        "planted_kind": "exact",
    },
    "model": {
        "initialization": "diffusers",
        "network": "unet",
        "objective": "noise",
        "patch_size": 2,
        "width": 384,
        "depth": 12,
        "heads": 6,
    },
    "method": {"keep_duplicates_together": False, "exchange": 0.0, "skip_within": "all", "skip_reference": "training"},
    "train": {
        "learning_rate_fall": 0.0,
        "average_last": 0.0,
        "timesteps": "uniform",
        "gap_low": None,
        "gap_high": None,
        "gap_density": 0.05,
        "u_sharpness": 4.0,
        "logit_mean": 0.0,
        "logit_deviation": 1.0,
        "target": "noise",
        "target_timestep": 200,
        "min_snr": 0.0,
        "dp_noise": 0.0,
        "dp_clip": 1.0,
        "dp_multiplicity": 1,
        "dp_delta": 1e-5,
    },
}

#: Settings that a run finds out for itself where they are left open, and how that is said, by section.
_OPEN: dict[str, dict[str, object]] = {
    "init": {"sha256": None, "revision": None},
    "train": {"gap_low": None, "gap_high": None, "precision": "auto"},
}


def fingerprint(settings: Settings) -> str:
    """SHA-256 of what the trained weights depend on.

    That is the sections data and init (but not where images and model lie, nor which are held out by a folder), model,
    text, lora, method and train. A setting of `ADDED` counts only where it is another than before it was one: runs of
    then keep their identity.
    """
    parts = essence(settings)
    for section, before in ADDED.items():
        parts[section] = {name: value for name, value in parts[section].items() if (name, value) not in before.items()}
    return digest(parts)


def essence(settings: Settings) -> dict[str, dict[str, object]]:
    """The settings that the trained weights depend on, by section, JSON values only; see `fingerprint`."""
    parts = settings.model_dump(mode="json", include={"data", "model", "text", "lora", "init", "method", "train"})
    del parts["init"]["model"], parts["init"]["revision"]  # init.sha256 says which it was
    for place in ("root", "revision", "download", "cache"):  # the images say which they are
        del parts["data"][place]
    parts["data"].pop("held_out", None)  # of folders only
    return parts


def differences(old: Settings, new: Settings) -> list[str]:
    """Settings that change the weights and differ, as "train.seed 0 is now 1"."""
    return [
        f"{section}.{name} {value} is now {now}"
        for section, values in essence(old).items()
        for name, value in values.items()
        if value != (now := essence(new)[section].get(name))
    ]


def as_found(settings: Settings, run: Settings) -> Settings:
    """The settings with what a run has found out where they leave it open: the gap, the precision, initial weights.

    Args:
        settings: as they are asked for, before anything is read.
        run: those that a folder holds.
    """
    update: dict[str, object] = {}
    for section, left in _OPEN.items():
        asked, there = getattr(settings, section), getattr(run, section)
        found = {name: getattr(there, name) for name, value in left.items() if getattr(asked, name) == value}
        if section == "init" and not settings.init.model:
            continue  # weights that are drawn have no hash
        update[section] = asked.model_copy(update=found)
    return settings.model_copy(update=update)


def goes_on(old: Settings, new: Settings) -> bool:
    """Whether a run of `new` begins as one of `old` does and is longer, so that the one can become the other.

    More rounds follow those that there are. More steps make the rounds longer, which leaves what was trained as it is
    only in one round of one member: after any other stands an average. Nothing else follows from either number, unless
    something is done towards the end of a run: where the learning rate falls or weights are averaged there, a longer
    run is another one from that point on.
    """
    if old.looks_to_its_end:
        return False
    rounds, steps = new.method.rounds, new.train.steps
    method = old.method.model_copy(update={"rounds": rounds})
    longer = old.model_copy(update={"method": method, "train": old.train.model_copy(update={"steps": steps})})
    is_one_round = old.method.members == old.method.rounds == 1
    raised = steps > old.train.steps if steps != old.train.steps and is_one_round else steps == old.train.steps
    more = (rounds, steps) != (old.method.rounds, old.train.steps)
    return raised and more and rounds >= old.method.rounds and not differences(longer, new)
