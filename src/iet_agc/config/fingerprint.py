"""What the trained weights depend on: the identity of a run, and how two runs differ."""

from iet_agc.config.settings import Settings
from iet_agc.runtime.files import digest

__all__ = ["ADDED", "differences", "essence", "fingerprint"]

#: Settings that came after runs had been trained, and what was done before, by section; see `fingerprint`.
ADDED: dict[str, dict[str, object]] = {
    "data": {"resize": "bicubic", "orient": False, "background": None, "on_bad": "fail"},
    "model": {"initialization": "diffusers"},
    "method": {"keep_duplicates_together": False},
}


def fingerprint(settings: Settings) -> str:
    """SHA-256 of what the trained weights depend on.

    That is the sections data and init (but not where images and model lie), model, text, lora, method and train. A
    setting of `ADDED` counts only where it is another than before it was one: runs of then keep their identity.
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
    return parts


def differences(old: Settings, new: Settings) -> list[str]:
    """Settings that change the weights and differ, as "train.seed 0 is now 1"."""
    return [
        f"{section}.{name} {value} is now {now}"
        for section, values in essence(old).items()
        for name, value in values.items()
        if value != (now := essence(new)[section].get(name))
    ]
