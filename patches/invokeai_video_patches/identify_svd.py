"""Is it Stable Video Diffusion? A diffusers folder or the original single file in; facts, "not ours" or "unusable" out.

Only headers and JSON files are read. Works without InvokeAI; `configs_svd.py` is the glue.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invokeai_video_nodes.pipelines.svd import keys, sizes
from invokeai_video_patches import weight_files
from invokeai_video_patches.identify import NotVideo, Unusable, broken_weights, missing_parts
from invokeai_video_patches.identify_hunyuan_video import PREPROCESSOR, WEIGHTS, read_json
from invokeai_video_patches.weight_files import BrokenFile, WeightHeader

PIPELINE_CLASS = "StableVideoDiffusionPipeline"
PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "unet": WEIGHTS,
    "vae": WEIGHTS,
    "image_encoder": WEIGHTS,
    "feature_extractor": PREPROCESSOR,
    "scheduler": (("scheduler_config.json",),),
}
CLASSES = {"unet": "UNetSpatioTemporalConditionModel", "vae": "AutoencoderKLTemporalDecoder"}
# Frames that a release was trained to make -> the release.
RELEASES = {14: "svd", 25: "svd-xt"}
_IN_NAMES = (
    (re.compile(r"(?<![a-z])(svd)?xt(?![a-z])"), 25),
    (re.compile(r"(?<![a-z])svd(?![a-z])|stable[-_. ]?video[-_. ]?diffusion"), 14),
)


@dataclass(frozen=True)
class SVDFacts:
    """What the model record keeps: `release` "svd" or "svd-xt", and the frames that it was trained to make."""

    release: str
    num_frames: int


def identify_folder(folder: Path) -> SVDFacts:
    """Judge a diffusers folder; raises NotVideo or Unusable."""
    index = folder / "model_index.json"
    class_name = read_json(index).get("_class_name") if index.is_file() else None
    if class_name != PIPELINE_CLASS:
        raise NotVideo(f"model_index.json names {class_name}")
    if problem := missing_parts(folder, PARTS) or broken_weights(folder, PARTS):
        raise Unusable(problem)
    for part, expected in CLASSES.items():
        named = read_json(folder / part / "config.json").get("_class_name")
        if named != expected:
            raise Unusable(f"{folder.name}: {part}/config.json: expected {expected}, got {named}")
    # The class's own default is 25, so a config that leaves it out means that.
    num_frames = read_json(folder / "unet" / "config.json").get("num_frames", 25)
    if num_frames not in RELEASES:
        known = " or ".join(f"{frames} ({release})" for frames, release in RELEASES.items())
        raise Unusable(f"{folder.name}: unet/config.json: expected num_frames {known}, got {num_frames}")
    return SVDFacts(RELEASES[num_frames], num_frames)


def identify_file(path: Path, *, asked: int | None = None, names: Iterable[str] = ()) -> SVDFacts:
    """Judge an original single file; raises NotVideo or Unusable.

    SVD's and SVD-XT's have equal shapes, so the frames are, in this order, those that somebody `asked` for, those of the config
    in the file, and what the names say: the file's, and `names`, what else it is called (a record's name, a source).
    """
    header = file_header(path)
    num_frames = asked or _frames_in(header) or _frames_named([path.stem, *names, header.metadata.get("modelspec.title", "")])
    if num_frames is None:
        raise Unusable(
            f"{path.name}: expected svd (14 frames) or svd_xt (25 frames) in the file's name, because the files of both are alike, "
            "got neither; rename the file, or give the model one of these names"
        )
    if num_frames not in RELEASES:
        known = " or ".join(f"{frames} ({release})" for frames, release in RELEASES.items())
        raise Unusable(f"{path.name}: expected num_frames {known}, got {num_frames}")
    try:
        sizes.describe(header.shapes, num_frames=num_frames, config=header.config())
    except (ValueError, TypeError, KeyError) as error:
        raise Unusable(f"{path.name}: {error}") from error
    if header.problem:
        raise Unusable(header.problem)
    return SVDFacts(RELEASES[num_frames], num_frames)


def file_header(path: Path) -> WeightHeader:
    """The header of an original single file; raises NotVideo for another kind of file, Unusable for one cut off in its header."""
    if path.suffix.lower() != ".safetensors":
        raise NotVideo("no safetensors file")
    try:
        header = weight_files.read_safetensors_header(path)
    except BrokenFile as error:
        if keys.MARK in error.header_text:
            raise Unusable(str(error)) from error
        raise NotVideo(str(error)) from error
    except (ValueError, OSError) as error:
        raise NotVideo(str(error)) from error
    if not keys.is_original(header.shapes):
        raise NotVideo("no Stable Video Diffusion")
    return header


def asked_frames(fields: dict[str, Any]) -> int | None:
    """The frames that a record's fields ask for, by `num_frames` or `release`; None where they ask for none."""
    if fields.get("num_frames") is not None:
        return int(fields["num_frames"])
    release = fields.get("release")
    if release is None:
        return None
    if release not in RELEASES.values():
        raise Unusable(f"release: expected {' or '.join(RELEASES.values())}, got {release}")
    return next(frames for frames, name in RELEASES.items() if name == release)


def _frames_in(header: WeightHeader) -> int | None:
    unet = (header.config() or {}).get("unet")
    return unet.get("num_frames") if isinstance(unet, dict) else None


def _frames_named(names: Iterable[str]) -> int | None:
    """The first name that says something wins."""
    for name in names:
        for pattern, frames in _IN_NAMES:
            if pattern.search(name.lower()):
                return frames
    return None
