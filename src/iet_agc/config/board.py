"""Boards: which methods are compared on which data, as a TOML file; and the runs that follow from one. No torch.

    baseline = "default"                        # every method is compared with this one
    budget = 51200                              # images that each run sees, whatever its method
    samples = 512                               # images drawn from each run
    seeds = [0, 1, 2]
    methods = ["default", "agc", "mine.toml"]   # a line each: of the package, or a file beside the board

    [settings]                                  # of all runs
    sample.weights = "ema"

    [[data]]                                    # an arm: a training set, and how long it is trained on
    name = "digits"
    preset = "digits-default"

A method is a file (or a table `[[method]]` of the board, with its name): settings, and a knob that makes it a curve.

    description = "Anti-Gradient Control"
    [knob]
    setting = "method.skip_below"
    values = [0.3, 0.5, 0.8]

One that changes how samples are drawn says so: sampling = "amg".

A board that is another one with other methods says `extends = "small"`, or the path of a file relative to its own: what
it leaves out is as there. Tables are merged, lists replaced.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, JsonValue, ValidationError, model_validator

from iet_agc.config.extending import merged, read_base
from iet_agc.config.overrides import customized, override
from iet_agc.config.presets import load_preset
from iet_agc.config.section import Section
from iet_agc.config.settings import Settings
from iet_agc.runtime.errors import UserError, did_you_mean, one_line
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import parse_toml, read_toml

__all__ = ["BUDGET", "Arm", "Board", "Cell", "Knob", "Method", "board_names", "load_board", "plan"]

#: The knob that is no setting: the share of the budget that a run sees, for methods that stop early.
BUDGET = "budget"

#: What a board decides, so no arm or method may.
_DECIDED = {
    "train.steps": "it follows from the budget",
    "train.seed": "it is one of the board's seeds",
    "sample.num": "it is the board's samples",
    "name": "it is that of the arm and the method",
    "description": "it is that of the board",
}

#: Runs whose steps cannot be cut so that they see the budget may miss it by so much of it.
_MOST_OFF = 0.02

#: Names of arms and methods are names of folders.
_NAME = r"^[a-z0-9][a-z0-9+._-]*$"


class _Strict(Section, frozen=True):
    """Of values of just the kinds that are asked for."""

    model_config = ConfigDict(strict=True)


class Knob(_Strict, frozen=True):
    """What makes a method a curve."""

    setting: str = Field(
        description="dotted name of a setting; or 'budget', the share of the budget that is seen, in (0, 1]"
    )
    values: Annotated[tuple[bool | int | float | str, ...], Field(min_length=1)] = Field(
        description="its values, in the order in which the curve goes through them"
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len({_folder_of(value) for value in self.values}) < len(self.values):
            raise UserError(f"knob {self.setting} has a value twice: {', '.join(map(str, self.values))}")
        if self.setting == BUDGET and not all(type(one) in (int, float) and 0 < float(one) <= 1 for one in self.values):
            raise UserError(f"knob {BUDGET} is a share in (0, 1], not {', '.join(map(str, self.values))}")
        return self


class _Changes(_Strict, frozen=True):
    """What arms and methods are made of."""

    name: str = Field(pattern=_NAME, description="name of its folder: small letters, digits, and + . _ -")
    description: str = Field(default="", description="what it is, in one line")
    settings: dict[str, JsonValue] = Field(default={}, description="settings that it replaces, by dotted name")


class Method(_Changes, frozen=True):
    """How to train, and the knob that is turned."""

    knob: Knob | None = Field(default=None, description="none: a single point")
    sampling: Literal["amg", "guard"] | None = Field(
        default=None, description="keeps samples from training images: amg or guard, as 'iet-agc sample' has them"
    )
    arms: tuple[str, ...] = Field(default=(), description="the arms that it is for; none: all")


class Arm(_Changes, frozen=True):
    """A training set and how long it is trained on."""

    preset: str = Field(description="preset that its runs start from, or a .toml file, relative to the board's")
    times: float = Field(default=1, gt=0, description="its budget, as a multiple of the board's")
    reference: tuple[float, float] | None = Field(
        default=None,
        description="copied share and held-out distance of the corner up to which hypervolumes are taken; none: the "
        "worst means of the arm",
    )


class Board(_Strict, frozen=True):
    """A comparison of methods.

    Attributes:
        name: of the file.
    """

    name: str = Field(default="board", pattern=_NAME)
    title: str = Field(default="", description="of its page")
    description: str = Field(default="", description="what it is, and what it is not, in a sentence or two")
    baseline: str = Field(description="the method that every other one is compared with; a single point")
    budget: int = Field(ge=1, description="images that each run sees, skipped ones included; arms multiply it")
    samples: int = Field(ge=1, description="number of images that are drawn from each run")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = Field(
        description="train.seed of the runs of each point; of fewer than 3 little can be claimed"
    )
    settings: dict[str, JsonValue] = Field(default={}, description="settings of all runs, by dotted name")
    data: Annotated[tuple[Arm, ...], Field(min_length=1)] = Field(description="the arms")
    methods: tuple[str, ...] = Field(
        default=(), description="methods by name, or .toml files relative to the board's, a line each"
    )
    method: tuple[Method, ...] = Field(default=(), description="methods that stand in the board itself")

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> Self:
        for what, names in (("data", self.data), ("method", self.method)):
            each = [one.name for one in names]
            if repeated := next((name for name in each if each.count(name) > 1), None):
                raise UserError(f"there are two {what} entries named {repeated!r}: name one differently")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds {', '.join(map(str, self.seeds))} repeat one")
        return self


@dataclass(frozen=True)
class Cell:
    """One run of a board.

    Attributes:
        arm, method: by name.
        knob: what the method turns, None where it turns nothing; `value` is where it stands.
        seed: train.seed.
        settings: all that the run and its samples depend on, but for
        sampling: what keeps samples from training images, see `Method`.
    """

    arm: str
    method: str
    knob: str | None
    value: bool | int | float | str | None
    seed: int
    settings: Settings
    sampling: Literal["amg", "guard"] | None = None

    @property
    def folder(self) -> str:
        """Of the run, below that of the board."""
        point = [_folder_of(self.value)] if self.knob else []
        return str(PurePosixPath("cells", self.arm, self.method, *point, f"seed-{self.seed}"))

    @property
    def label(self) -> str:
        """For people."""
        point = f" {self.value}" if self.knob else ""
        return f"{self.arm}, {self.method}{point}, seed {self.seed}"

    @property
    def images_seen(self) -> int:
        """By all members, skipped ones included."""
        return self.settings.total_steps * self.settings.train.batch_size


def board_names() -> list[str]:
    """The boards that come with the package, sorted."""
    return _names(_packaged())


def load_board(name: str) -> Board:
    """A board, with its methods read.

    Args:
        name: of a board that comes with the package, or the path of a .toml file.

    Raises:
        UserError: there is none of that name (the message names the nearest), or it is no board; one line.
    """
    if name.endswith(".toml"):
        file = Path(name)
        content = read_toml(file)
        try:
            whole = _extended(content, [file])
        except UserError as error:
            raise UserError(f"{shown(file)}: {error}") from None
        return _board(whole, file.stem, shown(file))
    if name not in board_names():
        raise UserError(f"unknown board {name!r}{did_you_mean(name, board_names())}; or give the path of a .toml file")
    return _board(_extended(_read_packaged(_packaged(), name)), name, f"board {name}")


def _extended(content: dict[str, Any], files: Sequence[Path] = ()) -> dict[str, Any]:
    """The content of a board on top of what it extends; files that it names are found from anywhere.

    Args:
        content: of the board.
        files: see `read_base`.
    """
    base = content.pop("extends", None)
    own = _found_from(files[-1].parent, content) if files else content
    return own if base is None else merged(_extended(*read_base(base, files, _extended_by_name)), own)


def _extended_by_name(name: str) -> dict[str, Any]:
    if name not in board_names():
        what = f"extends {name!r}, which is no board{did_you_mean(name, board_names())}"
        raise UserError(f"{what}; a file is named by its path, with .toml")
    return _read_packaged(_packaged(), name)


def _found_from(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Content whose files are relative to a folder, with paths from here. What is of another kind is refused later."""

    def placed(value: object) -> object:
        return str(folder / value) if isinstance(value, str) and value.endswith(".toml") else value

    methods, data = content.get("methods"), content.get("data")
    found: dict[str, Any] = {}
    if isinstance(methods, list):
        found["methods"] = [placed(each) for each in methods]
    if isinstance(data, list):
        arms = [arm if isinstance(arm, dict) else {} for arm in data]
        found["data"] = [
            arm | {"preset": placed(arm["preset"])} if "preset" in arm else each
            for arm, each in zip(arms, data, strict=True)
        ]
    return content | found


def _board(content: dict[str, Any], name: str, where: str) -> Board:
    board = _validated(Board, {"name": name} | content, where)
    found = [_method(each) for each in board.methods]
    method = [each.model_dump(mode="json") for each in (*found, *board.method)]
    whole = _validated(Board, board.model_dump(mode="json") | {"method": method}, where)
    names = [each.name for each in whole.method]
    if not names:
        raise UserError(f"{where} has no methods: name some in methods, or write [[method]]")
    if whole.baseline not in names:
        raise UserError(
            f"{where}: baseline {whole.baseline!r} is none of its methods{did_you_mean(whole.baseline, names)}"
        )
    _check_arms(whole, where)
    knob = whole.method[names.index(whole.baseline)].knob
    if knob and len(knob.values) > 1:
        raise UserError(
            f"{where}: baseline {whole.baseline!r} is a curve over {knob.setting}: give it one value, or none"
        )
    return whole


def _check_arms(board: Board, where: str) -> None:
    arms = [arm.name for arm in board.data]
    for method in board.method:
        for name in method.arms:
            if name not in arms:
                raise UserError(f"{where}: method {method.name} is for arm {name!r}{did_you_mean(name, arms)}")


def _method(name: str) -> Method:
    """A method of the package, or of a file."""
    if name.endswith(".toml"):
        file = Path(name)
        return _validated(Method, {"name": file.stem} | read_toml(file), shown(file))
    known = _names(_packaged() / "methods")
    if name not in known:
        raise UserError(f"unknown method {name!r}{did_you_mean(name, known)}; or give the path of a .toml file")
    return _validated(Method, {"name": name} | _read_packaged(_packaged() / "methods", name), f"method {name}")


def _packaged() -> Traversable:
    return resources.files("iet_agc.config") / "boards"


def _names(folder: Traversable) -> list[str]:
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def _read_packaged(folder: Traversable, name: str) -> dict[str, Any]:
    return parse_toml((folder / f"{name}.toml").read_text(encoding="utf-8"), name)


# Validation -----------------------------------------------------------------------------------------------

_Kind = TypeVar("_Kind", bound=_Strict)


def _validated(kind: type[_Kind], content: Mapping[str, Any], where: str) -> _Kind:
    """A record of a file's content, which is JSON but for dates, and these are never asked for."""
    try:
        return kind.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise UserError(f"{where}: {_one_line(kind, error)}") from None


def _one_line(kind: type[Section], error: ValidationError) -> str:
    """The first thing that is wrong: where, why, what stands there, and what may be meant."""
    each = error.errors(include_url=False)
    first = next((one for one in each if one["type"] == "extra_forbidden"), each[0])  # a misspelt key is missing, too
    place, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key {place!r}{did_you_mean(str(first['loc'][-1]), _keys(kind, first['loc']))}"
        case "missing":
            return f"{place} is missing: {_meaning(kind, first['loc'])}"
        case "value_error":
            return f"{place}: {reason}" if place else reason
        case _:
            return f"{place}: {reason[0].lower()}{reason[1:]} (it is {one_line(repr(first['input']))})"


#: The records in a board, by the key that they stand under.
_INNER: dict[str, type[Section]] = {"data": Arm, "method": Method, "knob": Knob}


def _owner(kind: type[Section], place: Sequence[str | int]) -> type[Section]:
    """The record in which a place lies."""
    inner = [_INNER[key] for key in place[:-1] if isinstance(key, str) and key in _INNER]
    return inner[-1] if inner else kind


def _keys(kind: type[Section], place: Sequence[str | int]) -> list[str]:
    return list(_owner(kind, place).model_fields)


def _meaning(kind: type[Section], place: Sequence[str | int]) -> str:
    field = _owner(kind, place).model_fields.get(str(place[-1]))
    return (field and field.description) or "give it"


# The runs -------------------------------------------------------------------------------------------------


def plan(board: Board) -> list[Cell]:
    """Every run of a board: by arm, then method, then value of its knob, then seed.

    Settings come from the arm's preset, then those of the board, the arm, the method, the knob; what comes later wins.

    Raises:
        UserError: settings that are impossible, or that a board decides, or steps that cannot see the budget; it names
            the arm and the method.
    """
    pairs = ((arm, method) for arm in board.data for method in board.method)
    return [
        cell
        for arm, method in pairs
        if not method.arms or arm.name in method.arms
        for cell in _cells(board, arm, method)
    ]


def _cells(board: Board, arm: Arm, method: Method) -> Iterator[Cell]:
    for value in method.knob.values if method.knob else (None,):
        try:
            point = _point(board, arm, method, value)
        except UserError as error:
            turned = f", {method.knob.setting} {value}" if method.knob else ""
            raise UserError(f"arm {arm.name}, method {method.name}{turned}: {error}") from None
        for seed in board.seeds:
            settings = override(point, {"train.seed": seed})
            knob = method.knob and method.knob.setting
            yield Cell(arm.name, method.name, knob, value, seed, settings, method.sampling)


def _point(board: Board, arm: Arm, method: Method, value: bool | float | str | None) -> Settings:
    """The settings of all seeds."""
    changes = {"run.threads": 1} | _flat(board.settings) | _flat(arm.settings) | _flat(method.settings)
    share = 1.0
    if method.knob and method.knob.setting == BUDGET:
        assert isinstance(value, int | float), "Knob refuses anything else"
        share = float(value)
    elif method.knob:
        if method.knob.setting in _flat(method.settings):
            raise UserError(f"its settings have {method.knob.setting}, which its knob turns: leave it out")
        changes[method.knob.setting] = value
    for name, why in _DECIDED.items():
        if name in changes:
            raise UserError(f"{name} is not set by a board, {why}: leave it out")
    changes |= {"sample.num": board.samples, "description": board.title or board.name}
    settings = override(customized(load_preset(arm.preset), changes), {"name": f"{arm.name}-{method.name}"})
    return override(settings, {"train.steps": _steps(board.budget * arm.times * share, settings)})


def _flat(settings: Mapping[str, JsonValue]) -> dict[str, object]:
    """Tables in tables, as TOML reads dotted keys, by dotted name."""
    found: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": each for inner, each in _flat(value).items()}
        else:
            found[name] = value
    return found


def _steps(images: float, settings: Settings) -> int:
    """Steps of a member in a round, with which all of them see so many images."""
    method, batch = settings.method, settings.train.batch_size
    at_once = batch * method.members * method.rounds
    steps = round(images / at_once)
    if abs(steps * at_once - images) > _MOST_OFF * images:
        raise UserError(
            f"{images:g} images are no whole number of steps of {batch} images for {method.members} members in "
            f"{method.rounds} rounds: choose a budget that is a multiple of {at_once}, or fewer rounds"
        )
    return steps


def _folder_of(value: object) -> str:
    """A value of a knob as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9+._-]", "_", str(value))
