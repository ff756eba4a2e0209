"""Fixtures of the core's tests: tiny real models, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from tiny_models import CAPTION_FEATURES, make_tiny_z_image_video, tiny_transformer, tiny_vae

# Two threads on two shared cores wait for each other longer than they work.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_z_image_video(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def transformer() -> ZImageTransformer2DModel:
    return tiny_transformer()


@pytest.fixture(scope="session")
def vae() -> AutoencoderKL:
    return tiny_vae()


@pytest.fixture(scope="session")
def positive() -> torch.Tensor:
    return torch.randn(21, CAPTION_FEATURES, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def negative() -> torch.Tensor:
    return torch.randn(5, CAPTION_FEATURES, generator=torch.Generator().manual_seed(2))
