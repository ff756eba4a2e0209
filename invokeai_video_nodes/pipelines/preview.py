"""Latents -> a small RGB picture without a VAE: one fitted convolution, good enough to watch a denoise.

Where nobody has published factors for a VAE they are fitted to it, see `fit_factors`.

A checkpoint may bring its own `latent_preview.json`: {"kernel": [3*s*s][C][k][k], "bias": [3*s*s], "scale": s}, a
convolution that is then spread over s x s pixels per latent cell. It works on the latents as the denoiser sees them,
and gives -1..1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .decode import to_uint8
from .errors import BadInput

Encode = Callable[[np.ndarray], torch.Tensor]

FILE_NAME = "latent_preview.json"

# Red, green, blue of FLUX's 16 latent channels (Z-Image uses FLUX's VAE). Values: InvokeAI 6.14
# app/util/step_callback.py, Apache-2.0.
_FLUX_RGB = (
    (-0.0412, 0.0149, 0.0521),
    (0.0056, 0.0291, 0.0768),
    (0.0342, -0.0681, -0.0427),
    (-0.0258, 0.0092, 0.0463),
    (0.0863, 0.0784, 0.0547),
    (-0.0017, 0.0402, 0.0158),
    (0.0501, 0.1058, 0.1152),
    (-0.0209, -0.0218, -0.0329),
    (-0.0314, 0.0083, 0.0896),
    (0.0851, 0.0665, -0.0472),
    (-0.0534, 0.0238, -0.0024),
    (0.0452, -0.0026, 0.0048),
    (0.0892, 0.0831, 0.0881),
    (-0.1117, -0.0304, -0.0789),
    (0.0027, -0.0479, -0.0043),
    (-0.1146, -0.0827, -0.0598),
)
# Of Stable Diffusion 1.5's four channels; AnimateDiff and Stable Video Diffusion have its latents. Values: the same file.
_SD1_RGB = (
    (0.3444, 0.1385, 0.0670),
    (0.1247, 0.4027, 0.1494),
    (-0.3192, 0.2513, 0.2103),
    (-0.1307, -0.1874, -0.7445),
)


@dataclass(frozen=True)
class PreviewFactors:
    """`kernel` [3*s*s, C, k, k] with odd k, `bias` [3*s*s], `scale` s = pixels per latent cell."""

    kernel: torch.Tensor
    bias: torch.Tensor
    scale: int = 1

    def __post_init__(self) -> None:
        outputs = 3 * self.scale**2
        if self.kernel.ndim != 4 or self.kernel.shape[0] != outputs or self.kernel.shape[2] % 2 == 0:
            expected = f"[{outputs}, channels, k, k] with odd k"
            raise BadInput.expected("latent preview: kernel", expected, list(self.kernel.shape))
        if tuple(self.bias.shape) != (outputs,):
            raise BadInput.expected("latent preview: bias", [outputs], list(self.bias.shape))

    @property
    def channels(self) -> int:
        """Latent channels that the kernel reads."""
        return int(self.kernel.shape[1])


def linear_factors(rgb: tuple[tuple[float, float, float], ...]) -> PreviewFactors:
    """One (red, green, blue) row for each latent channel -> a 1x1 kernel."""
    kernel = torch.tensor(rgb, dtype=torch.float32).T[:, :, None, None].contiguous()
    return PreviewFactors(kernel=kernel, bias=torch.zeros(3))


FLUX_FACTORS = linear_factors(_FLUX_RGB)
SD1_FACTORS = linear_factors(_SD1_RGB)


def load_factors(model_folder: Path | str) -> PreviewFactors | None:
    """The factors that a model folder brings, None where it brings none. Raises BadInput for a file of another form."""
    path = Path(model_folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
        kernel, bias = torch.tensor(stored["kernel"]).float(), torch.tensor(stored["bias"]).float()
        return PreviewFactors(kernel=kernel, bias=bias, scale=int(stored["scale"]))
    except (KeyError, TypeError, json.JSONDecodeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput.expected(str(path), 'JSON with "kernel", "bias" and "scale"', repr(error)) from error


_PICTURES, _SIDE = 6, 256
_RIDGE = 1e-3  # against latent channels that say nothing of colour


def fit_factors(encode: Encode, *, cell: int) -> PreviewFactors:
    """Factors for a VAE that nobody has published any for: least squares over pictures that we draw, a second's work.

    `encode` takes one uint8 [H, W, 3] RGB picture and gives its latent as the denoiser sees it, [C, H/cell, W/cell].
    """
    seen, shown = [], []
    for picture in calibration_pictures():
        latent = encode(picture).float().cpu()
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1.0
        seen.append(latent.flatten(1).T)
        shown.append(torch.nn.functional.avg_pool2d(pixels, cell)[0].flatten(1).T)
    x, y = torch.cat(seen).double(), torch.cat(shown).double()
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    gram = ones.T @ ones
    penalty = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    penalty[-1, -1] = 0.0
    solution = torch.linalg.solve(gram + penalty, ones.T @ y).float()
    return PreviewFactors(kernel=solution[:-1].T[:, :, None, None].contiguous(), bias=solution[-1].contiguous())


def calibration_pictures() -> Iterator[np.ndarray]:
    """Soft and fine patterns of every colour, uint8 [256, 256, 3], always the same."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(_PICTURES):
        picture = torch.zeros(1, 3, _SIDE, _SIDE)
        for cells, share in ((2, 0.5), (8, 0.35), (32, 0.15)):
            coarse = torch.rand(1, 3, cells, cells, generator=generator)
            picture += share * torch.nn.functional.interpolate(coarse, size=_SIDE, mode="bilinear")
        spread = ((picture - 0.5) * 2.5 + 0.5).clamp(0, 1)  # sums of evenly spread values crowd in the middle
        yield to_uint8(spread[0] * 2 - 1)


def latent_preview(x0: torch.Tensor, factors: PreviewFactors = FLUX_FACTORS) -> np.ndarray:
    """Estimated clean latents of one frame, [C, h, w], -> uint8 [s*h, s*w, 3] RGB."""
    if x0.ndim != 3 or x0.shape[0] != factors.channels:
        raise BadInput.expected("preview latents", f"[{factors.channels}, h, w]", list(x0.shape))
    kernel, bias = factors.kernel.to(x0.device), factors.bias.to(x0.device)
    padding = factors.kernel.shape[-1] // 2
    with torch.no_grad():
        # Repeated edges: zeros would draw a dark frame around the picture.
        padded = torch.nn.functional.pad(x0.float()[None], (padding,) * 4, mode="replicate")
        pixels = torch.nn.functional.conv2d(padded, kernel, bias)
        return to_uint8(torch.nn.functional.pixel_shuffle(pixels, factors.scale)[0])
