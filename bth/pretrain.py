"""Stage 1 of BTH: the mask loss alone; leaves the latents of the training videos (spec: section 2)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bth.pairs import draw_disturbance, read_disturbed
from bth.prepare import write_latents
from bth.settings import BTHSettings, fresh_network, learning_rate
from data import open_store
from engine.device import environment, open_device
from engine.feed import Batch, Fetch, open_training_set
from engine.loop import Pass, Stage, run_stage
from engine.ranks import Part
from engine.runs import Run


def train_model(settings: BTHSettings, run: Run) -> Path:
    """Train a fresh network on single disturbed videos, then write ``latent_feats.h5``.

    Returns:
        The finished checkpoint.

    Raises:
        BadInput: the training set cannot be used, a file cannot be written, or a loss is not finite.
    """
    config, device = settings.config, open_device(settings)
    if run.is_trained():  # but look at the latents: another run may have written its own since
        write_latents(settings, open_store(config, config.train, "disk", device), run.weights, run.say)
        return run.end()
    store = open_training_set(settings, device)
    net = fresh_network(settings, config.feature_size, run.stage).to(device)

    def draw(rng: np.random.Generator) -> Fetch:
        order = rng.permutation(len(store))
        plan = draw_disturbance((len(store), config.max_frames), len(store), rng)

        def fetch(places: slice) -> Batch:
            return read_disturbed(store.read, order[places], plan.batch(places))

        return fetch

    def loss(part: Part, frames: Tensor, places: Tensor, replacement: Tensor) -> dict[str, Tensor]:
        return {"mask": net.masked(frames, places, replacement, part.rows, part.n_videos).loss}

    run.start(store.place, **environment(device), videos=len(store))
    optimizer = torch.optim.Adam(net.parameters(), settings.lr, fused=True)
    passes = [Pass("mask", draw, loss)]
    run_stage(run, Stage(net, optimizer, store, passes, settings.max_iter[0], learning_rate(settings)))
    write_latents(settings, store, run.weights, run.say)
    return run.end()
