"""`invokeai-video demo`: a prompt in, an MP4 out. It runs our text-to-video workflow on the toy model."""

from __future__ import annotations

import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from invokeai_video_nodes.commands.console import Console
from invokeai_video_nodes.commands.enlarge import enlarge
from invokeai_video_nodes.commands.results import out_folder
from invokeai_video_nodes.commands.run import RunRequest, file_stem, report, run_workflow
from invokeai_video_nodes.headless import refuse_where_switched_off
from invokeai_video_nodes.pipelines.errors import BadInput
from invokeai_video_nodes.toy_settings import TOY_MODEL, ToySettings, toy_settings
from invokeai_video_nodes.workflow_files import workflow_file
from invokeai_video_nodes.workflow_graph import read_workflow
from invokeai_video_nodes.workflow_settings import Setting, parse_setting

_MAX_SCALE = 16
_MAX_SEED = 2**32 - 1


def demo(arguments: Namespace, console: Console) -> int:
    """The verb: check the arguments, run, print where the clip is."""
    refuse_where_switched_off()
    toy = toy_settings()
    check_arguments(arguments, toy)
    if not (TOY_MODEL / "model_index.json").is_file():
        raise BadInput.expected("toy model", "the model that ships with the pack", f"no model in {TOY_MODEL}")
    prompt = toy.prompt if arguments.prompt is None else arguments.prompt
    console.note(f'prompt: "{prompt}" (seed {arguments.seed})')
    for hint in (unknown_words(prompt, toy.words), unusual_length(_frames(arguments, toy), toy.trained_frames)):
        if hint:
            console.note(hint)
    with out_folder(Path(arguments.out)) as out:
        request = RunRequest(
            draft=read_workflow(workflow_file("text_to_video")),
            settings=settings_for(arguments, toy, prompt),
            models=[TOY_MODEL],
            out=out,
            stem=file_stem(f"{prompt} seed {arguments.seed}"),
            tell_remarks=False,
        )
        delivery = run_workflow(request, console)
        if arguments.scale > 1:
            enlarged = [enlarge(path, arguments.scale) for path in delivery.videos]
            delivery = replace(delivery, videos=delivery.videos + enlarged)
        report(delivery, console)
    console.note(f"done in {delivery.startup_seconds + delivery.seconds:.0f} s; the clip lies in {out}")
    return 0


def check_arguments(arguments: Namespace, toy: ToySettings) -> None:
    """Refuse what the model cannot do before anything is loaded; BadInput names the nearest value that works."""
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise BadInput.expected("--prompt", "a few words", "nothing", toy.prompt)
    if not arguments.out:
        raise BadInput.expected("--out", "a folder", "nothing", "outputs")
    for name, lowest, highest in (
        ("seed", 0, _MAX_SEED),
        ("scale", 1, _MAX_SCALE),
        ("steps", 1, 1000),
        ("fps", 1, 60),
        ("guidance", 1, 100),
    ):
        value = getattr(arguments, name)
        if value is not None and not lowest <= value <= highest:
            nearest = lowest if not value > lowest else highest
            raise BadInput.expected(f"--{name}", f"{lowest} to {highest}", value, nearest)
    from invokeai_video_nodes.pipelines.shapes import FRAME_RULES  # imports torch, so it comes last

    FRAME_RULES["z-image-video"].check_frames(_frames(arguments, toy), toy.f_patch_size, what="--frames")


def _frames(arguments: Namespace, toy: ToySettings) -> int:
    return toy.num_frames if arguments.frames is None else arguments.frames


def settings_for(arguments: Namespace, toy: ToySettings, prompt: str) -> list[Setting]:
    """The workflow's inputs: what the person said, else what the model was made for."""
    values = {
        "positive_prompt.prompt": prompt,
        "denoise.num_frames": _frames(arguments, toy),
        "denoise.width": toy.width,
        "denoise.height": toy.height,
        "denoise.f_patch_size": toy.f_patch_size,
        "denoise.steps": toy.steps if arguments.steps is None else arguments.steps,
        "denoise.guidance_scale": toy.guidance_scale if arguments.guidance is None else arguments.guidance,
        "denoise.seed": arguments.seed,
        "denoise.fps": toy.fps if arguments.fps is None else arguments.fps,
    }
    return [parse_setting(f"{target}={value}") for target, value in values.items()]


def unusual_length(frames: int, trained: tuple[int, ...]) -> str | None:
    """A sentence when the clip is longer or shorter than any that the toy saw; None otherwise."""
    if not trained or min(trained) <= frames <= max(trained):
        return None
    return f"note: the toy model saw clips of {min(trained)} to {max(trained)} frames; {frames} may move poorly"


def unknown_words(prompt: str, words: tuple[str, ...]) -> str | None:
    """A friendly sentence when the prompt uses words that the toy never saw; None when it knows them all."""
    strange = [word for word in re.findall(r"[a-z]+", prompt.lower()) if words and word not in words]
    if not strange:
        return None
    return f"note: the toy model does not know {', '.join(dict.fromkeys(strange))}; it knows: {', '.join(words)}"
