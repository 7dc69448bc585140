"""Put the weights of a run into the package as its example: `python docs/example_model.py runs/example`.

The run is that of the commands in `src/regard/weights/example/README.md`. Of its best checkpoint the averaged weights
are kept, with the scores and settings, but not what only a training needs.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from regard.training.checkpoint_writer import save_checkpoint
from regard.training.checkpoints import read_checkpoint
from regard.weights.load import best_checkpoint
from regard.weights.source import example_model


def main(run: Path) -> None:
    """Replace the example by the weights of a run."""
    found = read_checkpoint(best_checkpoint(run), parts=["ema"])
    state = {name: found.state[name] for name in ("model_state", "progress")}
    folder = example_model()
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    save_checkpoint(folder / "checkpoints", found.step, {"model": found.tensors["ema"]}, state)
    for name in ("config.yaml", "metrics.json"):
        shutil.copyfile(run / name, folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
