"""Networks of torch-fidelity, with published weights only. A module of its own: it takes seconds to import."""

import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity import FeatureExtractorBase
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from iet_agc.metrics.published import DINOV2, PUBLISHED, dinov2_code, published_file
from iet_agc.runtime.errors import UserError, in_words

__all__ = ["load_network", "names"]

_LOGITS = "logits_unbiased"


def names() -> tuple[str, ...]:
    """Of the networks that are registered with torch-fidelity, by whoever did."""
    return (*FEATURE_EXTRACTORS_REGISTRY,)


def load_network(
    name: str, device: torch.device, download: bool
) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor | None]], Path | None, str]:
    """A network of torch-fidelity's, the file with its weights, and its convention; see `features.load_extractor`.

    Raises:
        UserError: missing weights, weights that are not the published ones, or code that does not run.
    """
    kind = FEATURE_EXTRACTORS_REGISTRY[name]
    layer = kind.get_default_feature_layer_for_metric("fid")
    layers = [layer, _LOGITS] if _LOGITS in kind.get_provided_features_list() else [layer]
    try:
        code = dinov2_code(download) if name in DINOV2 else None
        file = published_file(name, download) if name in PUBLISHED else None
    except ValueError as error:
        raise UserError(
            f"extractor {name!r} has no usable weights: {error}; or choose 'efficientnet-lite0' or 'pixels'"
        ) from None
    try:
        network = _PinnedDinoV2(name, layers, code, file) if code and file else _made(name, layers, file)
        network = network.to(device)
    except Exception as error:
        reason = in_words(error)
        raise UserError(
            f"extractor {name!r} cannot be made ({reason}): choose 'efficientnet-lite0' or 'pixels'"
        ) from error

    def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
        features, *logits = network(images)
        return features, logits[0] if logits else None

    return run, file, f"torch-fidelity's {name}, layer {layer}, on RGB"


def _made(name: str, layers: list[str], file: Path | None) -> FeatureExtractorBase:
    """torch-fidelity's extractor; given the file with its weights, it looks for none itself."""
    given = {"feature_extractor_weights_path": str(file)} if file else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # CLIP's weights are TorchScript
        return create_feature_extractor(name, layers, cuda=False, verbose=False, **given)


class _PinnedDinoV2(FeatureExtractorDinoV2):
    """torch-fidelity's, which would run the newest code of the repository and fetch what it lacks.

    Args:
        name: of the extractor.
        features_list: its layers.
        code: folder with the repository.
        file: with the weights.
    """

    def __init__(self, name: str, features_list: list[str], code: Path, file: Path) -> None:
        FeatureExtractorBase.__init__(self, name, features_list)
        self.feature_extractor_internal_dtype = torch.float32
        with warnings.catch_warnings(), redirect_stdout(sys.stderr), _without_xformers():
            warnings.simplefilter("ignore", UserWarning)  # xFormers is not there
            model: Any = torch.hub.load(str(code), DINOV2[name], source="local", pretrained=False)
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.model = model
        self.requires_grad_(False).eval()


@contextmanager
def _without_xformers() -> Generator[None]:
    """A context in which DINOv2's code leaves xFormers alone, as in torch-fidelity: its kernels round differently."""
    before = os.environ.get("XFORMERS_DISABLED")
    os.environ["XFORMERS_DISABLED"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["XFORMERS_DISABLED"]
        else:
            os.environ["XFORMERS_DISABLED"] = before
