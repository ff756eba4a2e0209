"""Saved model fields -> installed models, by plain records; the nodes' classes are InvokeAI's in test_conversion.py."""

from __future__ import annotations

from typing import Any

import pytest

from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.workflow_models import chosen_loras, find_named_model, find_saved_model

TOY = {"key": "k1", "hash": "h1", "name": "Toy", "base": "z-image-video", "type": "main"}
VAE = {"key": "k2", "hash": "h2", "name": "FLUX VAE", "base": "flux", "type": "vae"}
INK = {"key": "k4", "hash": "h4", "name": "Ink", "base": "hunyuan-video", "type": "lora"}
CLAY = {"key": "k5", "hash": "h5", "name": "Clay", "base": "hunyuan-video", "type": "lora"}
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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Ink", [(INK, 0.75)]),
        ("k4", [(INK, 0.75)]),
        (["Ink", "Clay"], [(INK, 0.75), (CLAY, 0.75)]),
        ([{"lora": "Ink", "weight": 0.5}, "k5"], [(INK, 0.5), (CLAY, 0.75)]),
        ({"lora": "Clay", "weight": -1}, [(CLAY, -1)]),
        ([{"lora": {"key": "k4", "name": "as saved"}, "weight": 1.0}], [(INK, 1.0)]),
        ([], []),
    ],
    ids=["name", "key", "names", "weights", "one", "as in a file", "none"],
)
def test_loras_are_chosen_by_name_or_key_with_a_weight_where_one_is_said(value: Any, expected: list[Any]) -> None:
    assert chosen_loras("LoRAs.loras", value, [TOY, INK, CLAY]) == [{"lora": lora, "weight": weight} for lora, weight in expected]


@pytest.mark.parametrize("value", [12, [["Ink"]], [{"name": "Ink"}], {"lora": "Ink", "wieght": 1}], ids=str)
def test_a_lora_of_another_form_is_shown_the_right_one(value: Any) -> None:
    with pytest.raises(BadInput, match=r"""LoRAs.loras: expected a LoRA's name, or \[\{"lora": NAME, "weight": 0.75\}\], got"""):
        chosen_loras("LoRAs.loras", value, [INK])


@pytest.mark.parametrize("weight", ["much", True, None, float("nan")], ids=str)
def test_a_weight_that_is_no_number_is_refused(weight: Any) -> None:
    with pytest.raises(BadInput, match="LoRAs.loras: weight of 'Ink': expected a number, got .*nearest valid value: 0.75"):
        chosen_loras("LoRAs.loras", [{"lora": "Ink", "weight": weight}], [INK])


def test_a_lora_that_is_not_installed_gets_the_nearest_one_that_is() -> None:
    with pytest.raises(BadInput, match=r"LoRAs.loras: expected a name or key of 'Ink' .*got 'Inc' \(nearest valid value: Ink\)"):
        chosen_loras("LoRAs.loras", "Inc", [TOY, INK])


def test_where_no_lora_is_installed_the_message_says_how_to_install_one() -> None:
    with pytest.raises(BadInput, match=r"expected a model that is installed \(none of this kind is; --model PATH does it\), got 'Ink'"):
        chosen_loras("LoRAs.loras", "Ink", [TOY])


def test_a_model_that_is_no_lora_is_not_taken_for_one() -> None:
    with pytest.raises(BadInput, match="got 'Toy'"):
        chosen_loras("LoRAs.loras", "Toy", [TOY, INK])
