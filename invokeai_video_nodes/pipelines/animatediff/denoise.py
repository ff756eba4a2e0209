"""AnimateDiff: noise + prompt embeddings -> clean latents, step for step as diffusers' AnimateDiff pipelines do it.

    text to video    noise -> latents
    video to video   noise + the clip's latents + strength -> latents; with a mask only what it marks is made anew

    beside both      ControlNets, SparseCtrl, IP-Adapters and T2I-Adapters steer; FreeNoise or windows make clips of any length

The model is called in one place, `_Model.predict`, for named frames: `windows` may call it for several parts of the clip.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..errors import BadInput, Canceled, NotFinite, Stop
from ..guidance import guide, is_guided
from ..sampling import OnStep
from ..shapes import check_latents
from .conditioning import check_prompts, per_frame
from .control import Control, summed
from .free_init import FreeInit
from .free_noise import FreeNoise, in_windows
from .ip_adapter import Attached, IPAdapter, attached
from .presets import set_steps
from .t2i_adapter import T2IAdapter, added_features
from .unet import MotionScale, check_motion_scale, compute_dtype, motion_scale

# Latents [1, C, n, h, w] of the named frames of the clip -> the model's guided prediction of that shape, float32.
Predict = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


class Windows(Protocol):
    """Calls `predict` for parts of `latents` [1, C, F, h, w] and blends the answers to that shape. `step` counts from 0.

    `functools.partial(windows.predict_in_windows, settings=...)` is one; no part may be longer than the module's limit.
    """

    def __call__(self, predict: Predict, latents: torch.Tensor, *, step: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class Clip:
    """A clip to start from."""

    latents: torch.Tensor
    """[1, C, F, h, w], clean and scaled."""
    strength: float = 1.0
    """Share of the steps that run, more than 0 to 1."""
    change: torch.Tensor | None = None
    """[1, 1, F or 1, h, w] in 0..1: 1 is made anew, 0 is kept. None: all of it is made anew."""


def denoise(
    unet: Any,
    *,
    noise: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor | None = None,
    guidance_scale: float = 7.5,
    scheduler: Any,
    steps: int,
    clip: Clip | None = None,
    controls: Sequence[Control] = (),
    ip_adapters: Sequence[IPAdapter] = (),
    t2i_adapters: Sequence[T2IAdapter] = (),
    scale: MotionScale = 1.0,
    windows: Windows | None = None,
    free_noise: FreeNoise | None = None,
    free_init: FreeInit | None = None,
    generator: torch.Generator | None = None,
    eta: float = 0.0,
    on_step: OnStep | None = None,
    stop: Stop | None = None,
) -> torch.Tensor:
    """Return the denoised latents [1, C, F, h, w] float32.

    Args:
        unet: a UNetMotionModel, from `unet.motion_unet`. noise: [1, C, F, h, w] float32, Gaussian, on the model's device.
        positive, negative: [1 or F, tokens, 768], one row for all frames or one per frame, both with as many tokens (see
        `conditioning.equally_long`). scheduler: from `presets.make_scheduler`, used up. clip: to start from. controls:
        ControlNets and SparseCtrl; they add up, as IP-Adapters and T2I-Adapters do. scale: of the motion. windows, free_noise:
        one of them is needed above the motion module's number of frames; the noise of FreeNoise comes from `FreeNoise.noise`.
        free_init: repeats the denoise. generator: on the CPU, feeds schedulers that add noise in their steps, and FreeInit.
        eta: DDIM's share of new noise, 0 to 1.

    Raises BadInput before any weight is used, Canceled within one model call of `stop()` answering True, and NotFinite.
    """
    limit = None if windows is not None or free_noise is not None else unet.config.motion_max_seq_length
    check_denoise_input(unet.config, noise=noise, prompts=[positive, negative], clip=clip, scale=scale, limit=limit)
    guided = is_guided(guidance_scale, negative)
    _check_together(unet.config, scheduler=scheduler, clip=clip, windows=windows, free_init=free_init, free_noise=free_noise)
    strength = 1.0 if clip is None else clip.strength
    runs = _runs(steps, free_init)
    totals = steps_of_runs(scheduler, steps=steps, strength=strength, free_init=free_init)
    _check_steering(unet, noise.shape[2:], controls=controls, ip_adapters=ip_adapters, t2i_adapters=t2i_adapters, steps=totals)

    prompts = [negative, positive] if guided and negative is not None else [positive]
    with in_windows(unet, free_noise, frames=noise.shape[2]), attached(unet, ip_adapters) as pictures:
        model = _Model(
            unet=unet,
            prompts=[prompt.to(device=noise.device, dtype=compute_dtype(unet)) for prompt in prompts],
            guidance_scale=guidance_scale,
            controls=controls,
            pictures=pictures,
            t2i_adapters=t2i_adapters,
            scale=scale,
            stop=stop,
        )
        run = _Run(model, scheduler, noise, clip, windows, _step_arguments(scheduler, generator=generator, eta=eta))
        latents = noise
        for iteration, count in enumerate(runs):
            timesteps = set_steps(scheduler, steps=count, strength=strength, device=noise.device)
            if iteration == 0:
                latents = first_latents(noise, scheduler=scheduler, timesteps=timesteps, clip=clip)
            elif free_init is not None:
                latents = free_init.noise_again(latents, noise=noise, scheduler=scheduler, generator=generator)
            latents = run.sample(latents, timesteps, on_step=on_step, done=sum(totals[:iteration]), total=sum(totals))
    return latents


def _check_together(
    config: Any, *, scheduler: Any, clip: Clip | None, windows: Windows | None, free_init: FreeInit | None, free_noise: FreeNoise | None
) -> None:
    """Raise BadInput for settings of which one excludes the other."""
    if free_init is not None:
        free_init.check_scheduler(scheduler)
        if clip is not None:
            raise BadInput.expected("FreeInit", "a clip made from noise alone", "a video to start from", "FreeInit off")
    if free_noise is not None:
        free_noise.check_limit(config.motion_max_seq_length)
        if windows is not None:
            raise BadInput.expected("long clip", "FreeNoise or context windows", "both", "context windows off")


def _check_steering(
    unet: Any,
    size: Sequence[int],
    *,
    controls: Sequence[Control],
    ip_adapters: Sequence[IPAdapter],
    t2i_adapters: Sequence[T2IAdapter],
    steps: Sequence[int],
) -> None:
    """Raise BadInput unless everything that steers suits the model, a clip of `size` (F, h, w) and runs of so many `steps`."""
    frames, height, width = size
    for control in controls:
        control.check(frames=frames, height=height, width=width, text_width=unet.config.cross_attention_dim, steps=steps)
    for ip_adapter in ip_adapters:
        ip_adapter.check(unet, height=height, width=width, steps=steps)
    for t2i_adapter in t2i_adapters:
        t2i_adapter.check(unet.config, frames=frames, height=height, width=width, steps=steps)


def check_denoise_input(
    config: Any,
    *,
    noise: torch.Tensor,
    prompts: Sequence[torch.Tensor | None],
    clip: Clip | None,
    scale: MotionScale,
    limit: int | None,
) -> None:
    """Raise BadInput unless a UNetMotionModel of this config can take these tensors; `limit`: frames in one call, if any."""
    check_latents(noise, channels=config["in_channels"], what="noise")
    frames, height, width = noise.shape[2:]
    if limit is not None and frames > limit:
        raise BadInput.expected("num_frames", f"at most {limit} with this motion module and without context windows", frames, limit)
    check_prompts(prompts, frames=frames, width=config["cross_attention_dim"])
    check_motion_scale(scale, frames=frames, height=height, width=width)
    if clip is None:
        return
    if clip.latents.shape != noise.shape:
        raise BadInput.expected("video latents", list(noise.shape), list(clip.latents.shape), list(noise.shape))
    if clip.change is not None:
        fitting = [(1, 1, count, height, width) for count in (1, frames)]
        if tuple(clip.change.shape) not in fitting:
            raise BadInput.expected("mask", f"[1, 1, 1 or {frames}, {height}, {width}]", list(clip.change.shape), list(fitting[-1]))


def first_latents(noise: torch.Tensor, *, scheduler: Any, timesteps: torch.Tensor, clip: Clip | None) -> torch.Tensor:
    """What the first step sees: noise at the scheduler's scale, or the clip at the noise level of the first timestep."""
    if clip is None:
        return noise * scheduler.init_noise_sigma
    latents: torch.Tensor = scheduler.add_noise(clip.latents.to(noise), noise, timesteps[:1])
    # A VAE gives channels last; kernels for that order round otherwise, and one clip would give two results.
    return latents.contiguous()


def clean_estimate(seen: torch.Tensor, prediction: torch.Tensor, timestep: torch.Tensor, scheduler: Any) -> torch.Tensor:
    """The clean latents that a prediction means: DDIM's equation 12 (https://arxiv.org/abs/2010.02502).

    `seen` is what the model saw, for every scheduler x_t = sqrt(a) x_0 + sqrt(1 - a) noise, with a of a whole timestep.
    """
    alpha = scheduler.alphas_cumprod[int(timestep.round())].to(seen)
    root, rest = alpha.sqrt(), (1.0 - alpha).sqrt()
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (seen - rest * prediction) / root
    return root * seen - rest * prediction if kind == "v_prediction" else prediction


def steps_of_runs(scheduler: Any, *, steps: int, strength: float = 1.0, free_init: FreeInit | None = None) -> list[int]:
    """How many steps really run, for each of FreeInit's runs or for the one: as many numbers a weight per step needs."""
    return [steps_among(set_steps(scheduler, steps=count, strength=strength), scheduler) for count in _runs(steps, free_init)]


def _runs(steps: int, free_init: FreeInit | None) -> list[int]:
    return [steps] if free_init is None else [free_init.steps(iteration, steps) for iteration in range(free_init.iterations)]


def steps_among(timesteps: torch.Tensor, scheduler: Any) -> int:
    """Steps as the user counts them: two model calls of a scheduler of second order are one, but for its last."""
    return -(-len(timesteps) // scheduler.order)


@dataclass(frozen=True)
class _Model:
    unet: Any
    prompts: list[torch.Tensor]
    """[negative, positive] with guidance, else [positive]; each [1 or F, tokens, width]."""
    guidance_scale: float
    controls: Sequence[Control]
    pictures: Attached
    t2i_adapters: Sequence[T2IAdapter]
    scale: MotionScale
    stop: Stop | None

    def whole(self, seen: torch.Tensor, timestep: torch.Tensor, *, step: int, total: int, windows: Windows | None) -> torch.Tensor:
        """The prediction for all frames of `seen` [1, C, F, h, w], by windows where there are any; `step` counts timesteps."""

        def predict(part: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
            return self.predict(part, timestep, frames=frames, step=step, total=total)

        return predict(seen, range(seen.shape[2])) if windows is None else windows(predict, seen, step=step)

    def predict(self, part: torch.Tensor, timestep: torch.Tensor, *, frames: Sequence[int], step: int, total: int) -> torch.Tensor:
        """The guided prediction for `part`, these frames of the clip: one call of the model, with both prompts in one batch."""
        if self.stop is not None and self.stop():
            raise Canceled
        prompts = [per_frame(prompt, frames) for prompt in self.prompts]
        told: dict[str, Any] = {"prompts": prompts, "frames": frames, "step": step, "total": total}
        residuals = summed([control.residuals(part, timestep, **told) for control in self.controls])
        down, mid = residuals or (None, None)
        dtype = compute_dtype(self.unet)
        extra = self.pictures.arguments(guided=len(prompts) > 1, like=prompts[0], step=step, total=total)
        with (
            motion_scale(self.unet, self.scale, frames=frames),
            added_features(self.unet, self.t2i_adapters, frames=frames, step=step, total=total),
        ):
            predictions = self.unet(
                torch.cat([part] * len(prompts)).to(dtype),
                timestep,
                encoder_hidden_states=torch.cat(prompts),
                down_block_additional_residuals=None if down is None else [residual.to(dtype) for residual in down],
                mid_block_additional_residual=None if mid is None else mid.to(dtype),
                return_dict=False,
                **extra,
            )[0].float()
        if len(self.prompts) == 1:
            return torch.as_tensor(predictions)
        negative, positive = predictions.chunk(2)
        return guide(positive, negative, self.guidance_scale)


@dataclass(frozen=True)
class _Run:
    model: _Model
    scheduler: Any
    noise: torch.Tensor
    clip: Clip | None
    windows: Windows | None
    extra: dict[str, Any]
    """What the scheduler's step takes beside the prediction."""

    @torch.no_grad()
    def sample(self, latents: torch.Tensor, timesteps: torch.Tensor, *, on_step: OnStep | None, done: int, total: int) -> torch.Tensor:
        """Denoise over `timesteps`; `done` of `total` steps ran before."""
        scheduler, count, step = self.scheduler, len(timesteps), done
        for index, timestep in enumerate(timesteps):
            seen = scheduler.scale_model_input(latents, timestep)
            prediction = self.model.whole(seen, timestep, step=index, total=count, windows=self.windows)
            latents = scheduler.step(prediction, timestep, latents, **self.extra).prev_sample
            if _is_half_step(scheduler) and index + 1 < count:
                continue
            if self.clip is not None and self.clip.change is not None:
                latents = _put_back(latents, self.clip, noise=self.noise, scheduler=scheduler, following=timesteps[index + 1 : index + 2])
            step += 1
            _check_finite(latents, step=step, total=total)
            if on_step is not None:
                on_step(step, total, clean_estimate(seen, prediction, timestep, scheduler), latents)
        return latents


def _step_arguments(scheduler: Any, *, generator: torch.Generator | None, eta: float) -> dict[str, Any]:
    known = inspect.signature(scheduler.step).parameters
    return {key: value for key, value in (("generator", generator), ("eta", eta)) if key in known}


def _is_half_step(scheduler: Any) -> bool:
    return not getattr(scheduler, "state_in_first_order", True)


def _put_back(latents: torch.Tensor, clip: Clip, *, noise: torch.Tensor, scheduler: Any, following: torch.Tensor) -> torch.Tensor:
    """The latents with what the mask keeps at the noise level of the `following` timestep [1], or clean at the end []."""
    assert clip.change is not None
    clean, change = clip.latents.to(noise), clip.change.to(noise)
    kept = scheduler.add_noise(clean, noise, following) if len(following) else clean
    return change * latents + (1.0 - change) * kept


def _check_finite(latents: torch.Tensor, *, step: int, total: int) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise NotFinite(
            f"denoising: expected numbers after step {step} of {total}, got inf or nan. The clip would be black, so nothing is kept. "
            "Try it without LoRAs and with a lower guidance or motion scale; if that does not help, the model's file is damaged."
        )
