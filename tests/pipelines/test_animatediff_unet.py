"""A video UNet that borrows a loaded UNet's and a motion module's layers, the motion scale, and what does not fit together."""

import pytest
import torch
from diffusers import UNetMotionModel
from diffusers.models.attention_processor import Attention, SlicedAttnProcessor
from tiny_animatediff import WIDTHS, tiny_adapter, tiny_prompts, tiny_unet

from invokeai_video_nodes.pipelines.animatediff.unet import check_motion_scale, compute_dtype, motion_scale, motion_unet
from invokeai_video_nodes.pipelines.errors import BadInput

FRAMES, CELLS = 6, 4


def clip(seed=0):
    return torch.randn(1, 4, FRAMES, CELLS, CELLS, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(model, **settings):
    with motion_scale(model, **settings):
        return model(clip(), 500, tiny_prompts()[0].repeat(FRAMES, 1, 1)).sample


@torch.no_grad()
def stills(unet):
    """The UNet's own answer for every frame as a picture of its own."""
    pictures = clip()[0].transpose(0, 1)
    return unet(pictures, 500, tiny_prompts()[0].repeat(FRAMES, 1, 1)).sample.transpose(0, 1)[None]


def state_of(model):
    """Everything that hangs on a model's modules: attributes, hooks, processors, and where its weights lie."""
    found = {}
    for name, module in model.named_modules():
        hooks = (len(module._forward_hooks), len(module._forward_pre_hooks))
        found[name] = (sorted(vars(module)), sorted(module._modules), hooks, module.training, id(getattr(module, "processor", None)))
    return found, {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("mid_block", [True, False])
def test_it_answers_as_the_model_that_diffusers_copies_together(mid_block):
    unet, adapter = tiny_unet(), tiny_adapter(mid_block=mid_block)
    with motion_unet(unet, adapter) as model:
        answer = run(model, scale=1.0)

    assert torch.equal(answer, run(UNetMotionModel.from_unet2d(unet, adapter), scale=1.0))


def test_every_weight_is_the_loaded_one_and_none_is_copied():
    unet, adapter = tiny_unet(), tiny_adapter()
    loaded = {tensor.data_ptr() for model in (unet, adapter) for tensor in model.state_dict().values()}
    with motion_unet(unet, adapter) as model:
        used = {tensor.data_ptr() for tensor in model.state_dict().values()}

    assert used == loaded


def test_unet_and_adapter_are_afterwards_as_they_were_and_give_the_same_picture():
    unet, adapter = tiny_unet(), tiny_adapter()
    unet.set_attn_processor(SlicedAttnProcessor(slice_size=1))
    before, picture = (state_of(unet), state_of(adapter)), stills(unet)
    with motion_unet(unet, adapter) as model:
        run(model, scale=0.5)

    assert (state_of(unet), state_of(adapter)) == before
    assert torch.equal(stills(unet), picture)


def test_they_are_as_they_were_after_an_error_too():
    unet, adapter = tiny_unet(), tiny_adapter()
    before = state_of(unet), state_of(adapter)
    with pytest.raises(RuntimeError), motion_unet(unet, adapter) as model, motion_scale(model, 0.5):
        model(clip(), 500, torch.zeros(FRAMES, 77, 5))

    assert (state_of(unet), state_of(adapter)) == before


def test_processors_that_someone_left_on_the_unet_are_out_of_the_way_inside():
    unet = tiny_unet()
    unet.set_attn_processor(SlicedAttnProcessor(slice_size=1))
    with motion_unet(unet, tiny_adapter()) as model:
        inside = {type(module.processor) for module in model.modules() if isinstance(module, Attention)}

    assert SlicedAttnProcessor not in inside


def test_a_layer_that_is_wrapped_for_a_lora_is_used_as_it_is():
    class Doubled(torch.nn.Linear):
        def forward(self, value):
            return 2.0 * super().forward(value)

    unet, adapter = tiny_unet(), tiny_adapter()
    with motion_unet(unet, adapter) as model:
        plain = run(model, scale=1.0)
    unet.time_embedding.linear_1.__class__ = Doubled
    with motion_unet(unet, adapter) as model:
        patched = run(model, scale=1.0)

    assert not torch.equal(patched, plain)


@pytest.mark.parametrize("scale", [0.0, [0.0] * FRAMES, torch.zeros(1, CELLS, CELLS)], ids=["number", "list", "mask"])
def test_no_motion_gives_every_frame_as_the_still_unet_gives_it(scale):
    unet = tiny_unet()
    with motion_unet(unet, tiny_adapter()) as model:
        answer, moving = run(model, scale=scale), run(model, scale=1.0)

    torch.testing.assert_close(answer, stills(unet), rtol=0, atol=1e-5)
    assert (moving - answer).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [[0.7] * FRAMES, torch.full((FRAMES, CELLS, CELLS), 0.7)], ids=["list", "mask"])
def test_a_list_or_mask_of_one_number_is_that_number(scale):
    with motion_unet(tiny_unet(), tiny_adapter()) as model:
        answer, number = run(model, scale=scale), run(model, scale=0.7)

    torch.testing.assert_close(answer, number, rtol=0, atol=1e-5)


def test_a_list_counts_for_the_frames_that_the_model_sees():
    scale = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 9.0, 9.0]
    with motion_unet(tiny_unet(), tiny_adapter()) as model:
        window, cut = run(model, scale=scale, frames=range(FRAMES)), run(model, scale=scale[:FRAMES])

    assert torch.equal(window, cut)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (-1.0, "motion_scale: expected numbers of 0 or more, got -1.0 .nearest valid value: 1.0"),
        ([1.0, 2.0], "motion_scale list: expected 6 numbers, one per frame, got a list of 2"),
        (torch.ones(3, CELLS, CELLS), r"motion_scale mask: expected \[1 or 6, 4, 4\], got \[3, 4, 4\]"),
        (torch.ones(1, 8, 8), r"motion_scale mask: expected \[1 or 6, 4, 4\], got \[1, 8, 8\]"),
    ],
)
def test_a_motion_scale_that_does_not_suit_the_clip_is_refused(scale, message):
    with pytest.raises(BadInput, match=message):
        check_motion_scale(scale, frames=FRAMES, height=CELLS, width=CELLS)


@pytest.mark.parametrize(
    ("unet", "adapter", "message"),
    [
        ({"text_features": 1024}, {}, "main model: expected Stable Diffusion 1.5, got SD 2"),
        ({"text_features": 2048}, {}, "main model: expected Stable Diffusion 1.5, got SDXL"),
        ({"in_channels": 9}, {}, "main model: expected one that reads 4 latent channels, got one that reads 9 channels"),
        ({}, {"block_out_channels": (16, 64)}, r"motion module: widths: expected \[16, 32\], got \[16, 64\]"),
        ({}, {"motion_layers_per_block": 2}, r"motion module: layers per block: expected \[1, 1\], got \[2, 2\]"),
        ({}, {"conv_in_channels": 9}, "motion module: expected one without an input layer of its own, got one for PIA"),
    ],
)
def test_models_that_do_not_belong_together_are_refused(unet, adapter, message):
    with pytest.raises(BadInput, match=message), motion_unet(tiny_unet(**unet), tiny_adapter(**adapter)):
        pass


def test_the_tiny_models_have_the_widths_that_the_refusals_name():
    assert list(WIDTHS) == [16, 32]


def test_layers_stored_in_8_bits_are_computed_in_the_others_dtype() -> None:
    unet = tiny_unet()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)

    with motion_unet(unet, tiny_adapter()) as model:
        predicted = run(model, scale=1.0)

    assert unet.down_blocks[0].resnets[0].conv1.weight.dtype is torch.float8_e4m3fn
    assert compute_dtype(unet) is compute_dtype(model) is predicted.dtype is torch.float32
    assert bool(torch.isfinite(predicted).all())
