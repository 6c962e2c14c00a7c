"""ConMH: a masked autoencoder of transformers whose codes two views share, and its published checkpoints.

Reading order: ``Block`` (a layer of a transformer), ``Encoder`` (visible frames -> tokens), ``HashLayer``
(tokens -> bits, in ``layers.py``), ``Decoder`` (bits -> hidden frames), ``ConMH`` (the whole), the
reconstruction loss, ``load_published``. The contrastive loss is that of WSCH, in ``layers.py``.

Axes: B videos (view 1 of a batch, then view 2: 2B), L frames, V visible frames, M = L - V hidden frames,
D feature width, H hidden width, b bits, T tokens. A mask is boolean and True means hidden.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from formats.files import BadInput
from formats.processor import Linear, product
from formats.weights import build_network, read_published
from layers import (
    HashLayer,
    LayerNorm,
    Places,
    attend,
    full,
    position_encoding,
    take_frames,
    video_embedding,
)
from metrics import sign


class Output(NamedTuple):
    """What ``ConMH.forward`` returns."""

    reconstruction: Tensor  # (B, M, D), the hidden frames in temporal order
    codes: Tensor  # (B, V, b) in {-1, +1}, straight-through


class Masked(NamedTuple):
    """What training needs of a batch."""

    loss: Tensor  # ``reconstruction_loss``
    embedding: Tensor  # (2B, b), unit length: the mean of the visible frames' codes


class Attention(nn.Module):
    """Attention with a bias on queries and values but none on keys; heads ``floor(width / n_heads)`` wide."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        inner = width // n_heads * n_heads  # Faithful: less than the width where heads do not divide it
        self.query_bias = nn.Parameter(torch.zeros(inner))
        self.value_bias = nn.Parameter(torch.zeros(inner))
        self.qkv = Linear(width, 3 * inner, bias=False)
        self.output = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Let every token of ``x`` (B, T, H) attend to all of its sequence."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        query, key, value = product(x, self.qkv.weight, bias).chunk(3, dim=-1)
        heads = (each.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for each in (query, key, value))
        return self.output(attend(*heads).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """``e = e + Attention(LN(e))``, then ``e = e + W_2 gelu(W_1 LN(e) + b_1) + b_2``: 4 H wide inside."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.attention_norm = LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, n_heads)
        self.expand_norm = LayerNorm(width, eps=1e-6)
        self.expand = Linear(width, 4 * width)
        self.contract = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (B, T, H)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.contract(F.gelu(self.expand(self.expand_norm(x))))


class Encoder(nn.Module):
    """Visible frames to tokens: projection and position, blocks, norm, head."""

    def __init__(self, input_size: int, hidden_size: int, n_blocks: int, n_heads: int):
        super().__init__()
        self.embed = Linear(input_size, hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, n_heads) for _ in range(n_blocks))
        self.norm = LayerNorm(hidden_size, eps=1e-6)
        self.head = Linear(hidden_size, hidden_size)

    def forward(self, frames: Tensor, position: Tensor) -> Tensor:
        """Encode frames (B, V, D), their positions (V, H) or (B, V, H) given, to (B, V, H)."""
        e = full(self.embed(frames)) + position
        for block in self.blocks:
            e = block(e)
        return self.head(self.norm(e))


class Decoder(nn.Module):
    """Tokens of all frames, the hidden ones last, to the hidden frames: blocks and norm, then ``head``.

    The head is applied by who needs the frames: training does not (``ConMH.masked``).
    """

    def __init__(self, input_size: int, decoder_size: int, n_blocks: int, n_heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(decoder_size, n_heads) for _ in range(n_blocks))
        self.norm = LayerNorm(decoder_size, eps=1e-6)
        self.head = Linear(decoder_size, input_size)

    def forward(self, tokens: Tensor, n_hidden: int) -> Tensor:
        """Transform tokens (B, L, H') to those of the hidden frames, before the head: (B, M, H')."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, -n_hidden:])


class ConMH(nn.Module):
    """The contrastive masked autoencoder.

    Args:
        input_size: width D of a frame feature.
        hidden_size: width H of the encoder, even.
        decoder_size: width H' of the decoder, even.
        hashcode_size: bits b of a code.
        n_blocks: of the encoder.
        n_heads: of its attention.
        decoder_blocks: of the decoder.
        decoder_heads: of its attention.

    Raises:
        ValueError: a width is odd, or narrower than its heads are many, or there is no block.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int = 256,
        decoder_size: int = 192,
        hashcode_size: int = 64,
        n_blocks: int = 12,
        n_heads: int = 6,
        decoder_blocks: int = 2,
        decoder_heads: int = 3,
    ):
        super().__init__()
        for width, blocks, heads in (
            (hidden_size, n_blocks, n_heads),
            (decoder_size, decoder_blocks, decoder_heads),
        ):
            if width % 2 or blocks < 1 or not 1 <= heads <= width:
                raise ValueError(f"{blocks} blocks of width {width} with {heads} heads")
        self.bfloat16 = False  # matrix products in bfloat16; everything else stays in float32
        # What no other weight tells.
        self.register_buffer("heads", torch.tensor([n_heads, decoder_heads], dtype=torch.float32))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_size))
        self.encoder = Encoder(input_size, hidden_size, n_blocks, n_heads)
        self.decoder = Decoder(input_size, decoder_size, decoder_blocks, decoder_heads)
        self.decoder_input = nn.Linear(hashcode_size, decoder_size, bias=False)
        self.hash_layer = HashLayer(hidden_size, hashcode_size)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        for module in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by the names of their settings."""
        decoder_size, hashcode_size = self.decoder_input.weight.shape
        return {
            "input_size": self.encoder.embed.in_features,
            "hidden_size": self.encoder.embed.out_features,
            "decoder_size": decoder_size,
            "hashcode_size": hashcode_size,
            "conmh.n_blocks": len(self.encoder.blocks),
            "conmh.n_heads": self.encoder.blocks[0].attention.n_heads,
            "conmh.decoder_blocks": len(self.decoder.blocks),
            "conmh.decoder_heads": self.decoder.blocks[0].attention.n_heads,
        }

    def forward(self, frames: Tensor, mask: Tensor) -> Output:
        """Hash the visible frames of every view and reconstruct its hidden ones.

        Args:
            frames: frame features, (B, L, D).
            mask: True = hidden, the same number in every row; (B, L), or (2B, L) for two views of each video,
                view 1 of all videos first. Best left on the CPU: its shape decides the shapes here.

        Returns:
            ``reconstruction`` (B or 2B, M, D) and ``codes`` (B or 2B, V, b).
        """
        places = Places.of(frames, mask)
        codes = self.frame_codes(frames, places.visible)  # (2B, V, b)
        with self.autocast(frames):
            reconstruction = self.decoder.head(self.decode(codes, places))
        return Output(full(reconstruction), codes)

    def masked(self, frames: Tensor, mask: Tensor) -> Masked:
        """What training needs of ``forward``, without a reconstructed frame.

        The decoder's head is linear: with u~ = [u, 1] of a hidden frame and W~ = [W, bias] of the head,
        ``|W~ u~ - x|^2 = u~ (W~'W~ u~ - 2 W~'x) + x^2``. So the frames x are needed once, as ``W~'x``, for
        both views together.

        Args:
            frames: frame features, (B, L, D).
            mask: as of ``forward``.
        """
        places = Places.of(frames, mask)
        codes = self.frame_codes(frames, places.visible)  # (2B, V, b)
        head = torch.cat([self.decoder.head.weight.T, self.decoder.head.bias[None]])  # W~', (H' + 1, D)
        with self.autocast(frames):
            u = F.pad(full(self.decode(codes, places)), (0, 1), value=1.0).flatten(0, 1)  # u~, (2B M, H' + 1)
            target = take_frames(full(product(frames, head)), places.hidden).flatten(0, 1)  # W~'x, as u~
        squares = torch.linalg.vector_norm(frames, dim=-1, keepdim=True).square()  # x^2, (B, L, 1)
        squares = take_frames(squares, places.hidden).flatten()  # (2B M,)
        with torch.autocast(frames.device.type, enabled=False):
            terms = u * torch.addmm(target, u, head @ head.T, beta=-2)
        # Added frame by frame: sums over the batch would cancel, and with them the digits of the loss.
        total = (terms.sum(-1) + squares).sum()
        loss = total / (len(frames) * places.hidden.shape[1] * frames.shape[2])
        return Masked(loss, video_embedding(codes))

    def hash(self, frames: Tensor) -> Tensor:
        """Video codes ``sign(mean of all frame codes)``, (B, L, D) -> (B, b) in {-1, 0, +1}."""
        return sign(self.frame_codes(frames).mean(1))

    def frame_codes(self, frames: Tensor, visible: Tensor | None = None) -> Tensor:
        """Codes (B or 2B, V, b) in {-1, +1} of frames (B, L, D): all, or those at the places (B or 2B, V)."""
        n_frames, width = frames.shape[1], self.encoder.embed.out_features
        position = position_encoding(n_frames, width, frames.device)  # (L, H)
        if visible is not None:
            frames, position = take_frames(frames, visible), position[visible]  # (2B, V, D), (2B, V, H)
        with self.autocast(frames):
            return self.hash_layer(self.encoder(frames, position))

    def decode(self, codes: Tensor, places: Places) -> Tensor:
        """Codes (2B, V, b) to the decoder's tokens of the hidden frames, before its head: (2B, M, H')."""
        n_frames = places.visible.shape[1] + places.hidden.shape[1]
        position = position_encoding(n_frames, self.mask_token.shape[-1], codes.device)  # (L, H')
        visible = full(self.decoder_input(codes)) + position[places.visible]
        hidden = F.embedding(places.hidden, self.mask_token[0] + position)  # (2B, M, H')
        return self.decoder(torch.cat([visible, hidden], dim=1), places.hidden.shape[1])

    def autocast(self, frames: Tensor) -> torch.autocast:
        """The precision of the matrix products from here on."""
        return torch.autocast(frames.device.type, torch.bfloat16, enabled=self.bfloat16)


def reconstruction_loss(reconstruction: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error against the raw hidden frames, over videos, hidden frames and width; views added.

    Args:
        reconstruction: (B, M, D), or (2B, M, D) for two views.
        frames: clean frame features, (B, L, D).
        mask: True = hidden, (B, L) or (2B, L).

    Returns:
        A scalar.
    """
    hidden = take_frames(frames, Places.of(frames, mask).hidden)
    return len(mask) // len(frames) * F.mse_loss(reconstruction, hidden)


# Published names and ours; this is the only place that knows both. The modules keep the published order, so
# Adam's numbered states need no map.
_BLOCK = {
    "norm1": "attention_norm",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.output",
    "norm2": "expand_norm",
    "mlp.fc1": "expand",
    "mlp.fc2": "contract",
}
_LAYERS = {
    "encoder.patch_embed": "encoder.embed",
    "encoder.norm": "encoder.norm",
    "encoder.head": "encoder.head",
    "decoder.norm": "decoder.norm",
    "decoder.head": "decoder.head",
    "binary": "hash_layer.linear",
    "ln": "hash_layer.norm",
}
_SINGLE = {"mask_token": "mask_token", "encoder_to_decoder.weight": "decoder_input.weight"}


def published_names(n_blocks: int, decoder_blocks: int) -> dict[str, str]:
    """The published name of every weight of a network with so many blocks, and ours."""
    layers, names = dict(_LAYERS), dict(_SINGLE)
    for part, n in (("encoder", n_blocks), ("decoder", decoder_blocks)):
        for block in (f"{part}.blocks.{number}" for number in range(n)):
            layers |= {f"{block}.{theirs}": f"{block}.{ours}" for theirs, ours in _BLOCK.items()}
            names |= {f"{block}.attn.{x[0]}_bias": f"{block}.attention.{x}_bias" for x in ("query", "value")}
    for theirs, ours in layers.items():
        leaves = ("weight",) if theirs.endswith("qkv") else ("weight", "bias")
        names |= {f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in leaves}
    return names


def load_published(
    source: str | Path | Mapping, n_heads: int = 6, decoder_heads: int = 3, name: str = "state dict"
) -> ConMH:
    """Build the network of a published checkpoint; it does not say its heads, every other size it does.

    Args:
        source: path of a ``.pth`` file, its content (a dict with ``model_state_dict``), or the state dict.
        n_heads: of the encoder (published: small 6, base 12, large 16, mini 1).
        decoder_heads: of the decoder.
        name: what to call a source that is not a path in an error.

    Raises:
        BadInput: the file cannot be read, is a checkpoint of ours, or its names or weights are not those of a
            ConMH network with such heads.
    """
    state, name = read_published(source, name)
    if "heads" in state:  # our name of what the arguments say
        raise BadInput(f"{name}: not the weights of this network: heads is unknown")
    heads = torch.tensor([n_heads, decoder_heads], dtype=torch.float32)
    names = published_names(count_blocks(state, "encoder"), count_blocks(state, "decoder"))
    return build_network(_sized, {**state, "heads": heads}, {**names, "heads": "heads"}, name)


def from_state(state: Mapping[str, Tensor], name: str) -> ConMH:
    """Build the network of a state dict under our names, every size read off the weights.

    Args:
        state: weights by name.
        name: what to call their source in an error.

    Raises:
        BadInput: its names or weights are not those of a ConMH network.
    """
    names = published_names(count_blocks(state, "encoder"), count_blocks(state, "decoder")).values()
    return build_network(_sized, state, {ours: ours for ours in (*names, "heads")}, name)


def count_blocks(state: Mapping, part: str) -> int:
    """How many blocks the names of a state dict, ours or published, have in the encoder or the decoder."""
    names = [str(key).split(".") for key in state] if isinstance(state, Mapping) else []
    return len({name[2] for name in names if name[:2] == [part, "blocks"] and len(name) > 3})


def _sized(weights: Mapping[str, Tensor]) -> ConMH:
    """An empty network of the sizes that the weights have."""
    hidden_size, input_size = weights["encoder.embed.weight"].shape
    decoder_size, hashcode_size = weights["decoder_input.weight"].shape
    n_heads, decoder_heads = weights["heads"].int().tolist()
    n_blocks, decoder_blocks = (count_blocks(weights, part) for part in ("encoder", "decoder"))
    net = ConMH(input_size, hidden_size, decoder_size, hashcode_size, n_blocks, n_heads, decoder_blocks,
                decoder_heads)  # fmt: skip
    for part, told in (("encoder", f"n_heads = {n_heads}"), ("decoder", f"decoder_heads = {decoder_heads}")):
        name = f"{part}.blocks.0.attention.qkv.weight"
        if (wanted := net.get_parameter(name).shape[0]) != (found := len(weights[name])):
            raise ValueError(f"{told} makes {wanted} rows of queries, keys and values, found {found}")
    return net
