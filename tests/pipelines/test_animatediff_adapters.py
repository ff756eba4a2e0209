"""IP-Adapters and T2I-Adapters over AnimateDiff, against diffusers' own, and what they leave behind: nothing."""

from contextlib import suppress
from functools import cache

import pytest
import torch
from diffusers import AnimateDiffPipeline
from diffusers import T2IAdapter as T2IAdapterModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from tiny_animatediff import TEXT_FEATURES, WIDTHS, tiny_adapter, tiny_ip_adapter, tiny_pipeline, tiny_prompts, tiny_unet

from invokeai_video_nodes.pipelines.animatediff.denoise import denoise
from invokeai_video_nodes.pipelines.animatediff.ip_adapter import IPAdapter, attached, cross_attentions, style_precise
from invokeai_video_nodes.pipelines.animatediff.presets import make_scheduler
from invokeai_video_nodes.pipelines.animatediff.t2i_adapter import T2IAdapter, added_features
from invokeai_video_nodes.pipelines.animatediff.unet import motion_scale, motion_unet
from invokeai_video_nodes.pipelines.errors import BadInput, Canceled

SIDE, FRAMES, STEPS, SEED = 32, 6, 2, 3
CELLS = SIDE // 8

# Shared by the runs of this file: a run gives both back as they were.
shared_unet, shared_adapter = cache(tiny_unet), cache(tiny_adapter)
TOKENS = 4
NUMBERS = (1, 3, 5, 7)  # of the tiny UNet's cross attentions


def embeddings(pictures=1, seed=6):
    generator = torch.Generator().manual_seed(seed)
    positive, negative = (torch.randn(pictures, TOKENS, TEXT_FEATURES, generator=generator) for _ in range(2))
    return positive, negative


def picture(seed=10, pictures=1, **settings):
    """A core IP-Adapter of the tiny file of this seed."""
    weights = tiny_ip_adapter(seed=seed)
    layers = {int(number): layer for number, layer in weights.items()}
    positive, negative = embeddings(pictures, seed=seed + 50)
    return IPAdapter(**({"layers": layers.__getitem__, "positive": positive, "negative": negative} | settings))


def ours(*, unet=None, adapter=None, frames=FRAMES, guidance_scale=7.5, prompts=None, name="ddim", steps=STEPS, **settings):
    positive, negative = prompts or tiny_prompts()
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(1, 4, frames, CELLS, CELLS, generator=generator)
    with motion_unet(unet or shared_unet(), adapter or shared_adapter()) as model:
        return denoise(
            model,
            noise=noise,
            positive=positive,
            negative=negative,
            guidance_scale=guidance_scale,
            scheduler=make_scheduler(name),
            steps=steps,
            generator=generator,
            **settings,
        )


def theirs(*adapters, scales=None, mask=None, guidance_scale=7.5):
    """diffusers' pipeline with the same files; its projection layers are left out, because our embeddings are projected."""
    pipeline = tiny_pipeline(AnimateDiffPipeline, scheduler=make_scheduler("ddim"))
    files = [file_of(adapter) for adapter in adapters]
    pipeline.load_ip_adapter(files, subfolder="", weight_name=["none"] * len(files), image_encoder_folder=None)
    pipeline.set_ip_adapter_scale(scales or [adapter.weight for adapter in adapters])
    for place in range(len(adapters)):
        pipeline.unet.encoder_hid_proj.image_projection_layers[place] = torch.nn.Identity()
    guided = guidance_scale > 1
    embeds = [torch.stack([a.negative, a.positive]) if guided else a.positive[None] for a in adapters]
    positive, negative = tiny_prompts()
    return pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        height=SIDE,
        width=SIDE,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(SEED),
        ip_adapter_image_embeds=embeds,
        cross_attention_kwargs=None if mask is None else {"ip_adapter_masks": [mask]},
        output_type="latent",
    ).frames


def file_of(adapter):
    """The file's content as diffusers reads it."""
    weights = {f"{n}.{which}.weight": getattr(adapter.layers(n), which).weight for n in NUMBERS for which in ("to_k_ip", "to_v_ip")}
    projection = {"proj.weight": torch.zeros(4 * TEXT_FEATURES, 8), "proj.bias": torch.zeros(4 * TEXT_FEATURES)}
    projection |= {"norm.weight": torch.ones(TEXT_FEATURES), "norm.bias": torch.zeros(TEXT_FEATURES)}
    return {"image_proj": projection, "ip_adapter": weights}


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_picture_prompt_equals_diffusers_pipeline_bit_for_bit(guidance_scale):
    latents = ours(ip_adapters=[picture(weight=0.7)], guidance_scale=guidance_scale)

    assert torch.equal(latents, theirs(picture(weight=0.7), guidance_scale=guidance_scale))
    assert not torch.equal(latents, ours(guidance_scale=guidance_scale))


def test_several_adapters_with_several_pictures_equal_diffusers_pipeline_bit_for_bit():
    adapters = [picture(weight=0.7), picture(seed=11, pictures=3, weight=0.4)]

    assert torch.equal(ours(ip_adapters=adapters), theirs(*adapters))


def test_adapters_of_some_blocks_equal_diffusers_pipeline_bit_for_bit():
    latents = ours(ip_adapters=[picture(weight=0.7, blocks=["up_blocks.1"])])

    assert torch.equal(latents, theirs(picture(), scales=[{"up": {"block_1": [0.7, 0.7]}}]))


def test_a_mask_equals_diffusers_pipeline_bit_for_bit():
    mask = torch.zeros(1, 1, CELLS, CELLS)
    mask[..., :2] = 1.0
    latents = ours(ip_adapters=[picture(mask=mask)])

    assert torch.equal(latents, theirs(picture(), mask=mask))
    assert not torch.equal(latents, ours(ip_adapters=[picture()]))


def test_a_mask_of_one_adapter_leaves_the_other_everywhere():
    black = torch.zeros(1, 1, CELLS, CELLS)

    assert torch.equal(ours(ip_adapters=[picture(), picture(seed=11, mask=black)]), ours(ip_adapters=[picture()]))


def windowed(predict, latents, *, step):
    return torch.cat([predict(latents[:, :, first : first + 3], range(first, first + 3)) for first in (0, 3)], dim=2)


def test_every_window_sees_the_picture():
    windows = ours(ip_adapters=[picture()], windows=windowed)

    assert not torch.equal(windows, ours(windows=windowed))
    assert torch.isfinite(windows).all()


@pytest.mark.parametrize("make", [picture, lambda **settings: outline(**settings)], ids=["ip", "t2i"])
def test_a_weight_per_step_counts_in_that_step(make):
    kind = "ip_adapters" if isinstance(make(), IPAdapter) else "t2i_adapters"
    first, same = ours(**{kind: [make(weight=[0.5, 0.0])]}), ours(**{kind: [make(weight=[0.5, 0.5])]})

    assert torch.equal(same, ours(**{kind: [make(weight=0.5)]}))
    assert not torch.equal(first, same)
    assert torch.equal(ours(**{kind: [make(weight=[0.0, 0.0])]}), ours())


@pytest.mark.parametrize("name", ["heun", "kdpm_2"])
def test_a_scheduler_that_calls_the_model_twice_per_step_takes_one_weight_per_step(name):
    adapters = {"ip_adapters": [picture(weight=[0.5, 0.5, 0.5])], "t2i_adapters": [outline(weight=[1.0, 1.0, 1.0])]}
    one = {"ip_adapters": [picture(weight=0.5)], "t2i_adapters": [outline()]}

    assert torch.equal(ours(name=name, steps=3, **adapters), ours(name=name, steps=3, **one))


def test_an_adapter_has_a_say_between_begin_and_end_only():
    late = ours(steps=4, ip_adapters=[picture(start=0.5)])

    assert torch.equal(late, ours(steps=4, ip_adapters=[picture(weight=[0.0, 0.0, 1.0, 1.0])]))


def test_style_precise_guides_away_from_the_picture_in_the_blocks_of_the_composition():
    adapter = picture(blocks=["up_blocks.1", "mid_block"])
    style, against = style_precise(adapter)

    assert (style.blocks, against.blocks) == (["up_blocks.1"], ["mid_block"])
    assert torch.equal(against.negative, adapter.positive) and not against.positive.any()
    assert not torch.equal(ours(ip_adapters=[style, against]), ours(ip_adapters=[adapter]))


def state_of(model):
    hung = {}
    for name, part in model.named_modules():
        hooks = (len(part._forward_hooks), len(part._forward_pre_hooks))
        hung[name] = (sorted(vars(part)), sorted(part._modules), hooks, id(getattr(part, "processor", 0)))
    return hung, {name: (tensor.data_ptr(), tensor.sum().item()) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("fails", [False, True])
def test_unet_and_module_are_afterwards_as_they_were(fails):
    unet, adapter = tiny_unet(), tiny_adapter()
    before = state_of(unet), state_of(adapter)
    stop = (lambda: True) if fails else None
    with suppress(Canceled):
        ours(unet=unet, adapter=adapter, ip_adapters=[picture()], t2i_adapters=[outline()], stop=stop)

    assert (state_of(unet), state_of(adapter)) == before


def test_the_adapters_layers_are_used_as_they_are_and_not_copied():
    adapter, unet = picture(), tiny_unet()
    with motion_unet(unet, tiny_adapter()) as model:
        with attached(model, [adapter]) as hung:
            inside = {name: processor.to_k_ip[0] for name, processor in hung.processors.items()}
            expected = {name: adapter.layers(number).to_k_ip for name, number, _ in cross_attentions(model)}
        kept = {type(module.processor) for module in model.modules() if isinstance(module, Attention)}

    assert inside == expected
    assert kept == {AttnProcessor2_0}


@pytest.mark.parametrize("fails", [False, True])
def test_the_video_unet_is_afterwards_as_it_was_before_the_adapters_were_hung_in(fails):
    def inside(model):
        settings = model.encoder_hid_proj, model.config.encoder_hid_dim_type
        return settings, {name: part.processor for name, part in model.named_modules() if isinstance(part, Attention)}

    with motion_unet(tiny_unet(), tiny_adapter()) as model:
        before = inside(model)
        with suppress(Canceled), attached(model, [picture()]):
            changed = inside(model)
            if fails:
                raise Canceled
        after = inside(model)

    assert after == before
    assert changed[0] != before[0] and changed[1] != before[1]


def test_attentions_are_numbered_as_invokeai_numbers_those_of_the_unet():
    unet = tiny_unet()
    numbers = {name.removesuffix(".processor"): number for number, name in enumerate(unet.attn_processors)}
    with motion_unet(unet, tiny_adapter()) as model:
        found = {name: number for name, number, _ in cross_attentions(model)}

    assert found == {name: number for name, number in numbers.items() if name.endswith("attn2")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positive": torch.zeros(1, 4, 1024)}, r"IP-Adapter embeddings: expected \[pictures, tokens, 768\], got \[1, 4, 1024\]"),
        ({"weight": [1.0]}, "IP-Adapter: weights: expected one number, or 2: one per step that runs, got 1 .nearest valid value: 2"),
        ({"weight": float("nan")}, "IP-Adapter: weight: expected finite numbers, got nan"),
        ({"start": 0.6, "end": 0.5}, "IP-Adapter steps: expected a begin not above the end, both 0.0 to 1.0, got 0.6 to 0.5"),
        ({"blocks": []}, r"IP-Adapter blocks: expected parts of the UNet such as up_blocks.1, got \[\]"),
        ({"mask": torch.ones(1, 1, 8, 8)}, r"IP-Adapter mask: expected \[1, 1, 4, 4\], got \[1, 1, 8, 8\]"),
        ({"layers": {}.__getitem__}, "IP-Adapter: expected a layer for each attention of the main model .number 1., got none"),
    ],
)
def test_an_ip_adapter_that_does_not_suit_is_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        ours(ip_adapters=[picture(**settings)])


def test_an_ip_adapter_of_another_base_is_refused():
    wide = torch.nn.Module()
    wide.to_k_ip = torch.nn.Linear(2048, 16)
    with pytest.raises(BadInput, match=r"IP-Adapter: expected one of the main model's base .layer 1 of \[16, 768\]., got \[16, 2048\]"):
        ours(ip_adapters=[picture(layers=lambda _number: wide)])


def t2i_model():
    torch.manual_seed(12)
    return T2IAdapterModel(in_channels=3, channels=list(WIDTHS), num_res_blocks=1, downscale_factor=8).eval()


@torch.no_grad()
def outline(pictures=1, side=SIDE, **settings):
    """A core T2I-Adapter."""
    pixels = torch.rand(pictures, 3, side, side, generator=torch.Generator().manual_seed(13))
    return T2IAdapter(**({"features": t2i_model()(pixels)} | settings))


@torch.no_grad()
def stills(unet, clip, prompt, features):
    """UNet2DConditionModel's own answer for every frame as a picture of its own."""
    pictures = clip[0].transpose(0, 1)
    count = len(pictures)
    residuals = [feature.repeat(count // len(feature), 1, 1, 1) for feature in features]
    answer = unet(pictures, 500, prompt.repeat(count, 1, 1), down_intrablock_additional_residuals=residuals).sample
    return answer.transpose(0, 1)[None]


@torch.no_grad()
def still_motion(unet, clip, prompt, adapters):
    """The video UNet's answer without motion."""
    frames = range(clip.shape[2])
    with (
        motion_unet(unet, tiny_adapter()) as model,
        motion_scale(model, 0.0),
        added_features(model, adapters, frames=frames, step=0, total=1),
    ):
        return model(clip, 500, prompt.repeat(clip.shape[2], 1, 1)).sample


@pytest.mark.parametrize("pictures", [1, FRAMES])
@pytest.mark.parametrize("down", [("CrossAttnDownBlock2D", "DownBlock2D"), ("DownBlock2D", "CrossAttnDownBlock2D")])
def test_without_motion_features_count_as_they_count_for_the_still_unet(pictures, down):
    up = tuple(name.replace("Down", "Up") for name in reversed(down))
    unet, prompt = tiny_unet(down_block_types=down, up_block_types=up), tiny_prompts()[0]
    clip = torch.randn(1, 4, FRAMES, CELLS, CELLS, generator=torch.Generator().manual_seed(SEED))
    features = outline(pictures).features
    if down[0] == "DownBlock2D":  # diffusers adds after this block's downsampler
        features = [torch.nn.functional.avg_pool2d(features[0], 2), features[1]]
    answer = still_motion(unet, clip, prompt, [T2IAdapter(features)])

    # At a motion scale of 0 each temporal layer adds 0 x something, after sums in another order: no bit more than rounding.
    torch.testing.assert_close(answer, stills(unet, clip, prompt, features), rtol=0, atol=1e-5)
    assert (answer - still_motion(unet, clip, prompt, [])).abs().max() > 1e-3


def test_several_t2i_adapters_add_up():
    twice = ours(t2i_adapters=[outline(weight=0.5), outline(weight=0.5)])

    torch.testing.assert_close(twice, ours(t2i_adapters=[outline()]), rtol=0, atol=1e-4)


def test_each_window_gets_the_features_of_its_frames():
    first = outline(FRAMES)
    other = T2IAdapter([torch.cat([feature[:3], 2 * feature[3:]]) for feature in first.features])
    one, two = (ours(t2i_adapters=[adapter], windows=windowed) for adapter in (first, other))

    assert torch.equal(one[:, :, :3], two[:, :, :3])
    assert not torch.equal(one[:, :, 3:], two[:, :, 3:])


def test_features_smaller_than_the_clip_are_followed_by_zeros():
    features = [feature[..., :-1] if level == 0 else feature for level, feature in enumerate(outline().features)]
    padded = [torch.nn.functional.pad(features[0], (0, 1)), features[1]]

    assert torch.equal(ours(t2i_adapters=[T2IAdapter(features)]), ours(t2i_adapters=[T2IAdapter(padded)]))


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        ([torch.zeros(1, 16, 4, 4)], {}, r"T2I-Adapter: expected one of the main model's base .channels \[16, 32\]., got \[16\]"),
        ([torch.zeros(2, 16, 4, 4), torch.zeros(2, 32, 2, 2)], {}, "T2I-Adapter pictures: expected 1, or 6: one per frame, got 2"),
        ([torch.zeros(1, 16, 8, 8), torch.zeros(1, 32, 4, 4)], {}, r"T2I-Adapter features 0: expected at most \[4, 4\], as the clip"),
        (None, {"weight": [1.0]}, "T2I-Adapter: weights: expected one number, or 2: one per step that runs, got 1"),
        (None, {"end": 1.5}, "T2I-Adapter steps: expected a begin not above the end, both 0.0 to 1.0, got 0 to 1.5"),
    ],
)
def test_a_t2i_adapter_that_does_not_suit_is_refused(features, settings, message):
    with pytest.raises(BadInput, match=message):
        ours(t2i_adapters=[T2IAdapter(features or outline().features, **settings)])
