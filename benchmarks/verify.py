"""How long `iet-agc verify` takes at the paper's size, by scores that are drawn at random: no image is searched for.

    python benchmarks/verify.py [SAMPLES] [REFERENCES]

Of 65,536 samples, 50,000 training and 10,000 held-out images, with 50 neighbours each, in pixels. It prints seconds of
packing and of checking, and the pack's size.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from iet_agc.auditing.compute import AuditResult
from iet_agc.auditing.copies import Scores, copies_of
from iet_agc.auditing.pack import pack_audits
from iet_agc.auditing.run import save_audit
from iet_agc.auditing.schema import AuditRecord, Conventions, Fingerprints
from iet_agc.auditing.verdict import verdict
from iet_agc.auditing.verify import verify_pack
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.calibration import Neighbors, Probe
from iet_agc.metrics.intervals import share
from iet_agc.metrics.quality import no_quality
from iet_agc.metrics.soundness import MOST_COPIED, MOST_TRAINED

HELD_OUT, NEIGHBORS = 10_000, 50


def distances(count: int, rng: torch.Generator, columns: int = NEIGHBORS) -> torch.Tensor:
    """Ascending, whole numbers over 255 squared, as those of pixels are."""
    drawn = torch.randint(10**5, 10**7, (count, columns), generator=rng)
    return drawn.sort(1).values.double() / 255**2


def scores(samples: int, references: int, rng: torch.Generator) -> Scores:
    """Of every kind that pixels have."""
    drawn = torch.randperm(references, generator=rng)[:MOST_TRAINED]
    kinds = dict.fromkeys(("jpeg_75", "noise_5", "squeezed_90"), torch.empty(0, dtype=torch.uint8))
    found = Neighbors(
        distances(samples, rng),
        torch.empty(0),
        distances(samples, rng, 1)[:, 0],
        distances(HELD_OUT, rng),
        distances(HELD_OUT, rng, 1)[:, 0],
        others=distances(len(drawn), rng),
        altered=distances(len(kinds) * MOST_COPIED, rng),
    )
    fresh = found.fresh
    assert fresh is not None
    cells = torch.randint(10, (samples,), generator=rng), torch.randint(10, (int(fresh.sum()),), generator=rng)
    return Scores(found=found, cells=cells, probe=Probe(drawn, kinds, (share(0, HELD_OUT), 0.0)))


def result(samples: int, references: int) -> AuditResult:
    """An audit that no search was done for; its numbers are those of its scores."""
    rng = torch.Generator().manual_seed(0)
    sets = [
        ImageSet(torch.randint(256, (n, 3, 32, 32), generator=rng, dtype=torch.uint8), "x")
        for n in (references, samples)
    ]
    found = scores(samples, references, rng)
    numbers = AuditRecord(
        num_samples=samples,
        num_train=references,
        num_train_unique=references,
        num_held_out=HELD_OUT,
        num_held_out_in_train=0,
        num_held_out_repeated=0,
        sha256=Fingerprints(train="0" * 64, samples="1" * 64, held_out="2" * 64),
        conventions=Conventions(k=NEIGHBORS, flips=False, interval="Wilson, 95 %"),
        **dict(copies_of(found, None)),
        quality=no_quality(True, (3, 32, 32)),
        feature_spaces={},
    )
    return AuditResult(
        numbers=numbers.model_copy(update={"verdict": verdict(numbers)}),
        ratios=found.found.ratios,
        nearest=torch.randint(references, (samples,), generator=rng),
        distances=found.found.distances[:, 0],
        mirrored=torch.zeros(samples, dtype=torch.bool),
        held_out_ratios=found.found.held_out_ratios,
        samples=sets[1],
        train=sets[0],
        unique=torch.arange(references),
        place=torch.arange(references),
        scores=(found,),
    )


def main(samples: int = 65_536, references: int = 50_000) -> None:
    """Time both."""
    with tempfile.TemporaryDirectory() as place:
        audit = save_audit(result(samples, references), Path(place) / "audit")
        told = {"samples": samples, "references": references}
        for name, work in (
            ("pack", lambda: pack_audits([audit], Path(place) / "pack")),
            ("verify", lambda: verify_pack(Path(place) / "pack")),
        ):
            wall, cpu = time.perf_counter(), time.process_time()
            found = work()
            told |= {f"{name}_seconds": round(time.perf_counter() - wall, 1)}
            told |= {f"{name}_processor_seconds": round(time.process_time() - cpu, 1)}
            told |= {key: found[key] for key in ("bytes", "sound", "counted") if key in found}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
