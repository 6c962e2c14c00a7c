"""Stage 1 of BTH: the mask loss alone; leaves the latents of the training videos (spec: section 2)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bth.model import BTH, mask_loss
from bth.pairs import draw_disturbance, read_disturbed
from bth.prepare import write_latents
from data import generator, open_store
from engine.device import environment, open_device
from engine.feed import Batch, Fetch, open_training_set
from engine.loop import Pass, Stage, run_stage
from engine.runs import Run
from engine.settings import Settings


def train_model(settings: Settings, run: Run) -> Path:
    """Train a fresh network on single disturbed videos, then write ``latent_feats.h5``.

    Returns:
        The finished checkpoint.

    Raises:
        BadInput: the training set cannot be used, a file cannot be written, or a loss is not finite.
    """
    config, device = settings.config, open_device(settings)
    if run.is_done():  # but look at the latents: another run may have written its own since
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

    def loss(clean: Tensor, disturbed: Tensor) -> dict[str, Tensor]:
        return {"mask": mask_loss(net(disturbed).reconstruction, clean)}

    run.start(store.place, **environment(device), videos=len(store))
    optimizer = torch.optim.Adam(net.parameters(), settings.lr, fused=True)
    passes = [Pass("mask", draw, loss)]
    run_stage(run, Stage(net, optimizer, store, passes, settings.max_iter[0], learning_rate(settings)))
    write_latents(settings, store, run.weights, run.say)
    return run.end()


def fresh_network(settings: Settings, input_size: int, stage: str = "bth.train") -> BTH:
    """A network with the initial weights of (seed, stage), different ones for the two training stages."""
    torch.manual_seed(generator(settings.seed, stage).integers(2**62))
    net = BTH(input_size, settings.hidden_size, settings.hashcode_size)
    net.bfloat16 = settings.precision == "bfloat16"
    return net


def learning_rate(settings: Settings) -> Callable[[int], float]:
    """``max(lr * decay^(epoch // decay_epochs), lr_min)``, the epoch counted from 0; never above ``lr``."""
    bth = settings.bth
    least = min(bth.lr_min, settings.lr)  # Differs: a smaller lr than the published floor stays as it is
    return lambda epoch: max(settings.lr * bth.lr_decay ** (epoch // bth.lr_decay_epochs), least)
