"""Stage 4 of BTH: codes without dropout, Hamming ranking, mAP@K beside the published row (section 4)."""

from collections.abc import Mapping
from pathlib import Path

from bth.settings import SYSTEM, BTHSettings
from engine.evaluation import run_test
from engine.runs import Run


def train_model(
    settings: BTHSettings, run: Run, weights: Mapping[str, Path | None] | None = None
) -> dict[int, float]:
    """Test one network of BTH or several; arguments, result and errors as in ``run_test``."""
    return run_test(SYSTEM, settings, run, weights)
