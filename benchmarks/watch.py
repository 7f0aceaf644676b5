"""What watching costs: seconds of the processor at a point, over those of the training between two points.

    python benchmarks/watch.py [PRESET] [--steps 400] [--every 200]

In one run, side by side: other load on the machine slows both. The first point also prepares the watch: it imports
metrics, and sets the cut.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.training.loop import start
from iet_agc.training.watching import Watching


def main() -> None:
    """Train, and print what the points took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", default="digits-default")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=100)
    asked = parser.parse_args()
    changes = {"train.steps": str(asked.steps), "run.watch_every": str(asked.every), "run.threads": "1"}
    settings = override(load_preset(asked.preset), changes | {"method.rounds": "1", "run.preview_images": "0"})
    taken: list[float] = []
    honest = Watching.take

    def timed(self: Watching, *arguments: object) -> None:
        began = time.process_time()
        honest(self, *arguments)  # pyright: ignore[reportArgumentType]
        taken.append(time.process_time() - began)

    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, patch.object(Watching, "take", timed):
        start(settings, Path(folder) / "run")
    training = (time.process_time() - began - sum(taken)) / settings.total_steps
    point = sum(taken[1:]) / len(taken[1:])
    print(
        json.dumps(
            {
                "preset": asked.preset,
                "images": settings.run.watch_images,
                "denoising_steps": settings.run.watch_denoising_steps,
                "seconds_first_point": round(taken[0], 2),
                "seconds_point": round(point, 2),
                "seconds_step": round(training, 4),
                "steps_of_a_point": round(point / training, 1),
                "every_for_5_percent": round(20 * point / training),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
