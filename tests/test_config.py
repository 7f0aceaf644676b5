"""Settings: presets, overrides, messages, the fingerprint, and whose folder it is."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from iet_agc.config.data_settings import DATA_OPTIONS, IMAGE_SETS, names_with
from iet_agc.config.fingerprint import ADDED, differences, fingerprint
from iet_agc.config.overrides import customized, override
from iet_agc.config.presets import load_preset, preset_names
from iet_agc.config.run_folder import check_folder, claim_folder, read_settings
from iet_agc.config.settings import Settings, documented, validate
from iet_agc.runtime.errors import UserError

BASE = validate({})

#: For every setting a value that differs from the default and is possible.
OTHER = {
    "name": "mine",
    "description": "another one",
    "data.name": "fashion-mnist",
    "data.root": "/some/where",
    "data.revision": "v1",
    "data.download": True,
    "data.convert_to": "3x64x32",
    "data.resize": "bilinear",
    "data.classes": "folders",
    "data.captions": "/some/where/captions.json",
    "data.subset": "plain",
    "data.train_split": "all",
    "data.held_out_split": "test",
    "data.image_column": "img",
    "data.label_column": "label",
    "data.caption_column": "text",
    "data.cache": "/some/where",
    "data.num_train": 500,
    "data.planted_images": 3,
    "data.planted_copies": 4,
    "data.planted_captions": "same",
    "data.flips": True,
    "data.seed": 1,
    "data.deduplicate": "near",
    "data.planted_kind": "shifted",
    "data.caption": "a photo of sks dog",
    "data.orient": True,
    "data.background": "#2040ff",
    "data.on_bad": "skip",
    "data.crop": "64x32",
    "data.held_out": "/else/where",
    "model.kind": "text-to-image",
    "model.network": "dit",
    "model.objective": "flow",
    "model.channels": 64,
    "model.multipliers": (1, 2),
    "model.blocks": 1,
    "model.attention": (),
    "model.dropout": 0.0,
    "model.groups": 8,
    "model.patch_size": 4,
    "model.width": 64,
    "model.depth": 2,
    "model.heads": 2,
    "model.classes": 10,
    "model.initialization": "ddpm",
    "text.captions": "first",
    "text.embedding_noise": 0.1,
    "text.drop_caption": 0.2,
    "text.train_encoder": True,
    "text.random_caption": 0.4,
    "text.random_tokens": 2,
    "text.random_numbers": 1,
    "text.repeat_words": 3,
    "text.change_rate": 0.5,
    "text.too_long": "cut",
    "lora.rank": 4,
    "lora.alpha": 8.0,
    "init.model": "runs/a",
    "init.revision": "v1",
    "init.sha256": "0" * 64,
    "method.members": 2,
    "method.rounds": 3,
    "method.sharding": "random",
    "method.keep_duplicates_together": True,
    "method.skip_below": 0.5,
    "method.decay": 0.9,
    "method.skip_within": "gap",
    "method.skip_reference": "held-out",
    "method.random_skip": 0.25,
    "method.exchange": 0.25,
    "train.steps": 10,
    "train.batch_size": 16,
    "train.learning_rate": 1e-3,
    "train.weight_decay": 0.01,
    "train.warmup_steps": 0,
    "train.learning_rate_fall": 0.5,
    "train.grad_clip": 2.0,
    "train.ema_decay": 0.99,
    "train.average_last": 0.1,
    "train.timesteps": "u-shaped",
    "train.gap_low": 100,
    "train.gap_high": 200,
    "train.gap_density": 0.2,
    "train.u_sharpness": 6.0,
    "train.logit_mean": -0.5,
    "train.logit_deviation": 0.5,
    "train.target": "smoothed",
    "train.target_timestep": 300,
    "train.min_snr": 5.0,
    "train.dp_noise": 1.0,
    "train.dp_clip": 0.5,
    "train.dp_multiplicity": 4,
    "train.dp_delta": 1e-6,
    "train.seed": 5,
    "train.precision": "bfloat16",
    "train.compile": True,
    "sample.num": 64,
    "sample.steps": 10,
    "sample.weights": "ema",
    "sample.first_seed": 7,
    "sample.guidance": 1.5,
    "sample.scheduler": "dpm++",
    "sample.random_tokens": 2,
    "sample.random_numbers": 1,
    "sample.repeat_words": 3,
    "sample.embedding_noise": 0.1,
    "sample.precision": "auto",
    "sample.amg_strength": 30.0,
    "run.device": "cpu",
    "run.threads": 1,
    "run.save_every": 10,
    "run.log_every": 1,
    "run.preview_images": 0,
    "run.watch_every": 100,
    "run.watch_images": 64,
    "run.watch_denoising_steps": 5,
    "run.keep_watched": True,
    "run.stop_when_copying": True,
}


#: What other setting it takes for one to have an effect.
NEEDS = {
    **{name: {"train.timesteps": "gap"} for name in ("train.gap_low", "train.gap_high", "train.gap_density")},
    "train.u_sharpness": {"train.timesteps": "u-shaped"},
    **{name: {"train.timesteps": "logit-normal"} for name in ("train.logit_mean", "train.logit_deviation")},
    **{name: {"model.network": "dit"} for name in ("model.patch_size", "model.width", "model.depth", "model.heads")},
    "train.target_timestep": {"train.target": "ambient"},
    "train.dp_noise": {"model.dropout": 0.0},
    **{
        name: {"model.dropout": 0.0, "train.dp_noise": 1.0}
        for name in ("train.dp_clip", "train.dp_multiplicity", "train.dp_delta")
    },
    **{name: {"run.watch_every": 7} for name in ("run.keep_watched", "run.stop_when_copying")},
    "method.skip_within": {"method.skip_below": 0.5, "train.timesteps": "gap"},
    "method.skip_reference": {"method.skip_below": 0.5},
    "method.exchange": {"method.members": 4, "method.rounds": 5, "method.skip_below": 0.5},
}


def _base(name: str) -> Settings:
    """Settings in which a setting can be replaced: the defaults, or with what it needs, such as an image set."""
    if name in NEEDS:
        return override(BASE, NEEDS[name])
    owners = names_with(name.removeprefix("data.")) if name.startswith("data.") else []
    return override(BASE, {"data.name": owners[0]}) if owners and "digits" not in owners else BASE


def _written(value: Any) -> str:
    """As a user writes it."""
    return (
        ",".join(str(part) for part in value)
        if isinstance(value, tuple)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _value(settings: Settings, name: str) -> Any:
    return {known: value for known, value, _ in documented(settings)}[name]


# -- presets


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_says_what_it_is(name: str) -> None:
    settings = load_preset(name)
    assert settings.description
    assert "\n" not in settings.description
    assert validate(settings.model_dump()) == settings
    assert validate(json.loads(settings.model_dump_json())) == settings


@pytest.mark.parametrize("name", preset_names())
def test_a_presets_method_is_in_its_name(name: str) -> None:
    method = load_preset(name).method
    if name.endswith("-default"):
        assert (method.members, method.skip_below, method.random_skip) == (1, 0, 0)
    if name.endswith("-iet"):
        assert method.members > 1
        assert method.rounds > 1
        assert method.skip_below == 0
    if name.endswith("-agc"):
        assert method.skip_below != 0
        assert (method.members > 1) == name.endswith("-iet-agc")


def test_preset_names_are_sorted_and_plain() -> None:
    assert preset_names() == sorted(preset_names())
    assert all(name == name.lower() and "." not in name and "/" not in name for name in preset_names())


def test_an_unknown_preset_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iet_agc.config.presets.preset_names", lambda: ["cifar10-default", "cifar10-iet-agc"])
    with pytest.raises(
        ValueError,
        match=r"unknown preset 'cifar10-ietagc'; did you mean 'cifar10-iet-agc'.*'iet-agc presets' lists them",
    ):
        load_preset("cifar10-ietagc")
    with pytest.raises(ValueError, match=r"unknown preset '../../secret'"):
        load_preset("../../secret")


# -- presets that extend another


def _written_preset(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


def test_a_preset_takes_from_another_what_it_leaves_out(tmp_path: Path) -> None:
    file = _written_preset(tmp_path, 'extends = "digits-iet-agc"\n[train]\nsteps = 5\n[data]\nseed = 3\n')
    changed, base = load_preset(file), load_preset("digits-iet-agc")
    assert changed.name == "mine"
    assert changed.description == base.description
    assert differences(base, changed) == ["data.seed 0 is now 3", "train.steps 75 is now 5"]


def test_a_preset_of_a_preset_of_a_preset() -> None:
    settings = load_preset("cifar100-conditional-iet-agc")
    assert (settings.data.name, settings.model.classes, settings.method.rounds) == ("cifar100", 100, 10)
    assert settings.name == "cifar100-conditional-iet-agc"


def test_a_file_takes_from_another_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "base.toml").write_text('extends = "digits-iet-agc"\n[train]\nsteps = 5\nbatch_size = 9\n')
    (tmp_path / "shared" / "further.toml").write_text('extends = "base.toml"\n[train]\nbatch_size = 7\n')
    file = _written_preset(tmp_path, 'extends = "shared/further.toml"\n[data]\nseed = 3\n')
    monkeypatch.chdir("/")  # what is extended lies beside the file, wherever one stands
    changed = load_preset(file)
    assert changed.name == "mine"
    assert differences(load_preset("digits-iet-agc"), changed) == [
        "data.seed 0 is now 3",
        "train.steps 75 is now 5",
        f"train.batch_size {load_preset('digits-iet-agc').train.batch_size} is now 7",
    ]


@pytest.mark.parametrize(
    ("text", "others", "message"),
    [
        ('extends = "mine.toml"', {}, "extends 'mine.toml', and so, by that, itself"),
        ('extends = "a.toml"', {"a": 'extends = "./b.toml"', "b": 'extends = "a.toml"'}, "extends 'a.toml', and so"),
        ('extends = "a.toml"', {}, "a.toml is not there"),
        ('extends = "a.toml"', {"a": "= 3"}, "a.toml is damaged, "),
        ('extends = "a.toml"', {"a": 'extends = "digits-iet-agd"'}, "did you mean 'digits-iet-agc'?"),
        ('extends = "a.toml"', {"a": "[train]\nstepz = 3"}, "unknown setting 'train.stepz'"),
    ],
)
def test_files_that_cannot_be_extended_are_one_line(
    tmp_path: Path, text: str, others: dict[str, str], message: str
) -> None:
    for name, content in others.items():
        (tmp_path / f"{name}.toml").write_text(content)
    with pytest.raises(UserError, match=r"mine\.toml is no preset: ") as error:
        load_preset(_written_preset(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "digits-iet-agd"', "extends 'digits-iet-agd', which is no preset; did you mean 'digits-iet-agc'?"),
        ('extends = "../secret"', "extends '../secret', which is no preset"),
        ("extends = 3", "extends '3', which is no preset"),
        ('extends = "digits-iet"\n[train]\nstepz = 3', "unknown setting 'train.stepz'; did you mean 'train.steps'?"),
        ('extends = "digits-iet"\ntrain = 3', "setting train: "),
        ('extends = "digits-iet"\ndata = 3', "setting data: "),
        ('extends = "digits-iet"\n[data]\nname = ["folder"]\nplanted_images = 0', "setting data.name: "),
        (
            'extends = "digits-iet"\n[data]\nroot = "x"\nname = "folder"\nplanted_images = "y"',
            "setting data.planted_images: ",
        ),
    ],
)
def test_impossible_extensions_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match="is no preset: ") as error:
        load_preset(_written_preset(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# -- settings


def test_every_setting_is_documented() -> None:
    rows = list(documented(BASE))
    assert [name for name, *_ in rows] == list(OTHER)
    for name, _, meaning in rows:
        assert len(meaning) > 5, name
        assert "\n" not in meaning


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        BASE.train.steps = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="frozen"):
        BASE.description = "x"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_can_be_replaced(name: str) -> None:
    base = _base(name)
    assert _value(base, name) != OTHER[name]
    changed = override(base, {name: _written(OTHER[name])})
    assert _value(changed, name) == OTHER[name]
    assert type(_value(changed, name)) is type(OTHER[name])
    for other, value, _ in documented(changed):
        if other != name:
            assert value == _value(base, other)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.batch_size", "64", 64),
        ("train.batch-size", "64", 64),
        ("train.learning_rate", "1e-3", 1e-3),
        ("train.learning_rate", "1", 1.0),
        ("data.flips", "true", True),
        ("data.flips", "false", False),
        ("model.multipliers", "1,2,4", (1, 2, 4)),
        ("model.multipliers", "[1, 2, 4]", (1, 2, 4)),
        ("model.multipliers", "2", (2,)),
        ("model.attention", "[]", ()),
        ("data.num_train", "none", None),
        ("data.num_train", "None", None),
        ("data.root", "none", None),
        ("data.root", "/a folder/with = signs # and more", "/a folder/with = signs # and more"),
        ("data.root", "'/quoted'", "/quoted"),
        ("data.name", "folder", "folder"),
    ],
)
def test_override_reads_values_as_in_a_preset(name: str, text: str, value: Any) -> None:
    start = override(BASE, {"data.num_train": "5", "data.root": "/x", "data.flips": "false"})
    assert _value(override(start, {name: text}), name.replace("-", "_")) == value


@pytest.mark.parametrize("text", ["2024", "2024-01-01", "true", "1e3"])
def test_strings_need_no_quotes(text: str) -> None:
    """A folder may well be called 2024."""
    assert override(BASE, {"data.root": text}).data.root == text


def test_override_leaves_its_input_alone() -> None:
    override(BASE, {"train.steps": "3", "model.attention": "4"})
    assert validate({}) == BASE


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.batchsize", "1", "unknown setting 'train.batchsize'; did you mean 'train.batch_size'?"),
        ("model.learning_rate", "1", "unknown setting 'model.learning_rate'; did you mean 'train.learning_rate'?"),
        ("skip_below", "1", "did you mean 'method.skip_below'?"),
        ("qqq.zzz", "1", "unknown setting 'qqq.zzz'"),
        ("train", "1", "unknown setting 'train'"),
        ("train.steps", "0", "setting train.steps: input should be greater than or equal to 1 (it is 0)"),
        ("train.steps", "many", "setting train.steps: "),
        ("train.steps", "none", "setting train.steps: "),
        ("train.steps", "1.5", "setting train.steps: "),
        ("train.learning_rate", "nan", "setting train.learning_rate: "),
        ("method.decay", "1", "setting method.decay: input should be less than 1 (it is 1)"),
        (
            "data.name",
            "mnist",
            "setting data.name: input should be 'digits', 'fashion-mnist', 'cifar10', 'cifar100', 'afhq-dog', "
            "'laion-10k', 'emoji', 'hugging-face' or 'folder' (it is 'mnist')",
        ),
        ("data.flips", "perhaps", "setting data.flips: "),
        ("model.multipliers", "[]", "setting model.multipliers: "),
        ("model.multipliers", "1,x", "setting model.multipliers"),
        ("sample.steps", "1001", "setting sample.steps: "),
    ],
)
def test_impossible_overrides_are_one_line(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match="setting") as error:
        override(BASE, {name: text})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": {"rot": "x"}}, "unknown setting 'data.rot'; did you mean 'data.root'?"),
        ({"train": {"dropout": 0.1}}, "unknown setting 'train.dropout'; did you mean 'model.dropout'?"),
        ({"nonsense": 1}, "unknown setting 'nonsense'"),
        ({"data": {"num_train": 3, "planted_images": 5}}, "planted_images 5 is more than num_train 3"),
        ({"data": 3}, "setting data: "),
        ({"model": {"channels": "wide"}}, "setting model.channels: "),
        (
            {"model": {"kind": "text-to-image", "initialization": "ddpm"}},
            "model.initialization has no effect on text-to-image, whose U-Net is that of init.model: leave it out",
        ),
        (
            {"method": {"sharding": "contiguous", "keep_duplicates_together": True}},
            "setting method: keep_duplicates_together true needs another order than the one that sharding 'contiguous' "
            "leaves as it is: use stratified or random, or leave it out",
        ),
    ],
)
def test_impossible_contents_are_one_line(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="setting") as error:
        validate(content)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("model.rounds", "method.rounds"),
        ("data.decay", "method.decay"),
        ("train.decay", "method.decay"),
        ("train.members", "method.members"),
        ("model.flips", "data.flips"),
        ("data.dropout", "model.dropout"),
        ("train.sharding", "method.sharding"),
        ("method.device", "run.device"),
    ],
)
def test_the_right_name_in_the_wrong_section_is_found(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match="did you mean") as error:
        override(BASE, {name: "1"})
    assert f"did you mean {meant!r}?" in str(error.value)


@pytest.mark.parametrize("multipliers", ["0", "1,0", "-1"])
def test_a_level_has_at_least_its_channels(multipliers: str) -> None:
    with pytest.raises(ValueError, match=r"model\.multipliers"):
        override(BASE, {"model.multipliers": multipliers})


# -- image sets


OPTIONS_OF_SOME = [name for name in DATA_OPTIONS if len(names_with(name)) < len(IMAGE_SETS)]


@pytest.mark.parametrize("option", OPTIONS_OF_SOME)
@pytest.mark.parametrize("name", IMAGE_SETS)
def test_an_image_set_takes_its_own_options_and_no_others(name: str, option: str) -> None:
    changes = {"data.name": name, f"data.{option}": _written(OTHER[f"data.{option}"])}
    if option in IMAGE_SETS[name].model_fields:
        assert _value(override(BASE, changes), f"data.{option}") == OTHER[f"data.{option}"]
        return
    with pytest.raises(UserError) as error:
        override(BASE, changes)
    owners = ", ".join(names_with(option))
    assert str(error.value) == f"data.{option} has no effect on {name}, it is for {owners}: leave it out"


def test_image_sets_have_a_reader_each() -> None:
    from iet_agc.data.datasets.registry import READERS

    assert set(READERS) == set(IMAGE_SETS.values())


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_options_of_other_sets_that_are_not_set_may_stand_in_a_config(name: str) -> None:
    """As in those of all runs; options that came later stand in the config of their own sets only."""
    settings = override(BASE, {"data.name": name})
    content = json.loads(settings.model_dump_json())
    later = {"orient", "background", "on_bad", "crop", "held_out"} - IMAGE_SETS[name].model_fields.keys()
    assert list(content["data"]) == [option for option in DATA_OPTIONS if option not in later]
    assert validate(content) == settings
    assert type(settings.data) is IMAGE_SETS[name]


def test_options_of_some_image_sets_say_of_which() -> None:
    meanings = {name: meaning for name, _, meaning in documented(BASE)}
    assert meanings["data.captions"].startswith("of laion-10k, folder: ")
    assert meanings["data.download"].startswith("of fashion-mnist, cifar10, cifar100: ")
    assert not meanings["data.seed"].startswith("of ")


@pytest.mark.parametrize("name", [None, 3, ["digits"]])
def test_a_name_that_is_no_image_sets(name: Any) -> None:
    with pytest.raises(UserError, match=r"setting data\.name: input should be 'digits', .* or 'folder' \(it is "):
        validate({"data": {"name": name}})


def test_images_without_copies_are_those_images() -> None:
    planted = {"data.planted_images": "2", "data.planted_copies": "3", "data.planted_captions": "same"}
    emoji = override(BASE, {"data.name": "emoji"})
    assert override(emoji, planted).data.without_copies() == emoji.data


# -- fingerprint and differences


@pytest.mark.parametrize("name", OTHER)
def test_fingerprint_is_of_what_the_weights_depend_on(name: str) -> None:
    base = _base(name)
    changed = override(base, {name: _written(OTHER[name])})
    harmless = name in {
        "name",
        "description",
        "data.root",
        "data.revision",
        "data.download",
        "data.cache",
        "data.held_out",
        "init.model",
        "init.revision",
    } or name.startswith(("sample.", "run."))
    assert (fingerprint(changed) == fingerprint(base)) == harmless
    if harmless:
        assert differences(base, changed) == []
    else:
        (difference,) = differences(base, changed)
        assert difference.startswith(f"{name} ")
        assert " is now " in difference


def test_settings_that_came_later_leave_older_runs_their_identity(tmp_path: Path) -> None:
    """What `fingerprint` gave before there were any of these settings, and a config.json of that time."""
    assert fingerprint(BASE) == "dff0bbd0d7d4bfbf9cc5b6631b1e4899fa53b272a56a7b866dcae7bdeff7ecb8"
    digits = load_preset("digits-iet-agc")
    assert fingerprint(digits) == "4baccd1cd6782a4365af19642cb451545325b42ba3c60d44852d4e96c78c3e18"
    content = digits.model_dump(mode="json")
    for section, before in ADDED.items():
        for name, value in before.items():
            assert content[section].pop(name, value) == value
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "settings.toml").touch()
    assert read_settings(tmp_path) == digits
    check_folder(digits, tmp_path)
    with pytest.raises(ValueError, match=r"holds another run \(data\.resize bicubic is now bilinear\)"):
        check_folder(override(digits, {"data.resize": "bilinear"}), tmp_path)


def test_a_gap_that_is_yet_to_be_found_is_taken_to_be_the_one_that_was(tmp_path: Path) -> None:
    gap = override(load_preset("digits-gap"), {"train.gap_low": "none", "train.gap_high": "none"})
    claim_folder(override(gap, {"train.gap_low": "125", "train.gap_high": "211"}), tmp_path)
    assert check_folder(gap, tmp_path) is None
    with pytest.raises(UserError, match=r"holds another run \(train\.gap_low 125 is now 130\)"):
        check_folder(override(gap, {"train.gap_low": "130"}), tmp_path)


def test_differences_name_old_and_new() -> None:
    changed = override(BASE, {"train.seed": "3", "method.members": "10", "run.threads": "4"})
    assert differences(BASE, changed) == ["method.members 1 is now 10", "train.seed 0 is now 3"]
    assert differences(BASE, BASE) == []
    assert len(fingerprint(BASE)) == 64


# -- folders


def test_a_new_folder_is_claimed_and_read_back(tmp_path: Path) -> None:
    settings = override(BASE, {"train.steps": "7", "data.num_train": "none", "model.attention": "4,8"})
    claim_folder(settings, tmp_path / "deep" / "run")
    assert read_settings(tmp_path / "deep" / "run") == settings
    assert {file.name for file in (tmp_path / "deep" / "run").iterdir()} == {"config.json", "settings.toml"}
    claim_folder(settings, tmp_path / "deep" / "run")  # the same again is a resume


def test_an_empty_folder_may_be_claimed(tmp_path: Path) -> None:
    claim_folder(BASE, tmp_path)
    assert read_settings(tmp_path) == BASE


def test_the_same_run_elsewhere_or_sampled_otherwise_is_the_same_run(tmp_path: Path) -> None:
    claim_folder(BASE, tmp_path)
    moved = override(BASE, {"data.root": "/moved", "run.log_every": "1", "sample.num": "10"})
    claim_folder(moved, tmp_path)
    assert read_settings(tmp_path) == moved


def test_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    claim_folder(BASE, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds another run \(train.seed 0 is now 9\): choose another output"):
        claim_folder(override(BASE, {"train.seed": "9"}), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_someone_elses_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run: choose another output"):
        claim_folder(BASE, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=str(out)):
            claim_folder(BASE, out)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"is not a run: it has no config.json"):
            read_settings(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"train": {"steps"', b"\xff\xfe", b"[]", b"null", b'{"train": {"steps": 0}}', b'{"unheard": 1}'],
)
def test_a_damaged_config_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    for call in (lambda: read_settings(tmp_path), lambda: claim_folder(BASE, tmp_path)):
        with pytest.raises(ValueError, match=r"config\.json") as error:
            call()
        assert str(tmp_path) in str(error.value)
        assert "\n" not in str(error.value)
    assert (tmp_path / "config.json").read_bytes() == content


def test_what_was_accepted_can_be_resumed(tmp_path: Path) -> None:
    """JSON has no infinity: a value that cannot be written must be refused, or come back."""
    try:
        settings = override(BASE, {"train.grad_clip": "inf"})
    except ValueError:
        return
    claim_folder(settings, tmp_path)
    assert read_settings(tmp_path) == settings


def test_settings_are_written_for_people_as_a_preset(tmp_path: Path) -> None:
    settings = override(load_preset("digits-iet-agc"), {"train.seed": "7", "description": 'with "quotes" and ü'})
    claim_folder(settings, tmp_path / "run")
    text = (tmp_path / "run" / "settings.toml").read_text()
    for name, _, meaning in documented(settings):
        assert f"# {meaning}" in text, name
    assert load_preset(str(tmp_path / "run" / "settings.toml")) == settings


@pytest.mark.parametrize("content", [b"\xff", b"[train", b"[train]\nstepz = 3", b"[train]\nsteps = 0"])
def test_a_preset_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.toml"
    with pytest.raises(ValueError, match=r"mine\.toml is not there"):
        load_preset(str(file))
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.toml is (not UTF-8|damaged|no preset)") as error:
        load_preset(str(file))
    assert "\n" not in str(error.value)


def test_seeds_that_would_repeat_are_refused() -> None:
    override(BASE, {"sample.first_seed": str(2**32 - 10), "sample.num": "10"})
    for first in (2**32 - 9, 2**32, 2**64):
        with pytest.raises(ValueError, match=r"more than 2\^32, so seeds would repeat"):
            override(BASE, {"sample.first_seed": str(first), "sample.num": "10"})


# -- a preset with other images


PLANTED = [name for name in preset_names() if load_preset(name).data.planted_images]


def test_presets_that_plant() -> None:
    assert {name.split("-")[0] for name in PLANTED} == {"digits", "fashion", "emoji"}


@pytest.mark.parametrize("name", PLANTED)
def test_a_preset_does_not_plant_a_persons_own_images_unasked(name: str) -> None:
    preset, mine = load_preset(name), {"data.name": "folder", "data.root": "/photos"}
    with pytest.raises(ValueError, match=rf"{name} plants 2[04] of its own images [14]0 times each, and data.name"):
        customized(preset, mine)
    for count in ("0", "20"):
        found = customized(preset, mine | {"data.planted-images": count})
        assert found.data.planted_images == int(count)
        assert found.description.startswith(f"As {name}, but data.name folder, data.root /photos")
        assert found == override(preset, mine | {"data.planted_images": count, "description": found.description})
    assert customized(preset, mine | {"data.planted_copies": "1"}).data.planted_copies == 1  # which is none


@pytest.mark.parametrize(
    "changes", [{"train.seed": "1"}, {"data.seed": "4"}, {"data.root": "/elsewhere"}, {"data.download": "true"}]
)
def test_the_same_images_keep_planting_and_description(changes: dict[str, str]) -> None:
    preset = load_preset("fashion-mnist-default")
    assert customized(preset, changes) == override(preset, changes)


def test_a_description_does_not_outlive_what_it_describes() -> None:
    preset = load_preset("digits-default")
    found = customized(preset, {"data.planted_images": "0", "data.num_train": "none"})
    assert found.description == "As digits-default, but data.num_train none, data.planted_images 0"
    assert customized(preset, {"data.num_train": "500", "description": "mine"}).description == "mine"


def test_another_folder_is_another_image_set(tmp_path: Path) -> None:
    text = 'description = "cats"\n[data]\nname = "folder"\nroot = "cats"\nplanted_images = 3\nplanted_copies = 9\n'
    preset = load_preset(_written_preset(tmp_path, text))
    assert customized(preset, {"train.steps": "5"}).description == "cats"
    with pytest.raises(ValueError, match=r"mine plants 3 of its own images 9 times each, and data.root dogs"):
        customized(preset, {"data.root": "dogs"})
    assert "cats" not in customized(preset, {"data.root": "dogs", "data.planted_images": "0"}).description


def test_a_preset_that_extends_another_with_other_images(tmp_path: Path) -> None:
    text = 'extends = "digits-iet-agc"\n[data]\nname = "folder"\nroot = "/photos"\n'
    with pytest.raises(ValueError, match=r"mine.toml is no preset: digits-iet-agc plants 20 of its own images"):
        load_preset(_written_preset(tmp_path, text))
    found = load_preset(_written_preset(tmp_path, text + "planted_images = 0\n"))
    assert found.description == "As digits-iet-agc, but data.name folder, data.root /photos, data.planted_images 0"
    told = load_preset(_written_preset(tmp_path, 'description = "x"\n' + text + "planted_images = 5\n"))
    assert (told.description, told.data.planted_images) == ("x", 5)
