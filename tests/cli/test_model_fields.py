"""Saved model fields -> installed models, by plain records; the nodes' classes are InvokeAI's in test_conversion.py."""

from __future__ import annotations

import pytest

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_models import find_named_model, find_saved_model

TOY = {"key": "k1", "hash": "h1", "name": "Toy", "base": "z-image-video", "type": "main"}
VAE = {"key": "k2", "hash": "h2", "name": "FLUX VAE", "base": "flux", "type": "vae"}
TWIN = {"key": "k3", "hash": "h3", "name": "Toy", "base": "flux", "type": "main"}


@pytest.mark.parametrize(
    "wanted",
    [
        {**TOY, "hash": "x", "name": "x"},
        {**TOY, "key": "x", "name": "x"},
        {**TOY, "key": "x", "hash": "x"},
    ],
    ids=["key", "hash", "name, base and type"],
)
def test_a_saved_model_is_found_by_key_then_hash_then_name(wanted: dict[str, str]) -> None:
    assert find_saved_model(wanted, [VAE, TWIN, TOY]) is TOY


def test_a_key_wins_over_another_models_hash_and_name() -> None:
    assert find_saved_model({**VAE, "key": "k1"}, [VAE, TOY]) is TOY


def test_a_name_of_another_base_is_not_taken() -> None:
    assert find_saved_model({**TOY, "key": "x", "hash": "", "base": "sd-1"}, [TOY, TWIN]) is None


def test_a_model_is_named_by_its_key_or_its_name() -> None:
    assert find_named_model("k1", [TOY, TWIN]) is TOY
    assert find_named_model("FLUX VAE", [TOY, VAE]) is VAE


def test_a_name_that_two_models_have_asks_for_a_key() -> None:
    with pytest.raises(BadInput, match="with key k1.*with key k3.*the name 'Toy' of 2 models"):
        find_named_model("Toy", [TOY, TWIN])


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(BadInput, match="got 'FLUX VEA' .nearest valid value: FLUX VAE"):
        find_named_model("FLUX VEA", [TOY, VAE])
