"""Stage 4 of BTH: codes without dropout, Hamming ranking, mAP@K beside the published row (section 4)."""

from collections.abc import Mapping
from pathlib import Path

from bth import model
from bth.pretrain import fresh_network
from engine.evaluation import System, run_test
from engine.runs import Run
from engine.settings import Settings

SYSTEM = System("BTH", (5, 10, 20, 40, 60, 80, 100), ("bth.train", "bth.pretrain"), model, fresh_network)


def train_model(
    settings: Settings, run: Run, weights: Mapping[str, Path | None] | None = None
) -> dict[int, float]:
    """Test one network of BTH or several; arguments, result and errors as in ``run_test``."""
    return run_test(SYSTEM, settings, run, weights)
