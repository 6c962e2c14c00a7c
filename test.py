"""Stage 3: encode database and queries, rank by Hamming distance, print mAP@K beside the published row.

(The file shadows CPython's own ``test`` package, which nothing here needs; the name is the published one.)
"""

from collections.abc import Mapping
from pathlib import Path

import model
from engine.evaluation import System, run_test
from engine.runs import Run
from engine.settings import Settings
from pretrain import fresh_network

SYSTEM = System("WSCH", (5, 20, 40, 60, 80, 100), ("train", "pretrain"), model, fresh_network)


def train_model(
    settings: Settings, run: Run, weights: Mapping[str, Path | None] | None = None
) -> dict[int, float]:
    """Test one network of WSCH or several; arguments, result and errors as in ``run_test``."""
    return run_test(SYSTEM, settings, run, weights)
