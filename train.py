"""Stage 2 of WSCH: the cycle of clustering, cluster-guided and contrastive training (spec: section 7)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import model
from cluster import kmeans, plusplus
from data import draw_views
from engine import ranks
from engine.checkpoint import find_weights, load_moments, load_weights
from engine.device import environment, open_device
from engine.feed import count_training_videos, encode, masked, open_training_set
from engine.loop import Pass, Stage, Step, run_stage
from engine.ranks import Part
from engine.runs import Run
from engine.training import contrastive_remark
from formats.files import BadInput
from metrics import sign
from model import cluster_loss, contrastive_loss, reconstruction_loss
from pretrain import WSCHSettings

STARTS_FROM = ("pretrain",)


def train_model(settings: WSCHSettings, run: Run, pretrained: Path | None = None) -> Path:
    """Train a pre-trained network, its Adam moments carried on.

    Args:
        settings: of the run.
        run: where to log and to save.
        pretrained: its checkpoint; None: what ``weight_path`` says.

    Returns:
        The finished checkpoint.

    Raises:
        BadInput: training set or checkpoint cannot be used, there are more centers than codes, or a loss is
            not finite.
    """
    if run.is_trained():
        return run.end()
    cfg, device = settings.cfg, open_device(settings)
    path = pretrained or run.started_with("weights")
    path = path or find_weights(settings, STARTS_FROM, model.load_published, to_train=True)
    weights = load_weights(Path(path), settings, STARTS_FROM, model, to_train=True)
    check_clusters(settings)
    store = open_training_set(settings, device)
    net = weights.net
    net.bfloat16 = settings.precision == "bfloat16"
    if len(net.centers) != cfg.n_clusters:  # pre-training leaves them at zero
        net.centers = torch.zeros(cfg.n_clusters, net.centers.shape[1])
    net.to(device)
    optimizer = torch.optim.Adam(net.parameters(), settings.lr, fused=True)
    if weights.optimizer is not None:
        load_moments(optimizer, weights.optimizer, path)

    def cluster(epoch: int, rng: np.random.Generator) -> dict[str, float]:
        """Step 1: new sign centers from the codes of both views of every video."""
        _, masks = draw_views(rng, len(store), store.shape[1], cfg.p1)

        def codes_of(frames: Tensor, rows: slice) -> Tensor:
            codes = sign(net.embed(frames, masks[:, rows].flatten(0, 1)))  # (2B, b)
            return torch.stack(codes.chunk(2), dim=1)  # (B, 2, b)

        codes = encode(store, codes_of, device, settings, "codes of both views", torch.int8)  # (N, 2, b)
        codes = codes.transpose(0, 1).flatten(0, 1).to(device)  # (2N, b), view 1 first
        seed = torch.Generator().manual_seed(int(rng.integers(2**62)))
        start = net.centers if epoch else plusplus(codes, cfg.n_clusters, seed)
        own = codes[ranks.share(len(codes))]
        result = kmeans(own, cfg.n_clusters, init=start, total=ranks.total, gather=ranks.gather)
        net.centers.copy_(result.centers.sign())
        return {"inertia": result.inertia, "rounds": result.n_iter}

    def guided(_: Part, frames: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Step 2: reconstruction, and every video towards its nearest center."""
        out = net(frames, mask)
        pull = sum(cluster_loss(h, net.centers, cfg.clus_temperature) for h in out.embedding.chunk(2))
        return {
            "reconstruction": reconstruction_loss(out.reconstruction, frames, mask),
            "cluster": cfg.a * pull,
        }

    def contrastive(part: Part, frames: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Step 3: reconstruction, and both views of a video towards each other."""
        out = net(frames, mask)
        views = map(part.gather, out.embedding.chunk(2))  # a video's negatives are those of the whole batch
        return {
            "reconstruction": reconstruction_loss(out.reconstruction, frames, mask),
            "contrastive": cfg.b * contrastive_loss(*views, cfg.temperature, cfg.tau_plus),
        }

    passes = [
        Step("clustering", cluster),
        Pass("cluster-guided", masked(store, cfg.p2), guided),
        Pass("contrastive", masked(store, cfg.p2), contrastive),
    ]
    moments = "" if weights.optimizer is not None else " (without Adam's moments: the file has none)"
    note = f"starts from {path} ({weights.origin}){moments}; {store.place}"
    run.start(note, **environment(device), videos=len(store), weights=str(path))
    for difference in weights.differs:
        run.say(f"{path}: {difference}")
    if remark := contrastive_remark(len(store), settings.batch_size, cfg.b):
        run.say(remark)
    run_stage(run, Stage(net, optimizer, store, passes, settings.max_iter[1], lambda _: settings.lr))
    return run.end()


def check_clusters(settings: WSCHSettings) -> None:
    """Compare the number of centers with that of codes.

    Raises:
        BadInput: there are more centers.
    """
    config = settings.config
    n_videos = count_training_videos(config)
    if settings.cfg.n_clusters > 2 * n_videos:
        raise BadInput(
            f"'cfg.n_clusters' is {settings.cfg.n_clusters}, more than the {2 * n_videos} codes "
            f"of both views of the {n_videos} training videos of {config.path}; set cfg.n_clusters, or "
            "'n_clusters' in 'cfg' of its block 'run'"
        )
