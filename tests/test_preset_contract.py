"""What presets say and what a run of theirs is known by: a contract with the presets and runs that people keep.

`python -m tests.test_preset_contract` writes the golden file anew, which only a change on purpose may need.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from iet_agc.config.fingerprint import fingerprint
from iet_agc.config.presets import load_preset, preset_names
from iet_agc.config.settings import Settings, documented, validate

GOLDEN = Path(__file__).parent / "golden" / "presets.json"


def _values(settings: Settings) -> dict[str, Any]:
    """Every setting of a run's config.json by its dotted name, in order, but the texts for people."""
    found: dict[str, Any] = {}
    for section, values in json.loads(settings.model_dump_json(exclude={"name", "description"})).items():
        found |= {f"{section}.{name}": value for name, value in values.items()}
    return found


def _contract() -> dict[str, Any]:
    defaults = _values(validate({}))
    presets = {}
    for name in preset_names():
        settings = load_preset(name)
        changed = {key: value for key, value in _values(settings).items() if value != defaults[key]}
        presets[name] = {"fingerprint": fingerprint(settings), "changed": changed}
    return {"defaults": defaults, "presets": presets}


def _text(contract: dict[str, Any]) -> str:
    """JSON with the order of keys, which settings.toml and `--help` have as well."""
    return json.dumps(contract, indent=1) + "\n"


def test_defaults_values_and_fingerprints_of_presets_are_what_they_were() -> None:
    assert _text(_contract()) == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [None, *preset_names()])
def test_what_is_shown_is_what_is_saved(name: str | None) -> None:
    settings = load_preset(name) if name else validate({})
    shown = {key: list(value) if isinstance(value, tuple) else value for key, value, _ in documented(settings)}
    assert list(shown.items())[2:] == list(_values(settings).items())


if __name__ == "__main__":
    GOLDEN.write_text(_text(_contract()), encoding="utf-8")
