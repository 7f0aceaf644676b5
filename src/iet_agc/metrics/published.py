"""Files that others published: each is opened if its SHA-256 is the published one, and fetched only when asked.

The hashes of Inception and VGG16 begin as the names of their files say, CLIP's are torch-fidelity's own, and DINOv2's
are those that independent projects have of the files. Such files are pickles or TorchScript, which run code. So does
DINOv2's repository, of which one commit is taken, known by a hash over its sources.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import torch
from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIP
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_ADDRESSES
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA as DINOV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torchvision.models import VGG16_Weights

from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import sha256, shown

__all__ = ["DINOV2", "PUBLISHED", "Published", "dinov2_code", "published_file"]


@dataclass(frozen=True)
class Published:
    """A file with weights.

    Attributes:
        address: where it is published.
        name: its name in torch's cache.
        sha256: of it, hexadecimal.
    """

    address: str
    name: str
    sha256: str

    @property
    def place(self) -> Path:
        """Where torch's cache keeps it."""
        return Path(torch.hub.get_dir(), "checkpoints", self.name)


def _of(address: str, sha256: str) -> Published:
    return Published(address, Path(address).name, sha256)


_DINOV2_ADDRESS = "https://dl.fbaipublicfiles.com/dinov2"
_DINOV2_SHA256 = {
    "dinov2_vits14": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    "dinov2_vitb14": "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    "dinov2_vitl14": "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    "dinov2_vitg14": "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3",
}

#: By the name of the extractor of torch-fidelity.
PUBLISHED = {
    "inception-v3-compat": _of(URL_INCEPTION_V3, "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"),
    "vgg16": _of(VGG16_Weights.IMAGENET1K_V1.url, "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"),
    **{
        name: Published(CLIP_ADDRESSES[name], f"{name}-{facts['hash']}.pt", facts["hash"])
        for name, facts in CLIP.items()
    },
    **{name: _of(f"{_DINOV2_ADDRESS}/{own}/{own}_pretrain.pth", _DINOV2_SHA256[own]) for name, own in DINOV2.items()},
}

#: facebookresearch/dinov2 of 14 August 2025, and the hash of its Python files, see `_hash_of_sources`.
_COMMIT = "b8931f7bf91576930313be2c6d6af376033b35f0"
_CODE_SHA256 = "cec6f7ddfbb472e370062ea2c15e1dfc9ddd33f94276ac9ea67521dbc9c24ff0"
_CODE_ADDRESS = f"https://github.com/facebookresearch/dinov2/archive/{_COMMIT}.zip"


def published_file(name: str, download: bool = False) -> Path:
    """The weights of an extractor of torch-fidelity, in torch's cache.

    Args:
        name: of `PUBLISHED`.
        download: fetch the file where it is missing.

    Raises:
        ValueError: it is not there (the message says where it is published and where it belongs), could not be
            fetched, or is not the published one.
    """
    one = PUBLISHED[name]
    if not one.place.is_file():
        if not download:
            what = f"{one.address} (SHA-256 {one.sha256}) at {shown(one.place)}"
            raise UserError(f"put {what}, or have it fetched", "download")
        _fetch(one.address, one.place, one.sha256)
    if (found := sha256(one.place)) != one.sha256:
        raise UserError(
            f"{shown(one.place)} is not the published file, its SHA-256 is {found}, not {one.sha256}, so it was not "
            "opened: remove it and get it again"
        )
    return one.place


def _fetch(address: str, place: Path, digest: str | None = None) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(place), digest, progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{address} could not be fetched, {in_words(error)}: put it at {shown(place)}") from error


def dinov2_code(download: bool = False) -> Path:
    """The folder with DINOv2's repository, at the one commit whose code is run.

    Args:
        download: fetch it where it is missing.

    Raises:
        ValueError: it is not there, could not be fetched, or its sources are others.
    """
    folder = Path(torch.hub.get_dir(), f"facebookresearch_dinov2_{_COMMIT}")
    if not folder.is_dir():
        if not download:
            what = f"{_CODE_ADDRESS}, whose code is run, as {shown(folder)}"
            raise UserError(f"unpack {what}, or have it fetched", "download")
        _fetch_code(folder)
    if _hash_of_sources(folder) != _CODE_SHA256:
        raise UserError(
            f"{shown(folder)} is not facebookresearch/dinov2 at commit {_COMMIT}, so its code was not run: remove it "
            "and get it again"
        )
    return folder


def _fetch_code(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        _fetch(_CODE_ADDRESS, Path(place, "code.zip"))
        with ZipFile(Path(place, "code.zip")) as archive:
            archive.extractall(place)
        Path(place, f"dinov2-{_COMMIT}").rename(folder)


def _hash_of_sources(folder: Path) -> str:
    """SHA-256 over path and SHA-256 of every Python file, in the order of their paths."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()
