"""`invokeai-video`: the command line. Verbs live in `commands/`; here arguments are read and errors become exit codes.

Exit codes: 0 done, 1 a node or the machine failed, 2 the input was wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from invokeai_video_nodes import __version__

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_ROOT_HELP = "InvokeAI root folder (default: INVOKEAI_ROOT, else ~/invokeai)"
_DEMO_EPILOG = "The model is a toy made here from synthetic clips: shapes, colours and motions, nothing else."
_RUN_EPILOG = """\
WORKFLOW.json is a file, or the name of one that ships with the pack: text_to_video, hunyuan_text_to_video and so on.
NODE is a node's id, label, type or title; VALUE is text or JSON, for an image or video field a file or a name in the
gallery, for a model field a model's name or key, for a LoRA field one of these or a JSON list of them, with weights
where they are not 0.75. Without --root (and without INVOKEAI_ROOT) the run uses a throwaway root that holds only the
models of --model. A root that a server is using is refused: both would work on one queue.

  invokeai-video run text_to_video --model toy_model --set "Prompt.prompt=a red star rotates" --out clips
  invokeai-video run hunyuan_text_to_video --root ~/invokeai --set 'LoRAs.loras=[{"lora": "anime", "weight": 0.8}]'
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the console script; returns the exit code."""
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["web"]:
        return _web(words[1:])  # every further word is for invokeai-web, also those that argparse would take for ours
    arguments = parser.parse_args(words)
    if not hasattr(arguments, "verb"):
        parser.print_help()
        return OK
    if arguments.verb in _PLAIN_VERBS:
        return _run_plain(arguments)
    return _run_with_console(arguments)


def _parser() -> argparse.ArgumentParser:
    about = "Video models for InvokeAI, from the command line."
    parser = argparse.ArgumentParser(prog="invokeai-video", description=about)
    parser.add_argument("--version", action="version", version=f"invokeai-video {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_demo(verbs)
    _add_run(verbs)

    _verb(verbs, "web", "start InvokeAI's web server with the video models; further arguments go to invokeai-web")
    doctor = _verb(verbs, "doctor", "tell what is patched, what matched, what fell back and why, with versions")
    doctor.add_argument("--root", help="InvokeAI root folder to look at too (default: INVOKEAI_ROOT, if set)")
    doctor.add_argument("--json", action="store_true", help="print a JSON list")
    workflows = _verb(verbs, "install-workflows", "put our workflows into the workflow library, each once")
    workflows.add_argument("--root", help=_ROOT_HELP)
    _console_options(workflows)
    uninstall = _verb(verbs, "prepare-uninstall", "clear what stock InvokeAI could not read once the pack is gone")
    uninstall.add_argument("--root", help=_ROOT_HELP)
    uninstall.add_argument("--yes", action="store_true", help="do it without asking")
    return parser


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a whole number, got '{text}'") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number, got '{text}'") from error


def _add_demo(verbs: Any) -> None:
    about = "a prompt in, an MP4 out, with the toy model that ships with the pack"
    demo = _verb(verbs, "demo", about, epilog=_DEMO_EPILOG)
    demo.add_argument("--prompt", help="what should move, and how")
    demo.add_argument("--frames", type=_whole_number, help="frames of the clip")
    demo.add_argument("--seed", type=_whole_number, default=0, help="same seed, same clip (default %(default)s)")
    demo.add_argument("--steps", type=_whole_number, help="denoising steps")
    demo.add_argument("--guidance", type=_number, help="how strongly the prompt is followed")
    demo.add_argument("--fps", type=_whole_number, help="frames per second of the MP4")
    demo.add_argument("--scale", type=_whole_number, default=1, help="also write a copy enlarged N times, pixel by pixel")
    demo.add_argument("--out", default="outputs", help="folder for the clip (default ./%(default)s)")
    _console_options(demo)


def _add_run(verbs: Any) -> None:
    run = _verb(verbs, "run", "run a workflow or graph file without a browser", epilog=_RUN_EPILOG)
    run.add_argument("workflow", metavar="WORKFLOW.json")
    several: dict[str, Any] = {"action": "append", "default": []}
    run.add_argument("--set", metavar="NODE.FIELD=VALUE", help="fill an input; may be repeated", **several)
    run.add_argument("--root", help="InvokeAI root with installed models (default: INVOKEAI_ROOT, else a throwaway root)")
    run.add_argument("--model", metavar="PATH", help="install a model before the run; may be repeated", **several)
    run.add_argument("--out", help="folder for the results (default: the gallery of --root, else ./outputs)")
    _console_options(run)


def _verb(verbs: Any, name: str, text: str, **options: Any) -> argparse.ArgumentParser:
    sentence = text[0].upper() + text[1:] + "."
    form = argparse.RawDescriptionHelpFormatter
    parser = verbs.add_parser(name, help=text, description=sentence, formatter_class=form, **options)
    parser.set_defaults(verb=name)
    return parser


def _console_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--verbose", action="store_true", help="show InvokeAI's own log on stderr")


def _run_plain(arguments: argparse.Namespace) -> int:
    """Run a verb that prints by itself; what the person can correct is one line."""
    from invokeai_video_nodes.pipelines.errors import BadInput

    try:
        return _PLAIN_VERBS[arguments.verb](arguments)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def _run_with_console(arguments: argparse.Namespace) -> int:
    """Run a verb with stdout and stderr kept for us; every error is one line and an exit code."""
    from invokeai_video_nodes.commands.console import own_streams

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    signal.signal(signal.SIGTERM, _terminate)
    module, function = _CONSOLE_VERBS[arguments.verb]
    with own_streams(verbose=arguments.verbose, as_json=arguments.json) as console:
        try:
            verb = getattr(importlib.import_module(f"invokeai_video_nodes.commands.{module}"), function)
            return verb(arguments, console)
        except KeyboardInterrupt:
            console.error("interrupted; nothing unfinished was left behind", kind="interrupted")
            return INTERRUPTED
        except Exception as error:
            return _report_error(error, console)


def _report_error(error: Exception, console: Any) -> int:
    """One line that says what went wrong, the exit code for it, and the traceback into the log where it helps."""
    from invokeai_video_nodes.headless import NodeError, RunCanceled
    from invokeai_video_nodes.pipelines.errors import BadInput, OutputError

    if isinstance(error, BadInput):
        console.error(str(error), kind="bad_input")
        return BAD_INPUT
    if isinstance(error, NodeError):
        print(error.traceback, file=sys.stderr)
        bad_input = error.error_type == "BadInput"
        console.keep_log = not bad_input
        facts = {"kind": "node", "node_type": error.node_type, "node_id": error.node_id}
        console.error(str(error), **facts)
        return BAD_INPUT if bad_input else FAILED
    console.keep_log = True
    traceback.print_exc()
    expected = isinstance(error, OutputError | RunCanceled | FileNotFoundError)
    console.error(str(error) if expected else f"{type(error).__name__}: {error}", kind=type(error).__name__)
    return FAILED


def _terminate(*_: object) -> None:
    """A polite kill ends like Ctrl-C: the node is canceled and temporary files go."""
    raise KeyboardInterrupt


def _web(arguments: Sequence[str]) -> int:
    from invokeai_video_nodes.commands.web import web

    return web(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from invokeai_video_nodes.doctor import run_doctor

    return run_doctor(root=arguments.root, json=arguments.json)


def _prepare_uninstall(arguments: argparse.Namespace) -> int:
    from invokeai_video_nodes.prepare_uninstall import prepare_uninstall

    return prepare_uninstall(root=arguments.root, yes=arguments.yes)


_PLAIN_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "doctor": _doctor,
    "prepare-uninstall": _prepare_uninstall,
}
# verb -> module and function in commands/
_CONSOLE_VERBS = {
    "demo": ("demo", "demo"),
    "run": ("run", "run"),
    "install-workflows": ("install_workflows", "install_workflows"),
}

if __name__ == "__main__":
    sys.exit(main())
