"""Settings of a run: a class per section, validated and documented. Imports no torch."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from iet_agc.config.data_settings import DATA_OPTIONS, IMAGE_SETS, Data, DataSettings, DigitsData, names_with
from iet_agc.config.section import Section
from iet_agc.runtime.errors import UserError, did_you_mean, one_line

__all__ = [
    "InitSettings",
    "LoraSettings",
    "MethodSettings",
    "ModelSettings",
    "RunSettings",
    "SampleSettings",
    "Settings",
    "TextSettings",
    "TrainSettings",
    "documented",
    "fields_of",
    "validate",
]


class ModelSettings(Section, frozen=True):
    """The network, and what it learns."""

    kind: Literal["image", "text-to-image"] = Field(
        default="image",
        description="image: diffusion of pixels by the network below; text-to-image: latent diffusion conditioned on "
        "captions, by the U-Net or transformer of init.model, a pipeline of Stable Diffusion 1 to 3, XL or Flux",
    )
    network: Literal["unet", "dit"] = Field(
        default="unet",
        description="unet, the U-Net of DDPM; dit, a transformer over patches (DiT, arXiv 2212.09748)",
    )
    objective: Literal["noise", "flow"] = Field(
        default="noise",
        description="what is learned: noise, the noise in an image, by linear betas from 1e-4 to 0.02; flow, the "
        "direction from image to noise on the straight path between them (flow matching, arXiv 2210.02747)",
    )
    channels: int = Field(default=128, ge=1, description="of unet: channels of the first level")
    multipliers: tuple[PositiveInt, ...] = Field(
        default=(1, 2, 2, 2),
        min_length=1,
        description="of unet: channels of each level as multiples of model.channels",
    )
    blocks: int = Field(default=2, ge=1, description="of unet: residual blocks per level")
    attention: tuple[int, ...] = Field(
        default=(16,), description="of unet: image heights, in pixels, at which a level has self-attention"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout probability in residual blocks, in [0, 1)")
    groups: int = Field(default=32, ge=1, description="of unet: number of groups of each group normalization")
    patch_size: int = Field(default=2, ge=1, description="of dit: height and width of a patch, in pixels")
    width: int = Field(default=384, ge=4, description="of dit: channels of a token; a multiple of 4 and of model.heads")
    depth: int = Field(default=12, ge=1, le=1000, description="of dit: number of transformer blocks, 1 to 1000")
    heads: int = Field(default=6, ge=1, description="of dit: attention heads of each block")
    classes: int | None = Field(
        default=None,
        ge=1,
        description="number of classes of a class-conditional model, that of the image set; none: unconditional",
    )
    initialization: Literal["diffusers", "ddpm", "dit"] = Field(
        default="diffusers",
        description="of random weights: diffusers, the defaults of its layers; ddpm, of unet, Xavier, and almost zero "
        "where a residual branch, attention and the model end; dit, of dit, Xavier, and zero where blocks are scaled "
        "and gated and where the model ends. Weights of init.model stay as they are",
    )

    def architecture(self) -> dict[str, Any]:
        """The arguments of `unet.build_unet` or `dit.build_dit`."""
        return self.model_dump(exclude={"kind", "network", "objective", *_OF_NETWORK[_OTHER[self.network]]})

    @model_validator(mode="after")
    def _text_to_image_has_its_own(self) -> "ModelSettings":
        fields = type(self).model_fields
        changed = [name for name in fields if name != "kind" and getattr(self, name) != fields[name].default]
        if self.kind == "text-to-image" and changed:
            raise UserError(
                f"model.{changed[0]} has no effect on text-to-image, whose U-Net is that of init.model: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _no_option_is_ignored(self) -> "ModelSettings":
        """Refuse an option of the other network."""
        fields, other = type(self).model_fields, _OTHER[self.network]
        if changed := [name for name in _OF_NETWORK[other] if getattr(self, name) != fields[name].default]:
            raise UserError(f"{changed[0]} has no effect with network {self.network!r}, it is of {other!r}")
        if self.initialization not in ("diffusers", _INITIAL[self.network]):
            raise UserError(
                f"initialization {self.initialization!r} is not of network {self.network!r}: choose diffusers or "
                f"{_INITIAL[self.network]}"
            )
        return self


#: Settings that one network has and the other has not, and how its authors draw its weights.
_OF_NETWORK = {
    "unet": ("channels", "multipliers", "blocks", "attention", "groups"),
    "dit": ("patch_size", "width", "depth", "heads"),
}
_OTHER = {"unet": "dit", "dit": "unet"}
_INITIAL = {"unet": "ddpm", "dit": "dit"}

#: No more can be put into a text of CLIP's.
_MOST_WORDS = 75


class TextSettings(Section, frozen=True):
    """How captions condition text-to-image in training (Somepalli et al., NeurIPS 2023, arXiv 2305.20086)."""

    captions: Literal["random", "first"] = Field(
        default="random",
        description="which caption of an image with several: random, one drawn each time, against copying; first, "
        "always the first",
    )
    embedding_noise: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of Gaussian noise added to the embedded caption, against copying; 0: none; of "
        "Stable Diffusion 1 and 2",
    )
    drop_caption: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability of dropping the caption, in [0, 1); classifier-free guidance needs it in training "
        "from random weights",
    )
    train_encoder: bool = Field(
        default=False, description="train the text encoder together with the U-Net; of Stable Diffusion 1 and 2"
    )
    random_caption: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability of replacing the caption by four random words, in [0, 1], against copying",
    )
    random_tokens: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="number of random words inserted into each caption, 0 to 75, against copying",
    )
    random_numbers: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="number of random numbers inserted into each caption, 0 to 75, against copying",
    )
    repeat_words: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="number of words of each caption repeated in it, 0 to 75, against copying",
    )
    change_rate: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="probability of changing a caption by the last three each time it is drawn, in (0, 1]",
    )
    too_long: Literal["refuse", "cut"] = Field(
        default="refuse",
        description="captions with more tokens than the text encoder takes: refuse, an error; cut, truncated",
    )

    def changes(self) -> dict[str, Any]:
        """The arguments of `caption_augmentation.Changes`, for training."""
        names = {"random_caption", "random_tokens", "random_numbers", "repeat_words", "change_rate"}
        return self.model_dump(include=names)


class LoraSettings(Section, frozen=True):
    """Low-rank factors that are trained in place of weights (Hu et al., 2022, arXiv 2106.09685)."""

    rank: int = Field(
        default=0,
        ge=0,
        description="of text-to-image: rank of the LoRA factors of each attention projection, which alone are trained "
        "and averaged, factor by factor; 0: all weights are trained",
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        description="scale of LoRA, above 0: what is added is multiplied by lora.alpha / lora.rank; none: by 1",
    )


class InitSettings(Section, frozen=True):
    """What the weights start from."""

    model: str | None = Field(
        default=None,
        description="initial weights: a run, a diffusers pipeline folder or a hub id; empty: one must be given; none: "
        "random weights",
    )
    revision: str | None = Field(
        default=None,
        description="branch, tag or commit of a hub id; none: 'main'; a run records the commit",
    )
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="expected SHA-256 of the initial weights, refused if they have another; a run records that of its "
        "own",
    )


class MethodSettings(Section, frozen=True):
    """Iterative Ensemble Training and Anti-Gradient Control."""

    members: int = Field(
        default=1, ge=1, description="number of ensemble members, each with a shard of its own; 1: no ensemble"
    )
    rounds: int = Field(
        default=1, ge=1, le=9999, description="number of rounds, 1 to 9999; in each, members are trained, then averaged"
    )
    sharding: Literal["stratified", "random", "contiguous"] = Field(
        default="stratified",
        description="how the training set is cut into shards: stratified by class, random, or contiguous, in its order",
    )
    keep_duplicates_together: bool = Field(
        default=False,
        description="images that are equal in every pixel go to one shard; for stratified and random sharding",
    )
    skip_below: float | Literal["auto"] = Field(
        default=0.0,
        description="skip a sample whose loss is below this fraction of the loss bank at its timestep; 0: never; auto: "
        "a quarter of a standard deviation of the log losses there, under the loss bank",
    )
    decay: float = Field(
        default=0.8,
        ge=0,
        lt=1,
        description="fraction of the loss bank's running mean that is kept when a loss comes in, in [0, 1)",
    )
    skip_within: Literal["all", "gap"] = Field(
        default="all",
        description="timesteps at which skip_below skips: all; gap, those of train.timesteps gap only",
    )
    skip_reference: Literal["training", "held-out"] = Field(
        default="training",
        description="what skip_below is a fraction of: training, the loss bank; held-out, the loss bank raised to the "
        "loss of held-out images at that noise level",
    )
    random_skip: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability of skipping each sample, whatever its loss, in [0, 1) (a control)",
    )
    exchange: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="fraction of its shard that each member hands to the next after the first, third, ... round: the "
        "images that it skipped most, in [0, 1); 0: shards stay as they are",
    )

    @field_validator("skip_below", mode="before")
    @classmethod
    def _is_a_fraction_or_auto(cls, value: object) -> object:
        if value == "auto" or (type(value) in (int, float) and 0 <= float(value) < float("inf")):  # pyright: ignore[reportArgumentType]
            return value
        raise UserError(f"give a number of at least 0, or auto (it is {value!r})")

    @model_validator(mode="after")
    def _no_option_is_ignored(self) -> "MethodSettings":
        if self.exchange and (self.members == 1 or self.rounds == 1 or not self.skip_below):
            raise UserError("exchange has no effect without members and rounds above 1 and skip_below above 0")
        if self.skip_within == "gap" and not self.skip_below:
            raise UserError("skip_within 'gap' has no effect without skip_below above 0")
        if self.skip_reference == "held-out" and not self.skip_below:
            raise UserError("skip_reference 'held-out' has no effect without skip_below above 0")
        return self

    @model_validator(mode="after")
    def _order_cannot_stay(self) -> "MethodSettings":
        if self.keep_duplicates_together and self.sharding == "contiguous":
            raise UserError(
                "keep_duplicates_together true needs another order than the one that sharding 'contiguous' leaves as "
                "it is: use stratified or random, or leave it out"
            )
        return self


class TrainSettings(Section, frozen=True):
    """How each member is trained."""

    steps: int = Field(default=400_000, ge=1, description="optimizer steps of each member in each round")
    batch_size: int = Field(default=128, ge=1, description="images per optimizer step")
    learning_rate: float = Field(default=2e-4, gt=0, description="learning rate of Adam after the warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of AdamW; 0: Adam")
    warmup_steps: int = Field(
        default=5000, ge=0, description="steps of a member over which the learning rate rises from 0"
    )
    learning_rate_fall: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="fraction of the run, at its end, over which the learning rate falls linearly to 0, in [0, 1]; 0: "
        "it is constant after the warm-up",
    )
    grad_clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient, which is scaled down to it")
    ema_decay: float = Field(
        default=0.9999,
        ge=0,
        le=1,
        description="decay of the EMA weights: fraction that is kept at each step, in [0, 1]",
    )
    average_last: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="fraction of the run, at its end, whose weights are averaged, each step alike, and stand in place "
        "of the EMA weights, in [0, 1]; 0: the EMA to the end",
    )
    timesteps: Literal["uniform", "gap", "u-shaped", "logit-normal"] = Field(
        default="uniform",
        description="density of training timesteps: uniform; against copying: gap, rarely the noise levels at which "
        "images get memorized; u-shaped, rarely those in the middle; logit-normal, mostly those in the middle, as flow "
        "matching is often trained",
    )
    gap_low: int | None = Field(
        default=None,
        ge=0,
        le=999,
        description="of timesteps gap: its first timestep, 0 to 999; none: computed from training and held-out images, "
        "where both sharpness and coverage exceed 0.8; a run records which",
    )
    gap_high: int | None = Field(
        default=None, ge=0, le=999, description="of timesteps gap: its last timestep, 0 to 999; none: as gap_low"
    )
    gap_density: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="of timesteps gap: how often its timesteps are drawn, as a fraction of how often the uniform "
        "density draws them, in [0, 1]",
    )
    u_sharpness: float = Field(
        default=4.0,
        gt=0,
        le=100,
        description="of timesteps u-shaped: rate at which the density falls from both ends, exp(-rate t / 1000), above "
        "0, at most 100",
    )
    logit_mean: float = Field(
        default=0.0,
        ge=-10,
        le=10,
        description="of timesteps logit-normal: mean of the logit of t / 1000, -10 to 10; larger draws more noise",
    )
    logit_deviation: float = Field(
        default=1.0,
        ge=0.1,
        le=10,
        description="of timesteps logit-normal: standard deviation of the logit of t / 1000, 0.1 to 10",
    )
    target: Literal["noise", "ambient", "smoothed"] = Field(
        default="noise",
        description="of pixels, what the model is trained towards: noise, that of the step; against copying: ambient, "
        "with a part of the noise that is fixed per image; smoothed, where there is little noise, the mean of an "
        "image's nearest 100",
    )
    target_timestep: int = Field(
        default=200,
        ge=0,
        le=998,
        description="of target ambient: the timestep of the noise that is fixed, which images up to it do not have; of "
        "smoothed: the last timestep whose target is a mean; 0 to 998",
    )
    min_snr: float = Field(
        default=0.0,
        ge=0,
        description="gamma of min-SNR loss weights, min(SNR, gamma) / SNR at each timestep; 0: all timesteps weigh "
        "alike; 5 in the paper",
    )
    dp_noise: float = Field(
        default=0.0,
        ge=0,
        description="noise multiplier of DP-SGD: standard deviation of the noise on the sum of the images' gradients, "
        "as a multiple of train.dp_clip; batches become Poisson samples; 0: no DP-SGD",
    )
    dp_clip: float = Field(
        default=1.0,
        gt=0,
        description="of DP-SGD: largest norm of the gradient of each image, in place of train.grad_clip",
    )
    dp_multiplicity: int = Field(
        default=1,
        ge=1,
        description="of DP-SGD: draws of timestep and noise that the loss of each image is a mean of; more cost time "
        "and no privacy",
    )
    dp_delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="of DP-SGD: the delta at which epsilon is told, in (0, 1); well below 1 / training images",
    )
    seed: int = Field(
        default=0, ge=0, description="random seed of initial weights, shards, batches, timesteps and noise"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32",
        description="of convolutions and matrix products; auto: bfloat16 where the device has instructions for it; a "
        "run records which",
    )
    compile: bool = Field(
        default=False, description="compile the network by torch.compile; results are rounded differently"
    )

    @model_validator(mode="after")
    def _no_option_is_ignored(self) -> "TrainSettings":
        """Refuse an option of another density or target than the one that is chosen."""
        fields = type(self).model_fields
        options = {
            "gap": ("gap_low", "gap_high", "gap_density"),
            "u-shaped": ("u_sharpness",),
            "logit-normal": ("logit_mean", "logit_deviation"),
        }
        for kind, names in options.items():
            changed = [name for name in names if getattr(self, name) != fields[name].default]
            if changed and self.timesteps != kind:
                raise UserError(f"{changed[0]} has no effect with timesteps {self.timesteps!r}, it is of {kind!r}")
        if self.target == "noise" and self.target_timestep != fields["target_timestep"].default:
            raise UserError("target_timestep has no effect with target 'noise', it is of 'ambient' and 'smoothed'")
        changed = [
            name for name in ("dp_clip", "dp_multiplicity", "dp_delta") if getattr(self, name) != fields[name].default
        ]
        if changed and not self.dp_noise:
            raise UserError(f"{changed[0]} has no effect without DP-SGD: set dp_noise")
        if self.gap_low is not None and self.gap_high is not None:
            if self.gap_low > self.gap_high:
                raise UserError(f"the gap from gap_low {self.gap_low} to gap_high {self.gap_high} is empty")
            if self.gap_high - self.gap_low == 999:
                raise UserError("a gap from 0 to 999 leaves no timestep to train at")
        return self

    @model_validator(mode="after")
    def _is_private(self) -> "TrainSettings":
        """Refuse what DP-SGD's guarantee does not cover, or what it has no use for."""
        without = {
            "grad_clip": (self.grad_clip != type(self).model_fields["grad_clip"].default, "dp_clip takes its place"),
            "target": (self.target != "noise", "it trains towards the noise of the step only"),
            "gap_low": (
                self.timesteps == "gap" and None in (self.gap_low, self.gap_high),
                "a gap that is computed tells of the training images: set both ends",
            ),
            "precision": (self.precision != "float32", "norms of gradients are clipped in float32"),
            "compile": (self.compile, "gradients of single images are not compiled"),
        }
        odd = next((f"{name} {getattr(self, name)}: {why}" for name, (is_so, why) in without.items() if is_so), None)
        if self.dp_noise and odd:
            raise UserError(f"dp_noise does not go with {odd}")
        return self


class SampleSettings(Section, frozen=True):
    """How a trained model is sampled, by default."""

    num: int = Field(default=65_536, ge=1, description="number of images")
    steps: int = Field(default=50, ge=1, le=500, description="denoising steps per image, 1 to 500")
    weights: Literal["raw", "ema"] = Field(
        default="raw", description="raw: the weights as trained; ema: their exponential moving average"
    )
    first_seed: int = Field(default=0, ge=0, description="random seed of the first image; the others count on from it")
    guidance: float = Field(
        default=7.5,
        ge=0,
        description="of text-to-image: classifier-free guidance scale, at most 1: no guidance; of Flux, the scale that "
        "its transformer is given",
    )
    scheduler: Literal["ddim", "dpm++", "pndm", "euler"] = Field(
        default="ddim",
        description="of text-to-image: scheduler of denoising; ddim is DDIM with eta 0, dpm++ DPM-Solver++ of order 2. "
        "A flow (Stable Diffusion 3, Flux) has only Euler steps along it, and takes no other",
    )
    random_tokens: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="of text-to-image: number of random words inserted into each prompt, 0 to 75, against copying",
    )
    random_numbers: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="of text-to-image: number of random numbers inserted into each prompt, 0 to 75, against copying",
    )
    repeat_words: int = Field(
        default=0,
        ge=0,
        le=_MOST_WORDS,
        description="of text-to-image: number of words of each prompt repeated in it, 0 to 75, against copying",
    )
    embedding_noise: float = Field(
        default=0.0,
        ge=0,
        description="of text-to-image: standard deviation of Gaussian noise added to the embedded prompt, against "
        "copying; 0: none",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="as train.precision, when sampling"
    )

    amg_strength: float = Field(
        default=100.0, gt=0, description="weight of Anti-Memorization Guidance, where sampling is told to use it"
    )

    def changes(self) -> dict[str, Any]:
        """The arguments of `caption_augmentation.Changes`, for prompts."""
        return self.model_dump(include={"random_tokens", "random_numbers", "repeat_words"})

    @model_validator(mode="after")
    def _seeds_differ(self) -> "SampleSettings":
        if self.first_seed + self.num > 2**32:  # torch's CPU generator would take them modulo 2^32
            raise UserError(f"first_seed {self.first_seed} + num {self.num} is more than 2^32, so seeds would repeat")
        return self


class RunSettings(Section, frozen=True):
    """What changes the course of a run, not its result."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device to compute on; auto: cuda where there is one"
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="CPU threads per process; 0: PyTorch's choice. Sums on a CPU round differently with another number",
    )
    save_every: int = Field(
        default=2000,
        ge=1,
        description="steps of a member between two bundles (checkpoints) within a round, up to the next point of its "
        "curve",
    )
    log_every: int = Field(default=50, ge=1, description="steps between two points of a training curve")
    preview_images: int = Field(default=64, ge=0, description="images in the grid drawn after each round; 0: no grids")
    watch_every: int = Field(
        default=0,
        ge=0,
        description="steps of a member between two points at which copying is watched, of several members up to the "
        "end of a round; and at the end; 0: it is not watched",
    )
    watch_images: int = Field(
        default=128, ge=2, description="images that are drawn at each of these points; others give losses"
    )
    watch_denoising_steps: int = Field(
        default=20,
        ge=1,
        le=500,
        description="denoising steps of each of these images, 1 to 500; with fewer, fewer copies are seen",
    )
    keep_watched: bool = Field(
        default=False, description="keep the model of each of these points as pipelines, in RUN/watched"
    )
    stop_when_copying: bool = Field(
        default=False,
        description="end the run at the first of these points whose copied share is above chance, and leave the model "
        "of the point before it",
    )

    @model_validator(mode="after")
    def _is_watched(self) -> "RunSettings":
        for name in ("keep_watched", "stop_when_copying"):
            if getattr(self, name) and not self.watch_every:
                raise UserError(f"{name} has no effect on a run that is not watched: set run.watch_every")
        return self


class Settings(Section, frozen=True):
    """Everything that a run depends on."""

    name: str = Field(default="", description="name of the preset that the run started from")
    description: str = Field(default="", description="what the preset is, in one line")
    data: Data = Field(default=DigitsData())
    model: ModelSettings = ModelSettings()
    text: TextSettings = TextSettings()
    lora: LoraSettings = LoraSettings()
    init: InitSettings = InitSettings()
    method: MethodSettings = MethodSettings()
    train: TrainSettings = TrainSettings()
    sample: SampleSettings = SampleSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _gap_is_there(self) -> "Settings":
        if self.method.skip_within == "gap" and self.train.timesteps != "gap":
            raise UserError(f"method.skip_within 'gap' needs train.timesteps gap, not {self.train.timesteps}")
        return self

    @model_validator(mode="after")
    def _learns_a_flow(self) -> "Settings":
        """Refuse what is made for models that predict noise."""
        if self.model.objective == "flow" and self.train.target != "noise":
            raise UserError(
                f"train.target {self.train.target} takes the place of noise, and a flow predicts none: leave it out, "
                "or set model.objective noise"
            )
        if self.model.objective == "flow" and self.train.min_snr:
            raise UserError(
                "train.min_snr weighs pure noise with 0, where a flow starts to draw: leave it out, or use "
                "train.timesteps logit-normal"
            )
        return self

    @model_validator(mode="after")
    def _is_private(self) -> "Settings":
        """Refuse what would break the guarantee of DP-SGD."""
        method = self.method
        without = {
            "method.members above 1": (method.members > 1, "its accounting is of one model that draws from all images"),
            "method.skip_below": (method.skip_below != 0, "whether an image is skipped would depend on others"),
            "method.random_skip": (method.random_skip > 0, "each step draws its images at random already"),
            "model.dropout": (
                self.model.kind == "image" and self.model.dropout > 0,
                "masks are drawn for a batch, gradients are of single images",
            ),
            "model.kind text-to-image": (self.model.kind != "image", "gradients of single images are of pixels only"),
            "data.deduplicate": (self.data.deduplicate is not None, "whether an image stays would depend on others"),
            "run.stop_when_copying": (self.run.stop_when_copying, "where it stops would depend on the training images"),
        }
        odd = next((f"{name}: {why}" for name, (is_so, why) in without.items() if is_so), None)
        if self.train.dp_noise and odd:
            raise UserError(f"train.dp_noise does not go with {odd}")
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all members in all rounds."""
        return self.method.members * self.method.rounds * self.train.steps

    @property
    def looks_to_its_end(self) -> bool:
        """Whether what a step does depends on how many are to come, so that a longer run is another one."""
        return self.train.learning_rate_fall > 0 or self.train.average_last > 0


def validate(content: Mapping[str, object]) -> Settings:
    """Settings from nested plain values, as in a preset or a saved run.

    Raises:
        UserError: one line that names the setting, its value and what is allowed.
    """
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise UserError(_one_line(error)) from None


def documented(settings: Settings) -> Iterator[tuple[str, object, str]]:
    """Every setting as (dotted name, value, meaning with unit), in order."""
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Section):
            for inner, inner_field in fields_of(value).items():
                yield f"{name}.{inner}", getattr(value, inner, inner_field.default), _meaning(value, inner)
        else:
            yield name, value, field.description or ""


def fields_of(section: Section) -> Mapping[str, FieldInfo]:
    """The fields of a section; of section data those of every image set."""
    return DATA_OPTIONS if isinstance(section, DataSettings) else type(section).model_fields


def _meaning(section: Section, name: str) -> str:
    meaning = fields_of(section)[name].description or ""
    owners = names_with(name) if isinstance(section, DataSettings) else []
    return f"of {', '.join(owners)}: {meaning}" if 0 < len(owners) < len(IMAGE_SETS) else meaning


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name, kind, reason = _dotted(first["loc"]), first["type"], first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"unknown setting {name!r}{did_you_mean(name, [known for known, *_ in documented(Settings())])}"
    if kind == "no_effect":
        return reason
    if kind == "value_error":
        return f"setting {name}: {reason}"
    value = first["input"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        *names, last = map(repr, IMAGE_SETS)
        name, value, reason = f"{name}.name", value["name"], f"Input should be {', '.join(names)} or {last}"
    return f"setting {name}: {reason[0].lower()}{reason[1:]} (it is {one_line(repr(value))})"


def _dotted(place: tuple[int | str, ...]) -> str:
    """The name of a setting where pydantic found an error, which names the image set, too."""
    section, *rest = place or ("",)
    return ".".join(map(str, (section, *(rest[1:] if section == "data" and rest and rest[0] in IMAGE_SETS else rest))))
