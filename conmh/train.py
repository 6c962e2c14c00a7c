"""ConMH's training: masked reconstruction of two views whose codes are to agree (its spec: section 2)."""

from pathlib import Path

import torch
from torch import Tensor

from conmh.settings import ConMHSettings, fresh_network
from engine.device import environment, open_device
from engine.feed import masked, open_training_set
from engine.loop import Pass, Stage, run_stage
from engine.ranks import Part
from engine.runs import Run
from engine.training import contrastive_remark, step_decay
from layers import contrastive_loss


def train_model(settings: ConMHSettings, run: Run) -> Path:
    """Train a network from fresh weights.

    Returns:
        The finished checkpoint.

    Raises:
        BadInput: the training set cannot be used, or a loss is not finite.
    """
    if run.is_trained():
        return run.end()
    own, device = settings.conmh, open_device(settings)
    store = open_training_set(settings, device)
    net = fresh_network(settings, settings.config.feature_size).to(device)

    def loss(part: Part, frames: Tensor, mask: Tensor) -> dict[str, Tensor]:
        out = net.masked(frames, mask)
        views = map(part.gather, out.embedding.chunk(2))  # a video's negatives are those of the whole batch
        contrast = contrastive_loss(*views, own.temperature, own.tau_plus)
        return {"reconstruction": out.loss, "contrastive": own.a * contrast}

    run.start(store.place, **environment(device), videos=len(store))
    if remark := contrastive_remark(len(store), settings.batch_size, own.a):
        run.say(remark)
    optimizer = torch.optim.Adam(net.parameters(), settings.lr, fused=True)
    passes = [Pass("views", masked(store, own.p), loss)]
    rate = step_decay(settings.lr, own.lr_decay, own.lr_decay_epochs, own.lr_min)
    run_stage(run, Stage(net, optimizer, store, passes, settings.max_iter, rate))
    return run.end()
