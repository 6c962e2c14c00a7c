"""Stage 3 of BTH: pairs of disturbed videos and the three losses (spec: section 3)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bth import model
from bth.model import cluster_loss, neighborhood_loss
from bth.pairs import draw_disturbance, draw_pairs, read_disturbed
from bth.prepared import Prepared
from bth.settings import BTHSettings, fresh_network, learning_rate
from engine import ranks
from engine.checkpoint import find_weights, load_weights
from engine.device import environment, open_device
from engine.feed import Batch, Fetch, open_training_set
from engine.loop import Pass, Stage, run_stage
from engine.ranks import Part
from engine.runs import Run

STARTS_FROM = ("bth.pretrain", "bth.train")


def train_model(settings: BTHSettings, run: Run, mask_only: Path | None = None) -> Path:
    """Train on pairs, from fresh weights as published, or from those of ``weight_path``.

    Args:
        settings: of the run.
        run: where to log and to save.
        mask_only: the network from whose latents the prepared files must be; None: any.

    Returns:
        The finished checkpoint.

    Raises:
        BadInput: training set, prepared files or checkpoint cannot be used, or a loss is not finite.
    """
    if run.is_trained():
        return run.end()
    config, device, bth = settings.config, open_device(settings), settings.bth
    store = open_training_set(settings, device)
    prepared = Prepared(settings, len(store))
    ranks.on_first(prepared.check)(mask_only)  # reads the latents, which the others do without
    anchors, pseudo_label, similarity = prepared.anchors, prepared.pseudo_label, prepared.similarity
    path = run.started_with("weights")
    if path is None and settings.weight_path is not None:
        path = str(find_weights(settings, STARTS_FROM, model.load_published, to_train=True))
    start, differs = "fresh weights", []
    if path is None:
        net = fresh_network(settings, config.feature_size)
    else:
        weights = load_weights(Path(path), settings, STARTS_FROM, model, to_train=True)
        net, start, differs = weights.net, f"{path} ({weights.origin})", weights.differs
        net.bfloat16 = settings.precision == "bfloat16"
    net.to(device)

    def draw(rng: np.random.Generator) -> Fetch:
        order = rng.permutation(len(store))
        partner, target = draw_pairs(similarity, order, rng)
        plan = draw_disturbance((2, len(store), config.max_frames), len(store), rng)
        pairs = np.stack([order, partner])  # (2, N)

        def fetch(places: slice) -> Batch:
            videos = pairs[:, places]  # (2, B)
            disturbed = read_disturbed(store.read, videos, plan.batch(places))
            targets = torch.from_numpy(target[places])
            return *disturbed, targets, anchors[pseudo_label[videos]]  # (2, B, H)

        return fetch

    def loss(
        part: Part, frames: Tensor, places: Tensor, replacement: Tensor, target: Tensor, nearest: Tensor
    ) -> dict[str, Tensor]:
        # Both videos of all pairs in one batch.
        out = net.masked(frames, places, replacement, part.rows, part.n_videos)
        codes, hidden = out.codes.chunk(2), out.hidden.chunk(2)
        pull = sum(cluster_loss(one, anchor) for one, anchor in zip(hidden, nearest, strict=True))
        return {
            "mask": bth.mask_weight * out.loss,
            "neighborhood": bth.neighborhood_weight * neighborhood_loss(*codes, target),
            "cluster": bth.cluster_weight * pull,
        }

    source = f"{len(anchors)} anchors of {prepared.paths['anchors']}"
    note = f"starts from {start}; {source}; {store.place}"
    run.start(note, **environment(device), videos=len(store), weights=path)
    for difference in differs:
        run.say(f"{path}: {difference}")
    optimizer = torch.optim.Adam(net.parameters(), settings.lr, fused=True)
    passes = [Pass("pairs", draw, loss)]
    inputs = prepared.inputs()
    rate = learning_rate(settings)
    run_stage(run, Stage(net, optimizer, store, passes, settings.max_iter[1], rate, inputs))
    return run.end()
