"""Stage 2: a small ZImageTransformer2DModel learns to turn noise and a caption into the latents of a clip.

Rectified flow as Z-Image has it: `x = (1 - sigma) * x0 + sigma * noise`, `t = 1 - sigma`, the output is `x0 - noise`. A share
of the examples keeps latent frame 0 clean, so that a held first frame is continued. One step takes clips of one length and
one f_patch_size; every draw comes from the step's own seed, so a resumed run repeats an unbroken one.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ZImageTransformer2DModel

from training.toy_model.captions import caption, with_unknown_words
from training.toy_model.clips import FRAMES, REVERSED, Subject, split_subjects
from training.toy_model.data import CLIPS_PER_SUBJECT
from training.toy_model.fast_block import run_block
from training.toy_model.optimizer import build_optimizers, descend
from training.toy_model.text import HIDDEN, build_text_encoder, build_tokenizer, encode

STEPS = 6000
TOKENS_PER_STEP = 2600
MUON_LR, ADAM_LR = 4.0e-3, 1.5e-3
EMA = 0.997
CAPTION_DROP = 0.1
FIRST_FRAME_HELD = 0.3
CAPTIONS_PER_SUBJECT = 40
CAPTION_MULTIPLE = 32  # Z-Image pads captions to multiples of this
SIGMA_LOGIT = (1.4, 1.4)  # mean and spread: much noise, which decides place and motion; half of a shift-3 schedule is above 0.85
WARM_UP = 100
CHECKPOINT_EVERY = 400
ROTATING_ODDS = 5.0  # against 1 for the other motions: one angle for each frame is the most detail of all

# (f_patch_size, frames) -> how often
LENGTHS = {
    (2, 8): 15, (2, 10): 1, (2, 12): 3, (2, 14): 1, (2, 16): 18, (2, 18): 1, (2, 20): 3, (2, 22): 1, (2, 24): 17,
    (4, 8): 11, (4, 12): 3, (4, 16): 12, (4, 20): 3, (4, 24): 11,
}  # fmt: skip


def new_transformer() -> ZImageTransformer2DModel:
    """The untrained transformer, about 2.5 million parameters."""
    torch.manual_seed(21)
    model = ZImageTransformer2DModel(
        all_patch_size=(2, 2),
        all_f_patch_size=(2, 4),
        in_channels=4,
        dim=128,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=HIDDEN,
        rope_theta=256.0,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 64, 64],
    )
    torch.nn.init.normal_(model.x_pad_token, std=0.02)
    torch.nn.init.normal_(model.cap_pad_token, std=0.02)
    for layer in model.all_final_layer.values():
        torch.nn.init.zeros_(layer.linear.weight)
    return model


def batched_forward(
    model: ZImageTransformer2DModel, x: torch.Tensor, t: torch.Tensor, captions: torch.Tensor, lengths: torch.Tensor, f: int
) -> torch.Tensor:
    """`model(list(x), t, captions)` for a batch of one shape, without the per-clip lists; equal to it within rounding.

    x [B, C, F, H, W]; t [B]; captions [B, L, 64] with L a multiple of 32, of which `lengths` [B] are real. -> like x.
    """
    batch, channels, frames, height, width = x.shape
    grid = (frames // f, height // 2, width // 2)
    adaln = model.t_embedder(t * model.t_scale)
    patches = x.reshape(batch, channels, grid[0], f, grid[1], 2, grid[2], 2).permute(0, 2, 4, 6, 3, 5, 7, 1)
    tokens = model.all_x_embedder[f"2-{f}"](patches.reshape(batch, math.prod(grid), -1))
    padding = -tokens.shape[1] % CAPTION_MULTIPLE
    tokens = torch.cat([tokens, model.x_pad_token.expand(batch, padding, -1)], dim=1)
    caption_length = captions.shape[1]
    x_freqs, caption_freqs = _rotary(model, grid=grid, padding=padding, caption_length=caption_length)
    for layer in model.noise_refiner:
        tokens = run_block(layer, tokens, x_freqs, adaln)
    words = model.cap_embedder(captions)
    is_pad = torch.arange(caption_length)[None] >= lengths[:, None]
    words = torch.where(is_pad[..., None], model.cap_pad_token, words)
    for layer in model.context_refiner:
        words = run_block(layer, words, caption_freqs)
    unified = torch.cat([tokens, words], dim=1)
    freqs = torch.cat([x_freqs, caption_freqs], dim=1)
    for layer in model.layers:
        unified = run_block(layer, unified, freqs, adaln)
    out = model.all_final_layer[f"2-{f}"](unified[:, : math.prod(grid)], c=adaln)
    out = out.view(batch, *grid, f, 2, 2, channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return out.reshape(batch, channels, frames, height, width)


def _rotary(
    model: ZImageTransformer2DModel, *, grid: tuple[int, int, int], padding: int, caption_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rotary tables [1, n, head_dim / 2] of the clip's tokens and of the caption's, at Z-Image's positions."""
    start = (caption_length + 1, 0, 0)
    positions = model.create_coordinate_grid(grid, start).flatten(0, 2)
    positions = torch.cat([positions, torch.zeros(padding, 3, dtype=positions.dtype)])
    words = model.create_coordinate_grid((caption_length, 1, 1), (1, 0, 0)).flatten(0, 2)
    return model.rope_embedder(positions)[None], model.rope_embedder(words)[None]


@dataclass
class CaptionPool:
    """Features of many captions of each training subject: `short` fit 32 tokens, `long` 64. Padded, with real lengths."""

    short: torch.Tensor  # [subjects, captions, 32, 64]
    short_lengths: torch.Tensor
    long: torch.Tensor  # [subjects, few, 64, 64]
    long_lengths: torch.Tensor
    empty: torch.Tensor  # [tokens, 64], the features of ""


def build_caption_pool(subjects: list[Subject]) -> CaptionPool:
    """Draw and encode the captions once, with fixed seeds."""
    generator = np.random.default_rng(31)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(len(tokenizer))
    short, long = [], []
    for subject in subjects:
        for index in range(CAPTIONS_PER_SUBJECT):
            text = caption(subject, generator)
            short.append(with_unknown_words(text, generator, letters=6) if index % 10 == 9 else text)
        long += [with_unknown_words(caption(subject, generator), generator, letters=24) for _ in range(4)]

    def pooled(texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        features = [row[:length] for row in encode(texts, tokenizer=tokenizer, encoder=encoder)]
        table = torch.zeros(len(texts), length, HIDDEN)
        for index, row in enumerate(features):
            table[index, : len(row)] = row
        lengths = torch.tensor([len(row) for row in features])
        return table.unflatten(0, (len(subjects), -1)), lengths.unflatten(0, (len(subjects), -1))

    return CaptionPool(
        *pooled(short, CAPTION_MULTIPLE),
        *pooled(long, 2 * CAPTION_MULTIPLE),
        empty=encode([""], tokenizer=tokenizer, encoder=encoder)[0],
    )


@dataclass
class Batch:
    """One step's examples. x0, noise [B, 4, F, 8, 8]; sigma [B]; held [B] bool: frame 0 is given clean."""

    f: int
    x0: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    held: torch.Tensor
    captions: torch.Tensor
    lengths: torch.Tensor


class Sampler:
    """Draws the batch of a given step from the latents of the training clips."""

    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents
        self.subjects, _ = split_subjects()
        self.pool = build_caption_pool(self.subjects)
        places = {subject: index for index, subject in enumerate(self.subjects)}
        # A clip played backwards is a clip of the opposite motion, which must itself be a training subject.
        self.backwards = [
            places.get(Subject(s.shape, s.colour, REVERSED[s.motion])) if s.motion in REVERSED else None for s in self.subjects
        ]
        odds = np.array(list(LENGTHS.values()), dtype=float)
        self.odds = odds / odds.sum()
        self.is_rotating = np.array([subject.motion == "rotating" for subject in self.subjects])
        often = np.where(self.is_rotating, ROTATING_ODDS, 1.0)
        self.subject_odds = often / often.sum()

    def __call__(self, step: int) -> Batch:
        draw = np.random.default_rng([41, step])
        torch_draw = torch.Generator().manual_seed(1_000_003 * 41 + step)
        f, frames = list(LENGTHS)[draw.choice(len(LENGTHS), p=self.odds)]
        caption_length = 2 * CAPTION_MULTIPLE if draw.random() < 0.05 else CAPTION_MULTIPLE
        tokens = math.ceil(frames // f * 16 / 32) * 32 + caption_length
        size = max(8, round(TOKENS_PER_STEP / tokens))
        subjects = draw.choice(len(self.subjects), size=size, p=self.subject_odds)
        clips = [self._window(int(s), frames, draw) for s in subjects]
        x0 = torch.stack(clips)
        quantiles = (torch.arange(size) + torch.rand(size, generator=torch_draw)) / size
        mean, spread = SIGMA_LOGIT
        normal = torch.special.ndtri(quantiles.clamp(1e-4, 1 - 1e-4))
        captions, lengths = self._captions(subjects, caption_length, draw)
        return Batch(
            f=f,
            x0=x0,
            noise=torch.randn(x0.shape, generator=torch_draw),
            sigma=torch.sigmoid(mean + spread * normal),
            held=torch.rand(size, generator=torch_draw) < FIRST_FRAME_HELD,
            captions=captions,
            lengths=lengths,
        )

    def _window(self, subject: int, frames: int, draw: np.random.Generator) -> torch.Tensor:
        """A random window [4, frames, 8, 8] of a random clip of the subject, or of its opposite played backwards."""
        other = self.backwards[subject]
        backwards = other is not None and draw.random() < 0.5
        source = other if backwards else subject
        clip = self.latents[source * CLIPS_PER_SUBJECT + draw.integers(CLIPS_PER_SUBJECT)]
        # A turn is learned from its upright start: every angle at every moment would take many times the training.
        begin = 0 if self.is_rotating[subject] else draw.integers(FRAMES - frames + 1)
        window = clip[:, begin : begin + frames]
        return window.flip(1) if backwards else window

    def _captions(self, subjects: np.ndarray, caption_length: int, draw: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        is_long = caption_length > CAPTION_MULTIPLE
        table = self.pool.long if is_long else self.pool.short
        table_lengths = self.pool.long_lengths if is_long else self.pool.short_lengths
        choices = draw.integers(table.shape[1], size=len(subjects))
        captions, lengths = table[subjects, choices].clone(), table_lengths[subjects, choices].clone()
        dropped = torch.from_numpy(draw.random(len(subjects)) < CAPTION_DROP)
        captions[dropped, : len(self.pool.empty)] = self.pool.empty
        lengths[dropped] = len(self.pool.empty)
        return captions, lengths


def flow_loss(model: ZImageTransformer2DModel, batch: Batch) -> torch.Tensor:
    """Mean squared error of `x0 - noise`; a frame that was given clean counts for nothing."""
    sigma = batch.sigma[:, None, None, None, None]
    x = (1 - sigma) * batch.x0 + sigma * batch.noise
    weight = torch.ones_like(x[:, :1])
    weight[batch.held, :, 0] = 0.0
    x[batch.held, :, 0] = batch.x0[batch.held, :, 0]
    out = batched_forward(model, x, 1 - batch.sigma, batch.captions, batch.lengths, batch.f)
    error = (out - (batch.x0 - batch.noise)).square() * weight
    return error.sum() / (weight.sum() * x.shape[1])


def train_transformer(
    latents: torch.Tensor, work: Path, *, steps: int = STEPS, until: int | None = None, log=print
) -> ZImageTransformer2DModel:
    """Train on `latents` [N, 4, 24, 8, 8], going on from `work/transformer.pt` if there; returns the averaged model.

    `until` leaves off before that step, as a stopped run would.
    """
    sampler = Sampler(latents)
    model, average = new_transformer().train(), new_transformer().requires_grad_(False)
    optimizers = build_optimizers(model, hidden_names=(".attention.to_", ".feed_forward."), muon_lr=MUON_LR, adam_lr=ADAM_LR)
    peaks = [MUON_LR, ADAM_LR]
    checkpoint = work / "transformer.pt"
    first = _resume(checkpoint, model, average, optimizers)
    begin, losses = time.time(), []
    for step in range(first, until or steps):
        loss = flow_loss(model, sampler(step))
        descend(model, loss, optimizers, [peak * rate_share(step, steps) for peak in peaks])
        decay = min(EMA, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            pace = (time.time() - begin) / len(losses)
            log(f"transformer {step + 1}/{steps} loss {np.mean(losses[-50:]):.4f} ({pace:.2f} s/step)")
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            state = [model.state_dict(), average.state_dict(), [o.state_dict() for o in optimizers], step + 1]
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").rename(checkpoint)
    return average.eval()


def rate_share(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: warm-up, then a straight line to 1%."""
    return min((step + 1) / WARM_UP, 1 - 0.99 * step / steps)


def _resume(checkpoint: Path, model, average, optimizers) -> int:
    """Load the last checkpoint if there is one; returns the step to go on from."""
    if not checkpoint.exists():
        return 0
    model_state, average_state, optimizer_states, step = torch.load(checkpoint)
    model.load_state_dict(model_state)
    average.load_state_dict(average_state)
    for optimizer, state in zip(optimizers, optimizer_states, strict=True):
        optimizer.load_state_dict(state)
    return step


def averaged_checkpoint(work: Path) -> ZImageTransformer2DModel:
    """The averaged model of the last checkpoint in `work`."""
    model = new_transformer()
    model.load_state_dict(torch.load(work / "transformer.pt")[1])
    return model.eval()
