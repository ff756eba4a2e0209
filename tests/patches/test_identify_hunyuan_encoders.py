"""Which folders are HunyuanVideo's text encoders: judged by headers and JSON, without InvokeAI."""

import json
import shutil

import pytest
from tiny_hunyuan import tiny_image_to_video, tiny_image_to_video_15, tiny_text_to_video, tiny_text_to_video_15
from tiny_hunyuan_files import save_encoders

from invokeai_video_patches.identify import NotVideo, Unusable
from invokeai_video_patches.identify_hunyuan_encoders import EncoderFacts, identify_encoders

KINDS = {
    "text": (tiny_text_to_video, EncoderFacts("1.0", sees_images=False, text_features=16)),
    "image": (lambda: tiny_image_to_video("token_replace"), EncoderFacts("1.0", sees_images=True, text_features=16)),
    "text 1.5": (tiny_text_to_video_15, EncoderFacts("1.5", sees_images=False, text_features=16)),
    "image 1.5": (tiny_image_to_video_15, EncoderFacts("1.5", sees_images=True, text_features=16)),
}
WITH_PICTURES = [("image", "image_processor"), ("image 1.5", "feature_extractor"), ("image 1.5", "image_encoder")]
WITHOUT = ["tokenizer", "text_encoder_2", "tokenizer_2"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of encoders of each kind; not to be changed."""
    return {kind: save_encoders(tmp_path_factory.mktemp("encoders"), make(), with_scheduler=True) for kind, (make, _) in KINDS.items()}


@pytest.fixture
def encoders(saved, tmp_path):
    """A copy of one kind of folder, to be spoiled."""
    return lambda kind: shutil.copytree(saved[kind], tmp_path / "encoders")


def rewrite(path, **values):
    """Change keys of a JSON file; None takes one out."""
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_is_known_by_the_configs_of_its_parts(saved, kind):
    assert identify_encoders(saved[kind]) == KINDS[kind][1]


def test_a_schedule_beside_them_is_not_needed(encoders):
    folder = encoders("text")
    shutil.rmtree(folder / "scheduler")

    assert identify_encoders(folder) == KINDS["text"][1]


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind in ("text", "image 1.5") for part in WITHOUT] + WITH_PICTURES)
def test_a_missing_part_is_named(encoders, kind, part):
    folder = encoders(kind)
    shutil.rmtree(folder / part)

    with pytest.raises(Unusable, match=rf"encoders: expected the parts text_encoder, .*; missing: {part}/$"):
        identify_encoders(folder)


def test_missing_and_truncated_weights_are_named(encoders):
    folder = encoders("text")
    weights = folder / "text_encoder_2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])

    with pytest.raises(Unusable, match="text_encoder_2/model.safetensors is truncated"):
        identify_encoders(folder)
    weights.unlink()
    with pytest.raises(Unusable, match=r"missing: text_encoder_2/\*\.safetensors or \*\.bin"):
        identify_encoders(folder)


@pytest.mark.parametrize("sign", ["model_index.json", "transformer"])
def test_a_whole_pipeline_is_left_to_others(encoders, sign):
    folder = encoders("text")
    (folder / "transformer").mkdir() if sign == "transformer" else (folder / "model_index.json").write_text("{}")

    with pytest.raises(NotVideo, match="a whole pipeline"):
        identify_encoders(folder)


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_encoder_with_its_tokenizer_is_left_to_others(encoders, kind):
    folder = encoders(kind)
    for part in ("text_encoder_2", "tokenizer_2"):
        shutil.rmtree(folder / part)

    with pytest.raises(NotVideo, match="no second text encoder"):
        identify_encoders(folder)


@pytest.mark.parametrize(("part", "kind"), [("text_encoder", "clip_text_model"), ("text_encoder", "qwen3"), ("text_encoder_2", "t5")])
def test_a_pair_of_encoders_of_another_family_is_left_to_others(encoders, part, kind):
    folder = encoders("text")
    rewrite(folder / part / "config.json", model_type=kind)

    with pytest.raises(NotVideo, match=f"{part}/config.json names {kind}"):
        identify_encoders(folder)


def test_a_folder_without_a_first_encoder_that_can_be_read_is_left_to_others(encoders, tmp_path):
    folder = encoders("text")
    (folder / "text_encoder" / "config.json").write_text("no JSON")

    with pytest.raises(NotVideo, match="text_encoder/config.json names None"):
        identify_encoders(folder)
    with pytest.raises(NotVideo):
        identify_encoders(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("path", "key", "message"),
    [
        ("text_encoder_2/config.json", "model_type", "expected the model_type t5, got None"),
        ("image_encoder/config.json", "model_type", "expected the model_type siglip_vision_model, got None"),
        ("text_encoder/config.json", "hidden_size", "text_encoder/config.json: expected a hidden_size, got none"),
        ("tokenizer_2/tokenizer_config.json", "tokenizer_class", "tokenizer_2/tokenizer_config.json: expected a tokenizer_class"),
    ],
)
def test_a_config_that_does_not_say_how_its_part_is_loaded_is_refused(encoders, path, key, message):
    folder = encoders("image 1.5")
    rewrite(folder / path, **{key: None})

    with pytest.raises(Unusable, match=message):
        identify_encoders(folder)
