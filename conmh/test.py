"""ConMH's test: codes, Hamming ranking, mAP@K beside the published row (its spec: section 3)."""

from collections.abc import Mapping
from pathlib import Path

from conmh.settings import SYSTEM, ConMHSettings
from engine.evaluation import run_test
from engine.runs import Run


def train_model(
    settings: ConMHSettings, run: Run, weights: Mapping[str, Path | None] | None = None
) -> dict[int, float]:
    """Test one network of ConMH or several; arguments, result and errors as in ``run_test``."""
    return run_test(SYSTEM, settings, run, weights)
