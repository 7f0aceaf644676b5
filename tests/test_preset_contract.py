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


def _shown(settings: Settings) -> dict[str, Any]:
    """Every setting as help and settings.toml have it: an option that other image sets got later has its default."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value, _ in documented(settings)}


def _contract() -> dict[str, Any]:
    defaults, shown, presets = _values(validate({})), _shown(validate({})), {}
    for name in preset_names():
        settings = load_preset(name)
        changed = {key: value for key, value in _values(settings).items() if value != shown[key]}
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
    shown, saved = _shown(settings), _values(settings)
    assert [(key, value) for key, value in shown.items() if key in saved] == list(saved.items())
    later = shown.keys() - saved.keys() - {"name", "description"}
    assert {key: shown[key] for key in later} == {key: _shown(validate({}))[key] for key in later}
    assert all(key.startswith("data.") for key in later)


if __name__ == "__main__":
    GOLDEN.write_text(_text(_contract()), encoding="utf-8")
