"""Metadata of a training set in the Croissant format 1.0 (MLCommons), with what of its RAI extension is known.

The images themselves are no part of it: the set is described by the table of its unique images, which lies in the
pack. What only the owner knows, such as the licence, how the images were collected and whether some are synthetic, is
left out, for nothing of it may be guessed. Source: https://docs.mlcommons.org/croissant/docs/croissant-spec.html.
"""

from typing import Any

from iet_agc.auditing.schema import AuditRecord

__all__ = ["croissant"]

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

#: Columns of the table that are described.
_COLUMNS = {
    "image": ("sc:Integer", "index in the training set of the first place of this image"),
    "multiplicity": ("sc:Integer", "how often the image stands in the training set, pixel by pixel"),
    "file": ("sc:Text", "path below the folder that it was read from; empty where it was no file"),
}

_TABLE = "training-images.csv"


def croissant(audit: str, record: AuditRecord, table_sha256: str, table_bytes: int) -> dict[str, Any]:
    """The metadata of the training set of an audit.

    Args:
        audit: name of its folder in the pack.
        record: its audit.json.
        table_sha256, table_bytes: of its training-images.csv.
    """
    name = f"training set of {audit}"
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": (
            f"{record.num_train:,} training images, {record.num_train_unique:,} of them unique, as they were audited. "
            f"The images are not included; SHA-256 over their shape and pixels: {record.sha256.train}."
        ),
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "version": "1.0.0",
        "rai:dataLimitations": _limitations(record),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": _TABLE,
                "name": _TABLE,
                "description": "the unique training images, a row each",
                "contentUrl": f"audits/{audit}/{_TABLE}",
                "contentSize": f"{table_bytes} B",
                "encodingFormat": "text/csv",
                "sha256": table_sha256,
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "images",
                "name": "images",
                "description": "the unique training images",
                "field": [_field(column) for column in _COLUMNS],
            }
        ],
    }


def _field(column: str) -> dict[str, Any]:
    kind, meaning = _COLUMNS[column]
    return {
        "@type": "cr:Field",
        "@id": f"images/{column}",
        "name": f"images/{column}",
        "description": meaning,
        "dataType": kind,
        "source": {"fileObject": {"@id": _TABLE}, "extract": {"column": column}},
    }


def _limitations(record: AuditRecord) -> list[str]:
    """What the audit found of the set itself."""
    copies = record.train_copies
    told = []
    if copies:
        told.append(f"{copies.exact.images:,} images stand in {copies.exact.groups:,} groups of equal images")
    if copies and copies.near:
        told.append(f"{copies.near.images:,} unique images stand in {copies.near.groups:,} groups of near copies")
    if record.mending and (treated := record.mending.sets.get("train")):
        told += [f"{count:,} files were {how}" for how, count in treated.items()]
    return told or ["nothing was counted"]
