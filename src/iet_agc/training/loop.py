"""The member and the round loop: the only loop there is.

    for each round:
        for each member:  train it on its shard for `train.steps` steps
        average weights and EMA weights over the members, weighted by shard size
        every member loads the average
        after every second round, if asked, every member hands images on to the next

Default training is one member whose skip_below is 0; IET, AGC and IET-AGC are settings.

Members go to processes (member m to the rank m % processes) and only the member being trained is on
the device. Between averages members do not depend on each other, so within a round each saves a bundle
of its own whenever it likes, and the whole resumes from any mixture of them. Asked to stop, every member does so
after its next step, with the sums of the curve's next point.
"""

import copy
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import LongTensor, Tensor

from iet_agc.config.fingerprint import fingerprint
from iet_agc.config.run_folder import check_folder, claim_folder
from iet_agc.config.settings import Settings
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.grids import image_grid, save_image
from iet_agc.data.image_set import ImageSet, unique_images
from iet_agc.data.mending import LIST_NAME, counts, in_short, write_list
from iet_agc.diffusion.process import NUM_TIMESTEPS, abar_of
from iet_agc.method.averaging import average_states
from iet_agc.method.exchange import exchanged
from iet_agc.method.sharding import partition
from iet_agc.metrics.curve import recommend
from iet_agc.runtime import distributed
from iet_agc.runtime.curves import Curves, Meter
from iet_agc.runtime.errors import CheckFailed, UserError
from iet_agc.runtime.exposure import read_telemetry, write_telemetry
from iet_agc.runtime.files import flush
from iet_agc.runtime.precision import resolved
from iet_agc.runtime.progress import Bar, phase, progress_bar, say
from iet_agc.runtime.stop import Stopped, StopRequest
from iet_agc.runtime.threads import num_threads
from iet_agc.training import checkpoint, identity
from iet_agc.training.batches import Examples
from iet_agc.training.initialization import Initial
from iet_agc.training.member import Member, NonFiniteError, learning_rate
from iet_agc.training.private import privacy_of
from iet_agc.training.tasks import Task, make_task
from iet_agc.training.timesteps import with_gap
from iet_agc.training.watched import copy_snapshot, read_points
from iet_agc.training.watching import Watching

__all__ = ["Member", "NonFiniteError", "start", "train"]


def start(
    settings: Settings,
    out: Path,
    on_step: Callable[[int], object] | None = None,
    stop: StopRequest | None = None,
    given: ImageSet | None = None,
) -> dict[str, object]:
    """Load the data, join the other processes, and train: what `iet-agc train` does.

    Args:
        settings: of the run.
        out: the run's folder.
        on_step, stop: see `train`.
        given: trained on in place of what section data of the settings reads; nothing is planted in it or held out.

    Returns:
        A summary of the finished run, JSON values only.

    Raises:
        ValueError, NonFiniteError, Stopped: see `train`.
    """
    began = time.perf_counter()
    images, held_out = (given, None) if given else load_dataset(settings.data)
    device = distributed.choose_device(settings.run.device)
    with num_threads(settings.run.threads), distributed.processes(device):
        train(settings, images, out, device, on_step, stop, held_out, are_read=given is None)
    seen, skipped = read_telemetry(out / "telemetry.csv")
    points, stopped = read_points(out), identity.stopped(out)
    steps = stopped["step"] * settings.method.members if stopped else settings.total_steps
    return {
        "run": str(out),
        "preset": settings.name,
        "training_images": len(images),
        "held_out_images": len(held_out or ()),
        **({"mending": counts(images.treated)} if images.treated else {}),
        "steps": steps,
        "images_seen": steps * settings.train.batch_size,
        "skip_rate": int(skipped.sum()) / max(int(seen.sum()), 1),
        **({"recommendation": recommend(points).model_dump(mode="json")} if points else {}),
        **({"stopped": stopped} if stopped else {}),
        **({"privacy": privacy} if (privacy := identity.privacy(out)) else {}),
        "seconds": round(time.perf_counter() - began, 1),
    }


def train(
    settings: Settings,
    images: ImageSet,
    out: Path,
    device: torch.device,
    on_step: Callable[[int], object] | None = None,
    stop: StopRequest | None = None,
    held_out: ImageSet | None = None,
    *,
    are_read: bool = False,
) -> None:
    """Train to the end, from wherever the folder stands, and leave two diffusers pipelines in it.

    A run goes on to more rounds, finished or not, and one of one member and one round to more steps; it is then the
    run that had as many from the start. What it exported before stays until there is something newer.

    A run that is finished is left as it is, unless its pipelines are not as they were exported: then they are exported
    again from its last bundle.

    Args:
        settings: of the run.
        images: the training set.
        out: the run's folder; it may hold bundles of the same run, which are gone on from.
        device: where to train.
        on_step: called with a number of steps that are done, in place of the progress bar.
        stop: listened to while members train; by default nothing asks to stop.
        held_out: what the settings hold out, so that an audit can tell whether it is still the same, and for the gap
            of `train.timesteps`.
        are_read: whether the images are those that the settings read. Otherwise the run says that they were given from
            Python, in its description too, and is no source of images, unless they turn out to be the same.

    Raises:
        NonFiniteError: see `Member.train`.
        Stopped: `stop` asked for it, on any process. Every member has saved where it stands.
        UserError: more members than images, a model that does not fit the images, their classes or what it is to
            start from, or a folder that holds another run or in which another process is at work; nothing is
            written then. Or a finished run is damaged and has no bundle to mend it from.
    """
    run = _prepared(settings, images, out, device, on_step, stop, held_out)  # refuses before anything is written
    earlier = check_folder(run.settings, out)
    with distributed.alone_in(out):
        _check_stopped(run.settings, out, earlier)
        run.resume(earlier)
        distributed.barrier()
        if distributed.rank() == 0:
            if earlier:
                identity.record_continuation(out, run.settings, earlier, images)
            given = not are_read and _were_given(out, run.resumed)
            claim_folder(_described(run.settings, images) if given else run.settings, out)
            _list_treated(images, held_out, out)
            run.reopen()
            if not settings.run.stop_when_copying:
                identity.record_going_on(out)
            if not run.resumed or identity.read_identity(out) is None:
                identity.record_training(out, run.settings, images, None if run.resumed else held_out, given)
        distributed.barrier()
        with run.stop.listening():
            run.to_the_end()


def _list_treated(images: ImageSet, held_out: ImageSet | None, out: Path) -> None:
    """Write down, and say, which files were mended or left out; what was read as one is listed once."""
    sets = {"train": images.treated}
    if held_out is not None and held_out.treated != images.treated:
        sets["held_out"] = held_out.treated
    sets = {name: treated for name, treated in sets.items() if treated}
    if sets:
        write_list(out / LIST_NAME, sets)
    for name, treated in sets.items():
        say(in_short(f"{images.name}, {name.replace('_', '-')}", treated, out / LIST_NAME))


def _prepared(
    settings: Settings,
    images: ImageSet,
    out: Path,
    device: torch.device,
    on_step: Callable[[int], object] | None = None,
    stop: StopRequest | None = None,
    held_out: ImageSet | None = None,
) -> "_Run":
    """A run with all its parts, before its first step; every process of it must call this. Writes nothing.

    Raises:
        UserError: what is impossible; see `train`.
    """
    _, height, width = images.shape
    if height != width:
        raise UserError(f"{images.name} is {width} x {height}: only square images can be trained on, crop them")
    shards = _shards(settings, images)
    task = make_task(settings, images)
    gap = with_gap(settings, images, held_out, abar_of(task.scheduler))
    settings = _made_definite(settings.model_copy(update={"train": gap}), task.initial, device)
    train, method, initial = settings.train, settings.method, task.initial
    if privacy := privacy_of(settings, len(images)):
        say(f"DP-SGD: epsilon {privacy['epsilon']:.3g} at delta {privacy['delta']:g} for any one training image")
        if distributed.size() > 1:
            raise UserError("train.dp_noise trains one model in one process: start no more than one")
    replicas = distributed.replicas_of(method.members, train.batch_size)
    others = _compared_with(settings, task, held_out)
    members = [
        Member(m, initial.raw, task.examples(shards[m]), train, method, device, replicas, initial.ema, others)
        for m in range(distributed.rank() % method.members, method.members, distributed.size())
    ]
    return _Run(
        settings=settings,
        images=images,
        compared=held_out if others else None,
        out=out,
        device=device,
        task=task,
        shards=shards,
        replicas=replicas,
        members=members,
        watching=Watching(
            settings=settings, task=task, images=images, held_out=held_out or None, out=out, device=device
        ),
        on_step=on_step,
        stop=stop or StopRequest(),
    )


def _compared_with(settings: Settings, task: Task, held_out: ImageSet | None) -> Examples | None:
    """The held-out images whose losses training losses are compared with, if they are."""
    if settings.method.skip_reference == "training":
        return None
    if not held_out:
        raise UserError(
            "method.skip_reference held-out compares with images that are held out, and there are none: hold some out, "
            "or leave it out"
        )
    if (others := task.others(held_out)) is None:
        raise UserError(f"{held_out.name} lacks the classes or captions that the held-out images need", "held_out")
    return others


def _shards(settings: Settings, images: ImageSet) -> list[LongTensor]:
    method = settings.method
    labels = len(images) if images.labels is None else images.labels
    groups = unique_images(images.images)[1] if method.keep_duplicates_together else None
    return partition(labels, method.members, method.sharding, settings.train.seed, groups=groups)


@dataclass(kw_only=True, eq=False)
class _Run:
    """One process's part of a run, and where the run stands. Made by `_prepared`.

    Attributes:
        settings: definite ones; see `_made_definite`.
        images: the training set, and `shards` its parts, one per member; they change where they are exchanged.
        compared: the held-out images that weights depend on, if they do.
        out: the run's folder.
        device: where members train.
        task: what is trained.
        replicas: the processes that share the members of this one.
        members: those of this process.
        watching: the watch on copying.
        on_step, stop: see `train`.
        round: rounds that are done; `resumed`: whether any of it was found on the disk.
        curves: of each member, while it trains.
        meters: of each member, what the next point of its curve is made of.
        saved: the step of each member that is on the disk.
        earlier: fingerprints of the settings that the run had before it was made longer.
        ended: the bundle at the end of a round that is longer now; see `reopen`.
    """

    settings: Settings
    images: ImageSet
    compared: ImageSet | None
    out: Path
    device: torch.device
    task: Task
    shards: Sequence[Tensor]
    replicas: distributed.Replicas
    members: list[Member]
    watching: Watching
    on_step: Callable[[int], object] | None
    stop: StopRequest
    round: int = 0
    resumed: bool = False
    curves: dict[int, Curves] = field(default_factory=dict)
    meters: dict[int, Meter] = field(init=False)
    saved: dict[int, int] = field(init=False)
    earlier: Sequence[str] = ()
    ended: checkpoint.Bundle | None = None

    def __post_init__(self) -> None:
        self.meters = {each.index: Meter(NUM_TIMESTEPS, self.device) for each in self.members}
        self.saved = {each.index: 0 for each in self.members}

    @property
    def bundles(self) -> Path:
        """The folder of the bundles."""
        return self.out / "bundles"

    @cached_property
    def identity(self) -> dict[str, str]:
        """What a bundle must agree with, by name."""
        return {
            "settings": fingerprint(self.settings),
            "images": self.images.fingerprint,
            "labels": identity.labels_sha256(self.images),
            **({"held_out": self.compared.fingerprint} if self.compared else {}),
            **self.task.identity,
        }

    # Where a run stands on disk -------------------------------------------------------------------

    def resume(self, earlier: Settings | None = None) -> None:
        """Load the newest bundle that is whole, then what members saved after it. Writes nothing.

        Args:
            earlier: the settings that the run had so far, where it is made longer.

        Raises:
            UserError: bundles of another run, or none of a finished one that cannot stay as it is.
        """
        self.earlier = [*identity.earlier_fingerprints(self.out), *([fingerprint(earlier)] if earlier else [])]
        if whole := self._newest("round-????"):
            for member in self.members:
                _load(member, whole)
            self._take_exchanged(whole)
            self.round, self.resumed = self.members[0].step // self.settings.train.steps, True
            self.ended = whole if self.members[0].step > self.round * self.settings.train.steps else None
        elif identity.damaged_exports(self.out) is not None and not [*self.bundles.glob(f"{self._name()}-member-*")]:
            self._refuse_unless_whole(earlier)
            self.round, self.resumed = self.settings.method.rounds, True
        for member in self.members:
            if partial := self._newest(f"{self._name(member)}-step-*"):
                _load(member, partial)
                self.meters[member.index].load_state(partial.tensors(_file(member)))
                self.resumed = True
            self.saved[member.index] = member.step

    def _take_exchanged(self, bundle: checkpoint.Bundle) -> None:
        """Shards that were exchanged are those of the bundle."""
        if self.settings.method.exchange:
            shared = bundle.tensors("shared")
            self.shards = [shared[_shard(index)] for index in range(len(self.shards))]
            for member in self.members:
                member.examples = self.task.examples(self.shards[member.index])

    def reopen(self) -> None:
        """Make the bundle at the end of a round that is longer now the one of its member within it."""
        if self.ended is None:
            return
        within = self.bundles / f"{self._name(self.members[0])}-step-{self.ended.about['step']:09d}"
        shutil.rmtree(within, ignore_errors=True)  # the same, left by a kill
        os.rename(self.ended.folder, within)
        flush(self.bundles)

    def _refuse_unless_whole(self, earlier: Settings | None) -> None:
        """A finished run without bundles can stay as it is, and nothing else."""
        if earlier:
            raise UserError(
                f"{self.out} is finished, and {self.bundles} holds no bundle to go on from: put them back, or train "
                f"{self.out} further into another output, as initial weights",
                "out",
            )
        if identity.stopped(self.out) and not self.settings.run.stop_when_copying:
            raise UserError(
                f"{self.out} stopped early, and {self.bundles} holds no bundle to go on from: put them back", "out"
            )
        if odd := identity.damaged_exports(self.out):
            raise UserError(
                f"{odd[0]} is not as it was exported, and {self.bundles} holds no bundle to export it from again: "
                "restore one of them from a copy, or train again into another output",
                "out",
            )
        identity.check_images(self.out, "train", self.images)
        read_telemetry(self.out / "telemetry.csv")

    def _newest(self, pattern: str) -> checkpoint.Bundle | None:
        known = {name: [value] for name, value in self.identity.items()}
        known["settings"] += self.earlier
        return checkpoint.newest_bundle(self.bundles, pattern, known, say)

    def _name(self, member: Member | None = None) -> str:
        """Of a bundle at the start of this round, or of one member within it."""
        return f"round-{self.round:04d}" + (f"-{_file(member)}" if member else "")

    def _seal(self, name: str, files: dict[str, str], step: int) -> None:
        for curves in self.curves.values():
            curves.flush()
        about = {**self.identity, "round": self.round, "step": step}
        checkpoint.seal(self.bundles / f".{name}", self.bundles / name, files, about)

    def save_member(self, member: Member) -> None:
        """Save a member within a round, then drop all but the bundle before."""
        self.saved[member.index] = member.step
        if self.replicas.index > 0:
            return
        older = sorted(self.bundles.glob(f"{self._name(member)}-step-*"))
        name = f"{self._name(member)}-step-{member.step:09d}"
        own = {**member.own(), **self.meters[member.index].state()}
        parts = {"shared": member.shared(), _file(member): own}
        self._seal(name, checkpoint.stage(self.bundles / f".{name}", parts), member.step)
        for old in older[:-1]:  # the one before stays, in case this one gets damaged
            shutil.rmtree(old)

    def save_round(self) -> None:
        """Save all members after an average, each process its own, then drop what is no longer needed."""
        self.saved = {member.index: member.step for member in self.members}
        parts = {_file(member): member.own() for member in self.members} if self.replicas.index == 0 else {}
        if distributed.rank() == 0:
            moved = self.shards if self.settings.method.exchange else ()
            parts["shared"] = self.members[0].shared() | {_shard(m): shard for m, shard in enumerate(moved)}
        files = distributed.gather(checkpoint.stage(self.bundles / f".{self._name()}", parts))
        if distributed.rank() == 0:
            merged = {name: digest for some in files for name, digest in some.items()}
            self._seal(self._name(), merged, self.members[0].step)
            self._drop_old()
        distributed.barrier()

    def _drop_old(self) -> None:
        """Keep this round's bundle and the one before, in case this one gets damaged."""
        for old in (*self.bundles.glob("round-*"), *self.bundles.glob(".round-*")):
            number = int(old.name.lstrip(".").split("-")[1])
            if number < self.round - 1 or (number < self.round and "member" in old.name):
                shutil.rmtree(old)

    # The loop -------------------------------------------------------------------------------------

    def to_the_end(self) -> None:
        """Train, average and save until all rounds are done; then export what is not there as it was exported."""
        self.watching.begin(self.members[0].step, identity.stopped(self.out) is not None)
        if trained := self.round < self.settings.method.rounds and not self.watching.stopped:
            self._train_rounds()
        elif self.on_step:
            self.on_step(self.settings.method.rounds * self.settings.train.steps * len(self.members))
        if distributed.rank() == 0 and (trained or not self._is_exported()):
            with phase("export", self._is_shown):
                self._export()
        if distributed.rank() == 0:
            self.watching.end()
        distributed.barrier()

    def _train_rounds(self) -> None:
        if self.replicas.index == 0:
            self.curves = {member.index: Curves(self.out, member.index, member.step) for member in self.members}
        rounds, steps = self.settings.method.rounds, self.settings.train.steps
        total = rounds * steps * len(self.members)
        done = sum(member.step for member in self.members)
        with progress_bar("train", total, done, shown=self._is_shown) as bar:
            if self.on_step:
                self.on_step(done)
            while self.round < rounds and not self.watching.stopped:
                for member in self.members:
                    bar.name_phase(self._named(member))
                    self._train_round(member, bar)
                self._stop_if_asked()
                if self._is_within():  # stopped by the watch
                    self._save_members()
                    break
                due = self.watching.is_due_after(self.round + 1)
                if due:
                    bar.name_phase("watch")
                    self.watching.compare(self.members, self.replicas)
                bar.name_phase("average")
                self._average()
                self.round += 1
                if due:
                    bar.name_phase("watch")
                    self.watching.take(self.members, self.replicas)
                self._exchange()
                bar.name_phase("preview")
                self._preview()  # before the bundle: a resume does not draw it again
                bar.name_phase("save")
                self.save_round()
            bar.name_phase("train")
        for curves in self.curves.values():
            curves.close()

    @property
    def _is_shown(self) -> bool:
        return self.on_step is None and distributed.rank() == 0

    def _named(self, member: Member) -> str:
        """What a bar says of where a run is; counted from 1, as people do."""
        rounds, members = self.settings.method.rounds, self.settings.method.members
        of_rounds = f" round {self.round + 1}/{rounds}" if rounds > 1 else ""
        return f"train{of_rounds}{f' member {member.index + 1}/{members}' if members > 1 else ''}"

    def _is_exported(self) -> bool:
        """Whether the pipelines and the counts are those of this run, whole; says what is damaged."""
        if (odd := identity.damaged_exports(self.out)) is None:
            return False
        for file in odd:
            say(f"{file} is not as it was exported: it is exported again")
        return not odd and self._is_counted()

    def _is_counted(self) -> bool:
        try:
            return len(read_telemetry(self.out / "telemetry.csv")[0]) == len(self.images)
        except (OSError, ValueError) as error:
            say(f"{error}: it is written again")
            return False

    def _train_round(self, member: Member, bar: Bar) -> None:
        """Train one member to the end of the round, with its curve and its bundles."""
        on_step = self.on_step or bar.update
        run, end = self.settings.run, (self.round + 1) * self.settings.train.steps
        meter = self.meters[member.index]
        member.to(self.device)
        while member.step < end:
            first, began = member.step, time.perf_counter()
            until = min(end, first - first % run.log_every + run.log_every)
            for losses, keep, timesteps in member.train(until, self.task.scheduler, self._stops):
                meter.add(losses, keep, timesteps)
                on_step(1)
                if self.watching.is_due(member.step):
                    began += self._watch(bar)
            if member.step < until:
                break
            speed = (until - first) * self.settings.train.batch_size / (time.perf_counter() - began)
            if member.index in self.curves:
                point = self._point(member, meter, speed)
                self.curves[member.index].add(point)
                bar.show_figures(f"loss {point['loss']:.3g}, skip {point['skip_rate']:.1%}")
            meter.reset()
            if until // run.save_every > first // run.save_every and until < end:
                self.save_member(member)
        member.to(torch.device("cpu"))

    def _watch(self, bar: Bar) -> float:
        """Take a point of the only member; the seconds that it took."""
        began = time.perf_counter()
        bar.name_phase("watch")
        self.watching.take(self.members, self.replicas)
        bar.name_phase(self._named(self.members[0]))
        return time.perf_counter() - began

    def _stops(self) -> bool:
        """Whether to take no further step; replicas stop at the same one."""
        return self.watching.stopped or self.replicas.any(bool(self.stop.signal))

    def _is_within(self) -> bool:
        """Whether the members stand between two averages."""
        steps = self.settings.train.steps
        return self.round * steps < self.members[0].step < (self.round + 1) * steps

    def _stop_if_asked(self) -> None:
        """End here, with all that members have learnt on the disk, if any process was asked to stop.

        Raises:
            Stopped: after all processes have saved.
        """
        if self.stop.signal:
            self._save_members()  # now: others may be long in getting here
        asked = [number for number in distributed.gather(self.stop.signal) if number]
        if not asked:
            return
        self._save_members()
        steps = {index: step for saved in distributed.gather(self.saved) for index, step in saved.items()}
        for curves in self.curves.values():
            curves.close()
        raise Stopped(self._where(steps), asked[0])

    def _save_members(self) -> None:
        for member in self.members:
            if member.step > self.saved[member.index]:
                self.save_member(member)

    def _where(self, saved: dict[int, int]) -> str:
        """Where the same command goes on, in words; `saved` has the step of each member that is on the disk."""
        if not any(saved.values()):
            return "stopped before the first step: nothing is saved, the same command starts from the beginning"
        end = (self.round + 1) * self.settings.train.steps
        first = {m: step for m, step in sorted(saved.items(), reverse=True) if step < end}
        at_work = {m % distributed.size(): f"member {m}, step {step}" for m, step in first.items()}
        where = ", ".join(at_work[process] for process in sorted(at_work)) or "its average"
        return f"stopped and saved; the same command goes on from round {self.round}, {where}"

    def _point(self, member: Member, meter: Meter, speed: float) -> dict[str, object]:
        train = self.settings.train
        return {
            "step": member.step,
            "round": self.round,
            "images_seen": member.step * train.batch_size,
            "learning_rate": learning_rate(member.step - 1, self.settings.method.rounds * train.steps, train),
            "images_per_second": speed,
            **meter.point(),
        }

    def _average(self) -> None:
        """Replace every member's weights and EMA weights by the mean over all members, in their order."""
        count = self.settings.method.members
        mine = {member.index: member for member in self.members}

        def states() -> Iterator[dict[str, Tensor]]:
            for index in range(count):
                yield distributed.broadcast_state(
                    mine.get(index, self.members[0]).shared(), source=index % distributed.size()
                )

        mean = average_states(states(), [len(shard) for shard in self.shards])
        for member in self.members:
            member.load_shared(mean)

    def _exchange(self) -> None:
        """After every second round, from the first on, hand images on from member to member, with their counts.

        Whether a round follows makes no difference: one may, where the run is made longer.
        """
        if not self.settings.method.exchange or self.round % 2 == 0:
            return
        mine = {m.index: (m.seen, m.skipped, m.skipped - m.skipped_before) for m in self.members}
        told = {index: counts for some in distributed.gather(mine) for index, counts in some.items()}
        seen, skipped, lately = zip(*(told[index] for index in range(len(self.shards))), strict=True)
        old, self.shards = self.shards, exchanged(self.shards, lately, self.settings.method.exchange)
        per_image = [torch.zeros(len(self.images), dtype=torch.int64) for _ in range(2)]
        for each, parts in zip(per_image, (seen, skipped), strict=True):
            each[torch.cat([*old])] = torch.cat(parts)
        for member in self.members:
            shard = self.shards[member.index]
            member.take_over(self.task.examples(shard), *(each[shard] for each in per_image))

    def _preview(self) -> None:
        """Draw the same seeds with the averaged weights, as PNG and in TensorBoard."""
        count = self.settings.run.preview_images
        if count == 0 or distributed.rank() != 0:
            return
        member = self.members[0]
        model = copy.deepcopy(member.ema.module if self.settings.sample.weights == "ema" else member.model).eval()
        try:
            images, columns = self.task.preview(model.to(self.device), self.device)
        except CheckFailed as error:  # the losses tell whether the training is broken
            say(f"no preview of round {self.round}: {error}")
            return
        grid = image_grid(images, count, columns=columns)
        (self.out / "previews").mkdir(exist_ok=True)
        save_image(grid, self.out / "previews" / f"round-{self.round:04d}.png")
        self.curves[member.index].add_grid(grid, member.step)

    def _export(self) -> None:
        """Leave the diffusers pipelines and the counts per training image."""
        own = {name: identity.exported_files(self.out, name) for name in ("raw", "ema")}
        stopped = self.watching.stop_at() if self.watching.stopped else None
        if stopped and stopped["weights_of_step"] != stopped["step"]:
            written = copy_snapshot(self.out, stopped["weights_of_step"], own)
        else:
            written = self.task.export(self.members[0].model, self.members[0].ema.module, self.out, own)
        seen, skipped = ([member[count] for member in self._counts()] for count in ("seen", "skipped"))
        write_telemetry(self.out / "telemetry.csv", self.shards, seen, skipped)
        privacy = privacy_of(self.settings, len(self.images))
        identity.record_weights(self.out, written, stopped, privacy)  # last: with it, the run is finished

    def _counts(self) -> list[dict[str, Tensor]]:
        """What all members have counted; within a round, which only one without others ends in, from memory."""
        if self._is_within():
            return [member.own() for member in self.members]
        bundle = checkpoint.read_bundle(self.bundles / f"round-{self.round:04d}")
        return [bundle.tensors(f"member-{number:04d}") for number in range(len(self.shards))]


def _made_definite(settings: Settings, initial: Initial, device: torch.device) -> Settings:
    """The settings with what the run is known by from then on: hash and commit of the model that it starts from, and
    the precision that it trains in. A gap has its ends already; see `with_gap`."""
    precision = resolved(settings.train.precision, device)
    return settings.model_copy(
        update={
            "init": settings.init.model_copy(update={"sha256": initial.sha256, "revision": initial.revision}),
            "train": settings.train.model_copy(update={"precision": precision}),
        }
    )


def _check_stopped(settings: Settings, out: Path, earlier: Settings | None) -> None:
    """Refuse to make a run longer that ended early, and is to do so again."""
    if earlier and settings.run.stop_when_copying and (stopped := identity.stopped(out)):
        raise UserError(
            f"{out} stopped at step {stopped['step']}, as it copies: set run.stop_when_copying false to go on from it",
            "run.stop_when_copying",
        )


def _were_given(out: Path, resumed: bool) -> bool:
    """Whether a run that goes on was begun with images given from Python; one that begins now is."""
    return not resumed or identity.read_identity(out) is None or identity.given_images(out) is not None


def _described(settings: Settings, images: ImageSet) -> Settings:
    """The settings with what they were used on, for the description of a preset does not outlive its images."""
    what = f"{images.name}, {len(images)} of {images.size}"
    base = settings.name or "the settings below"
    return settings.model_copy(update={"description": f"As {base}, but on images given from Python: {what}"})


def _file(member: Member) -> str:
    """Name of a member's file in a bundle."""
    return f"member-{member.index:04d}"


def _shard(index: int) -> str:
    """Name of a member's shard in a bundle."""
    return f"shard-{index:04d}"


def _load(member: Member, bundle: checkpoint.Bundle) -> None:
    member.load_shared(bundle.tensors("shared"))
    member.load_own(bundle.tensors(_file(member)))
