"""`invokeai-video doctor`: what is installed, what is patched, what fell back and why, in plain words.

The answers come from this process, not from guesses: InvokeAI is imported with the patches on, our nodes are registered, the web
bundle is matched, one compressed socket.io request is answered by InvokeAI's own application. Nothing listens, no root is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json as json_module
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("invokeai-video", "invokeai", "torch", "diffusers", "transformers", "starlette")
SOCKET_PATH = "/ws/socket.io/"
SOCKET_QUERY = b"EIO=4&transport=polling"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, whether it is well, and the details in plain words."""

    name: str
    ok: bool
    detail: str


def run_doctor(root: Path | str | None = None, json: bool = False) -> int:
    """Print the report (as JSON for programs) and return 0 when all is well, 1 otherwise.

    `root`: an InvokeAI root whose invokeai.yaml and nodes/ folder are read too; default INVOKEAI_ROOT, if set.
    """
    root = root or os.environ.get("INVOKEAI_ROOT")
    findings = []
    for finding in examine(Path(root) if root else None):
        findings.append(finding)
        if not json:
            print(f"{'ok ' if finding.ok else 'BAD'}  {finding.name}: {finding.detail}", flush=True)
    if json:
        print(json_module.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        bad = sum(not finding.ok for finding in findings)
        print("All is well." if not bad else f"{bad} of {len(findings)} need attention, see the lines marked BAD.")
    return 0 if all(finding.ok for finding in findings) else 1


def examine(root: Path | None) -> Iterator[Finding]:
    """Every finding, in the order in which a person would ask."""
    _paths_of_a_clone()
    yield from _versions()
    yield from _ways_in(root)
    from invokeai_video_patches import bootstrap, version_gate

    if bootstrap.disabled():
        yield Finding("kill switch", False, f"{bootstrap.KILL_SWITCH} is set, so InvokeAI runs as if we were not installed")
    elif version_gate.is_supported(version_gate.installed_version()):
        yield Finding("kill switch", True, f"off ({bootstrap.KILL_SWITCH}=1 switches everything off)")
        yield from _inside_invokeai(root)
    yield _ffmpeg()


def _paths_of_a_clone() -> None:
    """A clone that is not installed has the patches in `patches/` beside the package."""
    if importlib.util.find_spec("invokeai_video_patches") is None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "patches"))


def _versions() -> Iterator[Finding]:
    python = sys.version_info[:2] in ((3, 11), (3, 12))
    yield Finding("python", python, platform.python_version() + ("" if python else "; expected 3.11 or 3.12"))
    from invokeai_video_patches import version_gate

    for name in DISTRIBUTIONS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            # A clone or a folder in nodes/ has no distribution of ours, and needs none.
            yield Finding(name, name == "invokeai-video", "not installed by pip")
            continue
        known = name != "invokeai" or version_gate.is_supported(version)
        yield Finding(name, known, version if known else f"{version}; expected {version_gate.SUPPORTED}, so stock behaviour")


def _ways_in(root: Path | None) -> Iterator[Finding]:
    from invokeai_video_patches import bootstrap

    started = any(isinstance(finder, bootstrap.HookFinder) for finder in sys.meta_path)
    ways = ["the startup file in site-packages"] if started else []
    if root is not None:
        ways += [f"the folder {path.parent.parent}" for path in sorted((root / "nodes").glob("*/invokeai_video_nodes/__init__.py"))]
    nothing = "through `invokeai-video web` only; plain `invokeai-web` does not know our models"
    yield Finding("way in", True, " and ".join(ways) or nothing)


def _inside_invokeai(root: Path | None) -> Iterator[Finding]:
    """Import InvokeAI with the patches on, in a throwaway root, and look at what came of it."""
    from invokeai_video_patches import bootstrap, node_registration, status

    bootstrap.install()
    print("starting InvokeAI to look inside it; on a busy machine that takes a minute", file=sys.stderr)
    problem = None
    # Nothing is yielded in here: the caller prints each finding, and stdout is not its own meanwhile.
    with _throwaway_root(), contextlib.redirect_stdout(sys.stderr):
        try:
            app = importlib.import_module("invokeai.app.api_app").app
        except Exception as error:
            problem = f"does not start: {type(error).__name__}: {error}".splitlines()[0]
        else:
            node_registration.register_nodes()
            socket = asyncio.run(_socket_status(app))
    if problem:
        yield Finding("InvokeAI", False, problem)
        return
    for entry in status.report.entries.values():
        if entry.name not in ("nodes", "web interface"):
            yield Finding(f"patch: {entry.name}", entry.ok, entry.detail)
    yield _web_interface()
    yield _nodes()
    yield _socket(socket, _compression_level(root))


def _web_interface() -> Finding:
    from invokeai_video_patches import web_ui

    report = web_ui.match_report()
    if report["matches"]:
        return Finding("patch: web interface", True, f"all {len(report['counts'])} places found in the installed bundle")
    return Finding("patch: web interface", False, "stock interface is served: " + "; ".join(report["misses"]))


def _nodes() -> Finding:
    from invokeai.app.invocations.baseinvocation import InvocationRegistry

    from invokeai_video_patches import status

    ours = sorted(
        cls.get_type() for cls in InvocationRegistry.get_invocation_classes() if cls.__module__.startswith("invokeai_video_nodes.")
    )
    entry = status.report.entries.get("nodes")
    if ours and entry is not None and entry.ok:
        return Finding("nodes", True, ", ".join(ours))
    return Finding("nodes", False, entry.detail if entry else "none registered")


def _socket(status_code: int, compression_level: int) -> Finding:
    """What the status of a compressed polling request means for the web interface."""
    name = "socket.io behind compression"
    version = metadata.version("starlette")
    if status_code == 200:
        return Finding(name, True, f"answers 200 with starlette {version}")
    cure = "install 'starlette<1.6', or set http_compression_level: 0 in invokeai.yaml"
    broken = f"answers {status_code} with starlette {version}: the web interface shows 'disconnected' and Invoke stays grey"
    if compression_level == 0:
        return Finding(name, True, "compression is off in invokeai.yaml, which avoids a fault of this starlette")
    return Finding(name, False, f"{broken}; {cure}")


async def _socket_status(app: Callable[..., Any]) -> int:
    """Status that InvokeAI's application gives to one socket.io polling GET of a browser, asked in this process."""
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": SOCKET_PATH,
        "raw_path": SOCKET_PATH.encode(),
        "root_path": "",
        "query_string": SOCKET_QUERY,
        "headers": [(b"host", b"localhost"), (b"accept-encoding", b"gzip")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 9090),
    }
    try:
        await app(scope, receive, send)
    except Exception:  # uvicorn answers 500 for what escapes the application
        return 500
    return status


def _compression_level(root: Path | None) -> int:
    """`http_compression_level` of the root's invokeai.yaml, InvokeAI's default of 9 where it says nothing."""
    path = root / "invokeai.yaml" if root is not None else None
    if path is None or not path.is_file():
        return 9
    import yaml

    settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return int(settings.get("http_compression_level", 9))


@contextlib.contextmanager
def _throwaway_root() -> Iterator[None]:
    """InvokeAI reads its root and the command line while it is imported: give it an empty one of each."""
    before, arguments = os.environ.get("INVOKEAI_ROOT"), sys.argv
    with tempfile.TemporaryDirectory(prefix="invokeai-video-doctor-") as folder:
        os.environ["INVOKEAI_ROOT"], sys.argv = folder, arguments[:1]
        try:
            yield
        finally:
            sys.argv = arguments
            os.environ.pop("INVOKEAI_ROOT")
            if before is not None:
                os.environ["INVOKEAI_ROOT"] = before


def _ffmpeg() -> Finding:
    try:
        import imageio_ffmpeg

        executable = imageio_ffmpeg.get_ffmpeg_exe()
        listing = subprocess.run([executable, "-hide_banner", "-encoders"], capture_output=True, text=True, timeout=30, check=True)
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return Finding("ffmpeg", False, f"does not run ({error}); install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE")
    missing = [codec for codec in ("libx264", "libx265") if codec not in listing.stdout]
    if missing:
        return Finding("ffmpeg", False, f"{executable} lacks the encoders {', '.join(missing)}")
    return Finding("ffmpeg", True, f"{imageio_ffmpeg.get_ffmpeg_version()} with libx264 and libx265")
