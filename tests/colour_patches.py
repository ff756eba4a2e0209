"""Twenty-four known colours as a clip, and how far a picture of them is off: for every test of colour fidelity.

    write_colour_patches(tmp_path / "patches.mp4")
    mean, largest = colour_error(any_uint8_frame)          # in steps of 1/255, over the middles of the patches

The clip goes the whole way of a generated one: latents, `decode_frames`, `write_mp4`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from invokeai_video_nodes.pipelines.decode import decode_frames
from invokeai_video_nodes.pipelines.mp4 import Codec, write_mp4

COLUMNS, ROWS, PATCH = 6, 4, 32
WIDTH, HEIGHT = COLUMNS * PATCH, ROWS * PATCH

# Saturated corners, a grey ramp from black to white, and colours that photographs are made of.
COLOURS = np.array(
    [
        *((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0)),
        *((0, 0, 0), (51, 51, 51), (102, 102, 102), (153, 153, 153), (204, 204, 204), (255, 255, 255)),
        *((115, 82, 68), (194, 150, 130), (98, 122, 157), (87, 108, 67), (133, 128, 177), (103, 189, 170)),
        *((214, 126, 44), (80, 91, 166), (193, 90, 99), (94, 60, 108), (157, 188, 64), (224, 163, 46)),
    ],
    dtype=np.uint8,
)


class PlainVae(torch.nn.Module):
    """A VAE whose first three latent channels are the pixels' red, green and blue: known colours in, known colours out."""

    def __init__(self, latent_channels: int = 16) -> None:
        super().__init__()
        self.decoder = torch.nn.Module()
        self.decoder.conv_in = torch.nn.Conv2d(latent_channels, 3, kernel_size=1, bias=False)
        self.decoder.conv_in.weight.data = torch.eye(3, latent_channels)[:, :, None, None]

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """[1, C, h, w] -> [1, 3, 8h, 8w] in -1..1."""
        return torch.nn.functional.interpolate(self.decoder.conv_in(z), scale_factor=8, mode="nearest")


def patches_frame() -> np.ndarray:
    """The patches as they should look, uint8 [HEIGHT, WIDTH, 3]."""
    return COLOURS.reshape(ROWS, COLUMNS, 3).repeat(PATCH, axis=0).repeat(PATCH, axis=1)


def write_colour_patches(path: Path | str, *, num_frames: int = 8, fps: float = 8, codec: Codec = "h264") -> Path:
    """Write a still clip of the patches and return its path."""
    cells = torch.from_numpy(patches_frame()[::8, ::8].copy()).permute(2, 0, 1) / 127.5 - 1.0
    latents = torch.zeros(1, 16, num_frames, HEIGHT // 8, WIDTH // 8)
    latents[0, :3] = cells[:, None]
    write_mp4(decode_frames(PlainVae(), latents), path, fps=fps, width=WIDTH, height=HEIGHT, codec=codec)
    return Path(path)


def colour_error(frame: np.ndarray) -> tuple[float, float]:
    """Mean and largest absolute difference over the middle half of every patch, in steps of 1/255.

    `frame` is uint8 [HEIGHT, WIDTH, 3 or 4]; the borders of patches are left out, 4:2:0 mixes colours there.
    """
    wanted = COLOURS.reshape(ROWS, COLUMNS, 1, 3).astype(float)
    tiles = frame[..., :3].astype(float).reshape(ROWS, PATCH, COLUMNS, PATCH, 3).swapaxes(1, 2)
    middle = slice(PATCH // 4, PATCH - PATCH // 4)
    difference = np.abs(tiles[:, :, middle, middle].reshape(ROWS, COLUMNS, -1, 3) - wanted)
    return float(difference.mean()), float(difference.max())
