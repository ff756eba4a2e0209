"""The training code: its fast forward is the shipped model's own, and a resumed run repeats an unbroken one."""

import pytest
import torch

from training.toy_model import train_transformer as stage
from training.toy_model.clips import split_subjects
from training.toy_model.data import CLIPS_PER_SUBJECT
from training.toy_model.fast_block import run_block
from training.toy_model.optimizer import orthogonalised
from training.toy_model.sampling import sigmas


@pytest.fixture
def small_stage(monkeypatch):
    monkeypatch.setattr(stage, "CAPTIONS_PER_SUBJECT", 2)
    monkeypatch.setattr(stage, "TOKENS_PER_STEP", 400)
    monkeypatch.setattr(stage, "CHECKPOINT_EVERY", 2)


@pytest.mark.parametrize(("frames", "f"), [(8, 2), (10, 2), (12, 4), (24, 4)])
def test_the_batched_forward_equals_the_models_own(frames, f):
    model = stage.new_transformer().eval()
    for layer in model.all_final_layer.values():
        torch.nn.init.normal_(layer.linear.weight, std=0.1)
    x, t = torch.randn(3, 4, frames, 8, 8), torch.tensor([0.1, 0.5, 0.9])
    captions, lengths = torch.randn(3, 32, 64), torch.tensor([5, 17, 32])

    with torch.no_grad():
        batched = stage.batched_forward(model, x, t, captions, lengths, f)
        for index, length in enumerate(lengths):
            single = model([x[index]], t[index : index + 1], [captions[index, :length]], patch_size=2, f_patch_size=f)
            assert torch.allclose(batched[index], single.sample[0], atol=1e-5)


def test_the_fast_block_has_the_blocks_own_gradients():
    torch.manual_seed(0)
    block = stage.new_transformer().layers[0]
    freqs = torch.polar(torch.ones(1, 96, 16), torch.randn(1, 96, 16))
    adaln, wanted = torch.randn(3, 128), torch.randn(3, 96, 128)
    grads = []
    for run in (lambda x: run_block(block, x, freqs, adaln), lambda x: block(x, None, freqs.expand(3, -1, -1), adaln)):
        x = torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(1)).requires_grad_()
        grads.append(torch.autograd.grad((run(x) - wanted).square().sum(), [x, *block.parameters()]))

    for fast, own in zip(*grads, strict=True):
        assert torch.allclose(fast, own, rtol=1e-4, atol=1e-5 * float(own.abs().max()))


@pytest.mark.soak
def test_a_resumed_run_repeats_an_unbroken_one(small_stage, tmp_path):
    latents = torch.randn(len(split_subjects()[0]) * CLIPS_PER_SUBJECT, 4, 24, 8, 8)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()

    unbroken = stage.train_transformer(latents, whole, steps=4, log=lambda line: None)
    stage.train_transformer(latents, parts, steps=4, until=3, log=lambda line: None)
    resumed = stage.train_transformer(latents, parts, steps=4, log=lambda line: None)

    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_held_first_frame_is_given_clean_and_costs_nothing(small_stage):
    latents = torch.randn(len(split_subjects()[0]) * CLIPS_PER_SUBJECT, 4, 24, 8, 8)
    batch = stage.Sampler(latents)(0)
    batch.held[:] = True
    model = stage.new_transformer()

    loss = stage.flow_loss(model, batch)
    batch.noise[:, :, 0] += 10.0  # neither seen nor asked for
    again = stage.flow_loss(model, batch)

    assert torch.allclose(loss, again)


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((2, 32, 32), (1, 16, 48), (1, 48, 16)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape), iterations=8))

        assert values.max() < 1.3 and values.min() > 0.5


def test_the_schedule_is_that_of_the_exported_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=False)
    scheduler.sigma_min = 0.0
    scheduler.set_timesteps(sigmas=[1 - index / 12 for index in range(12)])

    assert torch.allclose(scheduler.sigmas, torch.tensor(sigmas(12, 3.0)), atol=1e-6)
