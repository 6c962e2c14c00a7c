"""Stage 3: encode database and queries, rank by Hamming distance, print mAP@K beside the published row.

(The file shadows CPython's own ``test`` package, which nothing here needs; the name is the published one.)
"""

from collections.abc import Mapping
from pathlib import Path

from engine.evaluation import run_test
from engine.runs import Run
from pretrain import SYSTEM, WSCHSettings


def train_model(
    settings: WSCHSettings, run: Run, weights: Mapping[str, Path | None] | None = None
) -> dict[int, float]:
    """Test one network of WSCH or several; arguments, result and errors as in ``run_test``."""
    return run_test(SYSTEM, settings, run, weights)
