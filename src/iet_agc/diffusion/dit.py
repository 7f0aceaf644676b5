"""A transformer over patches of pixels, by diffusers' own class (Peebles and Xie, ICCV 2023, arXiv 2212.09748).

Two things of it are made for latents of ImageNet, and are replaced here in a way that leaves its files stock ones:

- Every block embeds the class by itself, and while it trains drops each class with probability 0.1 by a draw of its
  own, for guidance. Nothing is drawn with guidance here, so no class is dropped.
- A class has to be given. An unconditional model has no classes (`num_embeds_ada_norm` 0), so that its table holds one
  row, that of no class: stock diffusers draws with `class_labels` 0, and here none need be given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn

from iet_agc.diffusion.dropout import with_batch_dropout
from iet_agc.runtime.errors import UserError

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

__all__ = ["build_dit", "with_classes_kept"]

M = TypeVar("M", bound=nn.Module)

#: Sines and cosines of both coordinates of a patch.
_POSITIONS = 4


class _Classes(nn.Module):
    """The embedding of classes: none is dropped, and where there are none, that of no class stands for all.

    Args:
        embedding_table: a row per class, and a last one of no class.
    """

    def __init__(self, embedding_table: nn.Embedding) -> None:
        super().__init__()
        self.embedding_table = embedding_table

    def forward(self, labels: Tensor | None) -> Tensor:
        """Of labels, int64 (B,), float (B, D); or (1, D) for all."""
        if labels is not None:
            return self.embedding_table(labels)
        if self.embedding_table.num_embeddings > 1:
            raise ValueError("class_labels are missing: the model is class-conditional")
        return self.embedding_table.weight


def with_classes_kept(model: M) -> M:
    """The model itself, its embeddings of classes replaced by ours; names and weights stay."""
    from diffusers.models.embeddings import LabelEmbedding

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, LabelEmbedding):
                setattr(module, name, _Classes(child.embedding_table))
    return model


def build_dit(
    image_size: int,
    image_channels: int,
    patch_size: int = 2,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    dropout: float = 0.0,
    classes: int | None = None,
    initialization: str = "diffusers",
) -> DiTTransformer2DModel:
    """A DiT that predicts as many channels as it is given: noise or a direction, and no variance.

    Args:
        image_size: height and width, pixels; a multiple of `patch_size`.
        image_channels: 1 or 3.
        patch_size: height and width of a patch, which becomes one token.
        width: channels of a token; a multiple of 4 and of `heads`. The MLPs have 4 times as many.
        depth: transformer blocks.
        heads: of the attention of each block.
        dropout: after attention and in the MLP of every block.
        classes: number of classes of a class-conditional model; or None.
        initialization: "diffusers" leaves the layers as diffusers makes them; "dit" draws them by `_as_dit`.

    Returns:
        A freshly initialised model from torch's global generator, in training mode.

    Raises:
        UserError: the patches do not fill the image, or `width` cannot be shared by the heads or the coordinates.
    """
    from diffusers import DiTTransformer2DModel

    assert initialization in {"diffusers", "dit"}
    if image_size % patch_size:
        raise UserError(f"model.patch_size {patch_size} does not divide the images' height of {image_size} px")
    for name, parts in (("model.heads", heads), ("the positions' sines and cosines,", _POSITIONS)):
        if width % parts:
            raise UserError(f"model.width {width} cannot be divided by {name} {parts}: choose a multiple of it")
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=image_channels,
        out_channels=image_channels,
        num_layers=depth,
        dropout=dropout,
        sample_size=image_size,
        patch_size=patch_size,
        num_embeds_ada_norm=classes or 0,
    )
    return with_batch_dropout(with_classes_kept(_as_dit(model) if initialization == "dit" else model))


#: Layers that embed conditions, and those that start at zero, by parts of their names; see `_as_dit`.
_EMBEDS, _ZEROS = ("timestep_embedder", "embedding_table"), ("norm1.linear", "proj_out")


def _as_dit(model: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """The model itself with the initial weights of DiT (adaLN-Zero), from torch's global generator.

    Linear layers and patches are Xavier's (Glorot and Bengio, 2010), embeddings of timesteps and classes normal with
    standard deviation 0.02, biases zero. What scales, shifts and gates a block is zero, so that each starts as its
    shortcut, and so is the last layer.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            continue
        if any(part in name for part in _ZEROS):
            nn.init.zeros_(module.weight)
        elif any(part in name for part in _EMBEDS):
            nn.init.normal_(module.weight, std=0.02)
        else:
            nn.init.xavier_uniform_(module.weight.detach().flatten(1))  # a patch as a linear layer
        if not isinstance(module, nn.Embedding) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model
