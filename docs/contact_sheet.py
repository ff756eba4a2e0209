"""The README's contact sheet: the demo's prompts through InvokeAI's real engine, frames side by side, a PNG and a GIF out.

    python -m docs.contact_sheet          # writes docs/images/demo-contact-sheet.png and docs/images/demo.gif

Every prompt runs once with seed 0: the sheet shows what a newcomer gets, not the best of several.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from invokeai_video_nodes.commands.demo import settings_for
from invokeai_video_nodes.commands.run import RunRequest, prepare
from invokeai_video_nodes.headless import Engine
from invokeai_video_nodes.pipelines.frames import read_frames
from invokeai_video_nodes.toy_settings import TOY_MODEL, toy_settings
from invokeai_video_nodes.workflow_files import workflow_file
from invokeai_video_nodes.workflow_graph import read_workflow

PROMPTS = (
    "a red circle moving right",
    "a blue star going up and to the left",
    "a green triangle that rotates",
    "a purple square growing",
    "a yellow star moving down",
    "an orange circle shrinking",
)
SHOWN_FRAMES = (0, 5, 10, 15)
SCALE = 2
CAPTION_HEIGHT = 20
IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Make the clips, then the two pictures."""
    with tempfile.TemporaryDirectory() as root, Engine(Path(root)) as engine:
        engine.install(TOY_MODEL)
        clips = [clip(engine, prompt) for prompt in PROMPTS]
    IMAGES.mkdir(exist_ok=True)
    sheet(clips).save(IMAGES / "demo-contact-sheet.png", optimize=True)
    pictures = [animation_frame(clips, index) for index in range(len(clips[0]))]
    milliseconds = 1000 // toy_settings().fps
    pictures[0].save(IMAGES / "demo.gif", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)


def clip(engine: Engine, prompt: str) -> list[np.ndarray]:
    """Frames, uint8 [64, 64, 3], of the demo's clip for `prompt`, read back from its MP4."""
    chosen = Namespace(frames=None, steps=None, guidance=None, fps=None, seed=0)
    draft = read_workflow(workflow_file("text_to_video"))
    request = RunRequest(draft=draft, settings=settings_for(chosen, toy_settings(), prompt))
    [video] = engine.run(prepare(request, engine)).videos
    return list(read_frames(video))


def sheet(clips: list[list[np.ndarray]]) -> Image.Image:
    """Two prompts a row, each with its caption above four of its frames."""
    height, width = (size * SCALE for size in clips[0][0].shape[:2])
    gap = 12
    strip = width * len(SHOWN_FRAMES)
    rows = -(-len(clips) // 2)
    picture = Image.new("RGB", (2 * strip + 3 * gap, rows * (height + CAPTION_HEIGHT + gap) + gap), "white")
    for index, (prompt, frames) in enumerate(zip(PROMPTS, clips, strict=True)):
        left = gap + (index % 2) * (strip + gap)
        top = gap + (index // 2) * (height + CAPTION_HEIGHT + gap)
        ImageDraw.Draw(picture).text((left, top + 3), prompt, fill="black")
        for place, frame in enumerate(SHOWN_FRAMES):
            picture.paste(enlarged(frames[frame]), (left + place * width, top + CAPTION_HEIGHT))
    return picture


def animation_frame(clips: list[list[np.ndarray]], index: int) -> Image.Image:
    """Frame `index` of all clips side by side."""
    return Image.fromarray(np.concatenate([np.asarray(enlarged(frames[index])) for frames in clips], axis=1))


def enlarged(frame: np.ndarray) -> Image.Image:
    """The frame with every pixel SCALE times as large, so that it stays what the model drew."""
    return Image.fromarray(frame).resize((frame.shape[1] * SCALE, frame.shape[0] * SCALE), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
