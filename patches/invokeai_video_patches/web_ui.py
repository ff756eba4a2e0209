"""Stock web bundle in, the same bundle with our model types out: rewritten once while it is served, never on disk.

The compiled interface closes its lists of model bases and types: a picker drops a value that is not in them, a saved workflow
loses it, the model manager shows no heading for it. Each `Anchor` is one place in the bundle and what goes there. Every anchor has
to be found exactly as often as in the bundle it was written for; on any miss all files are served as they are.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from os import stat_result
from pathlib import Path
from types import ModuleType
from typing import Any

from invokeai_video_patches import status

NAME = "web interface"

# base -> (long label, badge label, colour of the badge in the interface's own palette)
BASES = {
    "z-image-video": ("Z-Image Video", "Z-Image Video", "cyan"),
    "hunyuan-video": ("HunyuanVideo", "HunyuanVideo", "orange"),
    "svd": ("Stable Video Diffusion", "SVD", "purple"),
}
# type -> (label, heading in the model manager)
TYPES = {
    "video_vae": ("Video VAE", "Video VAEs"),
    "video_text_encoders": ("Video Text Encoders", "Video Text Encoders"),
    "motion_module": ("Motion Module", "Video Motion Modules"),
}
# format -> (long label, badge label, colour of the badge)
FORMATS = {"sparse_ctrl": ("SparseCtrl", "sparsectrl", "base")}
# Main models of our bases stand under a heading of their own; this is its key in the interface.
MAIN_CATEGORY = "video_main"
MAIN_HEADING = "Video Models"


@dataclass(frozen=True)
class Anchor:
    """One place in a bundle: where it is, what it becomes (`re` template), and how often it has to be there."""

    name: str
    pattern: str
    becomes: str
    expected: int = 1


def _quoted(values: Any) -> str:
    return ",".join(f"`{value}`" for value in values)


def _entries(labels: dict[str, str]) -> str:
    return "".join(f'"{key}":`{label}`,' for key, label in labels.items())


_IS_OURS = f"[{_quoted(BASES)}].includes(e.base)"


def _category(key: str, heading: str, test: str) -> str:
    return f"{key}:{{category:`{key}`,i18nKey:`{heading}`,filter:e=>{test}}},"


def _headings() -> str:
    ours = _category(MAIN_CATEGORY, MAIN_HEADING, f"e.type===`main`&&{_IS_OURS}")
    return ours + "".join(_category(key, heading, f"e.type===`{key}`") for key, (_, heading) in TYPES.items())


# The entry bundle holds the models' vocabulary.
ENTRY_ANCHORS = (
    Anchor("model bases", r"(`any`,`sd-1`,`sd-2`,[^\]]*?)(,`unknown`\])", rf"\1,{_quoted(BASES)}\2"),
    Anchor("model types", r"(`main\.vae\.lora\.[^`]*?)(\.unknown`\.split)", rf"\1.{'.'.join(TYPES)}\2"),
    Anchor(
        "base labels",
        r'(\{any:`Any`,)("sd-1":`Stable Diffusion 1)',
        rf"\1{_entries({base: long for base, (long, _, _) in BASES.items()})}\2",
    ),
    Anchor(
        "base badges",
        r'(\{any:`Any`,)("sd-1":`SD1)',
        rf"\1{_entries({base: short for base, (_, short, _) in BASES.items()})}\2",
    ),
    Anchor(
        "base colours",
        r'(\{any:`base`,)("sd-1":`)',
        rf"\1{_entries({base: colour for base, (_, _, colour) in BASES.items()})}\2",
    ),
    Anchor(
        "type labels",
        r"(\{main:`Main`,vae:`VAE`,)(lora:`LoRA`)",
        rf"\1{_entries({key: label for key, (label, _) in TYPES.items()})}\2",
    ),
    Anchor("model formats", r"(\[`omi`,`diffusers`,`checkpoint`,[^\]]*?)(,`unknown`\])", rf"\1,{_quoted(FORMATS)}\2"),
    Anchor(
        "format labels",
        r"(\{omi:`OMI`,)(diffusers:`Diffusers`)",
        rf"\1{_entries({key: long for key, (long, _, _) in FORMATS.items()})}\2",
    ),
    Anchor(
        "model manager headings",
        r"(main:\{category:`main`,i18nKey:`modelManager\.main`,filter:[\w$]+\},)",
        rf"\1{_headings()}",
    ),
    Anchor(
        "model manager filter values",
        r"(\.or\(([\w$]+)\.literal\(`external_image_generator`\)\))",
        rf"\1.or(\2.literal(`{MAIN_CATEGORY}`))",
    ),
    # What the Generate and Canvas tabs call a main model: ours have no graph there.
    Anchor("main models of Generate and Canvas", r"(e=>e\.type===`main`&&e\.base!==`sdxl-refiner`)", rf"\1&&!{_IS_OURS}"),
)
# The application bundle holds the model manager's list and its "select all", each with its own copy of the filter.
APP_ANCHORS = (
    Anchor(
        "model manager filter",
        r"(=\(e,t\)=>)(t===`refiner`\?e\.base===`sdxl-refiner`:)",
        rf"\1t===`{MAIN_CATEGORY}`?e.type===`main`&&{_IS_OURS}:\2",
        expected=2,
    ),
    Anchor(
        "format badges",
        r"(,omi:`omi`)(,external_api:`external_api`)",
        rf"\1,{_entries({key: badge for key, (_, badge, _) in FORMATS.items()}).rstrip(',')}\2",
    ),
    Anchor(
        "format colours",
        r"(\{diffusers:`base`,)(omi:`base`,lycoris:)",
        rf"\1{_entries({key: colour for key, (_, _, colour) in FORMATS.items()})}\2",
    ),
)
BUNDLES = {"index-*.js": ENTRY_ANCHORS, "App-*.js": APP_ANCHORS}


def rewrite(js: str, anchors: tuple[Anchor, ...] = ENTRY_ANCHORS) -> tuple[str, dict[str, int]]:
    """Return `js` with our model types in it, and how often each anchor was found.

    With any count that is not the expected one the text comes back unchanged.
    """
    counts = {anchor.name: len(re.findall(anchor.pattern, js)) for anchor in anchors}
    if any(counts[anchor.name] != anchor.expected for anchor in anchors):
        return js, counts
    for anchor in anchors:
        js = re.sub(anchor.pattern, anchor.becomes, js)
    return js, counts


@dataclass(frozen=True)
class RewrittenFile:
    """One rewritten file in memory, and the ETag that tells it from the stock one."""

    content: bytes
    etag: str


@dataclass(frozen=True)
class RewrittenBundle:
    """All rewritten files of one `dist` folder by name, or none of them and the misses in plain words."""

    files: dict[str, RewrittenFile]
    counts: dict[str, int]
    misses: tuple[str, ...]


def rewrite_bundle(assets: Path) -> RewrittenBundle:
    """Rewrite the files of an `assets` folder; all of them, or none when one anchor is not found as expected."""
    files: dict[str, RewrittenFile] = {}
    counts: dict[str, int] = {}
    misses: list[str] = []
    for pattern, anchors in BUNDLES.items():
        found = sorted(assets.glob(pattern))
        if len(found) != 1:
            misses.append(f"{pattern}: expected 1 file, got {len(found)}")
            continue
        js, matched = rewrite(found[0].read_text(encoding="utf-8"), anchors)
        counts.update(matched)
        misses += [
            f"{anchor.name}: expected {anchor.expected} in {pattern}, got {matched[anchor.name]}"
            for anchor in anchors
            if matched[anchor.name] != anchor.expected
        ]
        content = js.encode("utf-8")
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        files[found[0].name] = RewrittenFile(content, f'"{digest}"')
    return RewrittenBundle({} if misses else files, counts, tuple(misses))


class BundleCache:
    """The rewritten bundle of each folder; rewritten again only when size or time of a served file changes."""

    def __init__(self, rewriter: Callable[[Path], RewrittenBundle] = rewrite_bundle) -> None:
        self._rewriter = rewriter
        self._bundles: dict[Path, RewrittenBundle] = {}
        self._keys: dict[Path, tuple[int, int]] = {}

    def lookup(self, path: Path, stat: stat_result) -> RewrittenFile | None:
        """The rewritten form of the file at `path`, None for every file that is served as it is."""
        if path.parent.name != "assets" or not any(path.match(pattern) for pattern in BUNDLES):
            return None
        key = (stat.st_size, stat.st_mtime_ns)
        if path.parent not in self._bundles or self._keys.get(path, key) != key:
            bundle = self._bundles[path.parent] = self._rewriter(path.parent)
            if bundle.misses:
                status.fell_back(NAME, "; ".join(bundle.misses))
            else:
                status.applied(NAME, f"{len(bundle.counts)} places of the bundle rewritten")
        self._keys[path] = key
        return self._bundles[path.parent].files.get(path.name)


def match_report(assets: Path | None = None) -> dict[str, Any]:
    """How the anchors match the installed bundle (or the given `assets` folder), for `doctor`.

    Returns {"matches": bool, "counts": {anchor: found}, "misses": [plain words]}.
    """
    if assets is None:
        from importlib import util

        spec = util.find_spec("invokeai")
        roots = list(spec.submodule_search_locations or []) if spec is not None else []
        assets = Path(roots[0], "frontend", "web", "dist", "assets") if roots else Path("assets")
    bundle = rewrite_bundle(assets)
    return {"matches": not bundle.misses, "counts": bundle.counts, "misses": list(bundle.misses)}


def patch(module: ModuleType) -> str:
    """Let `NoCacheStaticFiles` of `invokeai.app.api.no_cache_staticfiles` serve the rewritten files, once per process."""
    served_class = module.NoCacheStaticFiles
    inner = served_class.file_response
    if getattr(inner, "invokeai_video_wrapped", False):
        return "rewrites the bundle when it is first served"
    cache = BundleCache()

    def file_response(self: Any, full_path: Any, stat_result: stat_result, scope: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            rewritten = cache.lookup(Path(full_path), stat_result)
        except Exception as error:  # the interface must come up, with or without our part
            status.fell_back(NAME, f"{type(error).__name__}: {error}".splitlines()[0])
            rewritten = None
        if rewritten is None:
            return inner(self, full_path, stat_result, scope, *args, **kwargs)
        return _response(self, rewritten, stat_result, scope)

    file_response.invokeai_video_wrapped = True  # type: ignore[attr-defined]
    served_class.file_response = file_response
    return "rewrites the bundle when it is first served"


def _response(files: Any, rewritten: RewrittenFile, stat: stat_result, scope: Any) -> Any:
    """The answer that upstream gives for a file on disk (validators, no-cache headers), with our bytes and ETag."""
    from starlette.datastructures import Headers
    from starlette.responses import Response
    from starlette.staticfiles import NotModifiedResponse

    validators = {"etag": rewritten.etag, "last-modified": formatdate(stat.st_mtime, usegmt=True)}
    response = Response(rewritten.content, media_type="text/javascript", headers=validators)
    request_headers = Headers(scope=scope)
    # The stock file has the same time, so only the ETag may say "not modified".
    if "if-none-match" in request_headers and files.is_not_modified(response.headers, request_headers):
        response = NotModifiedResponse(response.headers)
    response.headers.setdefault("Cache-Control", files.cachecontrol)
    response.headers.setdefault("Pragma", files.pragma)
    response.headers.setdefault("Expires", files.expires)
    return response
