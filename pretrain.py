"""Stage 1 of WSCH: masked reconstruction of both views (spec: section 7, pretrain)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import FeatureStore, draw_views, generator
from engine.device import environment, open_device
from engine.feed import Batch, Fetch, open_training_set
from engine.loop import Pass, Stage, run_stage
from engine.runs import Run
from engine.settings import Settings
from model import WSCH, reconstruction_loss


def train_model(settings: Settings, run: Run) -> Path:
    """Pre-train a network from fresh weights.

    Returns:
        The finished checkpoint.

    Raises:
        BadInput: the training set cannot be used, or a loss is not finite.
    """
    if run.is_done():
        return run.end()
    config, device = settings.config, open_device(settings)
    store = open_training_set(settings, device)
    net = fresh_network(settings, config.feature_size).to(device)

    def loss(frames: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": reconstruction_loss(net(frames, mask).reconstruction, frames, mask)}

    passes = [Pass("reconstruction", masked(store, settings.cfg.p1), loss)]
    run.start(store.place, **environment(device), videos=len(store))
    optimizer = torch.optim.Adam(net.parameters(), settings.lr, fused=True)
    run_stage(run, Stage(net, optimizer, store, passes, settings.max_iter[0], lambda _: settings.lr))
    return run.end()


def fresh_network(settings: Settings, input_size: int) -> WSCH:
    """A network with the initial weights of the seed, the same for every stage."""
    torch.manual_seed(generator(settings.seed, "weights").integers(2**62))
    net = WSCH(input_size, settings.hidden_size, settings.decoder_size, settings.hashcode_size,
               settings.cfg.n_clusters)  # fmt: skip
    net.bfloat16 = settings.precision == "bfloat16"
    return net


def masked(store: FeatureStore, mask_ratio: float):
    """A pass over a store whose batches are frames (B, L, D) and the masks of both views (2B, L)."""

    def draw(rng: np.random.Generator) -> Fetch:
        order, masks = draw_views(rng, len(store), store.shape[1], mask_ratio)

        def fetch(places: slice) -> Batch:
            rows = order[places]
            return store.read(rows), masks[:, rows].flatten(0, 1)

        return fetch

    return draw
