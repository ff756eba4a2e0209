"""The process that runners are forked from: InvokeAI imported, nothing opened, no card touched. A new runner is there in a second, not in
twenty, and the runners of a machine share the memory of the imports.

    supervisor ── spawn (pipe's end, memory of the meter, what for) ──► template ── fork ──► runner
                   ◄─────────────── its number ──────────────────────┘

Dies with its supervisor, and its runners die with it (PR_SET_PDEATHSIG), also of SIGKILL. SIGTERM and SIGINT are the supervisor's matter:
service managers and terminals send them to every process of a group.
"""

import ctypes
import faulthandler
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from invokeai_saas.settings import Settings

_PR_SET_PDEATHSIG = 1
_LONGEST = 1 << 16
REAP_SECONDS = 2.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerWish:
    """What a runner is for. `visible` is CUDA_VISIBLE_DEVICES, None to leave it; `folder` is its own, for tensors and temporary files."""

    worker_id: str
    incarnation: str
    device: str
    visible: str | None
    folder: str
    dsn: str
    runners: int = 1
    models: str = "shared"


class Template:
    """The supervisor's side. Made in its main thread: what a template's death signal hangs on is the thread that started it."""

    def __init__(self, start: Callable[[socket.socket], int | subprocess.Popen[bytes]]) -> None:
        here, there = socket.socketpair()
        self._lock, self._socket = threading.Lock(), here
        started = start(there)
        self._process = started if isinstance(started, subprocess.Popen) else None
        self.pid = started.pid if isinstance(started, subprocess.Popen) else started
        there.close()

    def spawn(self, wish: RunnerWish, *, pipe: socket.socket, memory: int) -> int:
        """Fork a runner; returns its process number. Raises EOFError when the template is gone."""
        answer = self._ask({"spawn": asdict(wish)}, [pipe.fileno(), memory])
        pid = answer["pid"]
        assert isinstance(pid, int)
        return pid

    def status_of(self, pid: int) -> str:
        """How a runner whose pipe ended came to its end, in words."""
        try:
            code = self._ask({"reap": pid}, [])["code"]
        except EOFError:
            return "its template is gone"
        if code is None:
            return "it closed its pipe and did not end"
        assert isinstance(code, int)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def lives(self) -> bool:
        """Whether it still runs; also collects it if not."""
        if self._process is not None:
            return self._process.poll() is None
        try:
            return os.waitpid(self.pid, os.WNOHANG) == (0, 0)
        except ChildProcessError:
            return False

    def stop(self) -> None:
        """End it and, by that, every runner of it."""
        self._socket.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.lives()

    def _ask(self, question: dict[str, object], descriptors: list[int]) -> dict[str, object]:
        with self._lock:
            try:
                socket.send_fds(self._socket, [json.dumps(question).encode()], descriptors)
                answer = self._socket.recv(_LONGEST)
            except OSError as error:
                raise EOFError("the template is gone") from error
        if not answer:
            raise EOFError("the template is gone")
        given: dict[str, object] = json.loads(answer)
        return given


def start_process(there: socket.socket) -> subprocess.Popen[bytes]:
    """A template in an interpreter of its own."""
    there.set_inheritable(True)
    command = [sys.executable, "-m", "invokeai_saas.workers.template", str(there.fileno()), str(os.getpid())]
    # torch asks the driver and not CUDA whether there are cards: who opened CUDA cannot fork.
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    return subprocess.Popen(command, pass_fds=[there.fileno()], env=environment, stdin=subprocess.DEVNULL)


def die_with_parent(parent: int) -> None:
    """SIGKILL when the parent process ends, however it does. Only Linux has it; elsewhere the end of the pipe is what a runner notices."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def serve(there: socket.socket, run: Callable[[socket.socket, int, RunnerWish], None]) -> None:
    """Fork a runner for each wish, until the supervisor is gone."""
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(there, _LONGEST, 2)
        except OSError:
            return
        if not message:
            return
        question = json.loads(message)
        if "spawn" in question:
            pid = _fork(there, descriptors, RunnerWish(**question["spawn"]), run)
            answer: dict[str, Any] = {"pid": pid}
        else:
            answer = {"code": _reap(question["reap"])}
        there.sendall(json.dumps(answer).encode())


def _fork(there: socket.socket, descriptors: list[int], wish: RunnerWish, run: Callable[[socket.socket, int, RunnerWish], None]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_a_runner(parent, there, descriptors, wish, run)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


def _be_a_runner(
    parent: int, there: socket.socket, descriptors: list[int], wish: RunnerWish, run: Callable[[socket.socket, int, RunnerWish], None]
) -> NoReturn:
    code = 1
    try:
        die_with_parent(parent)
        there.close()
        run(socket.socket(fileno=descriptors[0]), descriptors[1], wish)
        code = 0
    except BaseException:
        logger.exception("the runner of %s ended by an error", wish.device)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # No exit functions of the template's, and no threads of libraries that never end.
        os._exit(code)


def _reap(pid: int) -> int | None:
    deadline = time.monotonic() + REAP_SECONDS
    while time.monotonic() < deadline:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def ignore_signals() -> None:
    """The supervisor decides when a runner ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def demand_forkable() -> None:
    """Raise RuntimeError when a child could not use the cards: somebody opened CUDA while InvokeAI was imported."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("expected that importing InvokeAI touches no GPU, got an open CUDA")


def preload(settings: "Settings") -> None:
    """Import what every runner needs."""
    from invokeai_saas.workers.services import import_everything

    import_everything(settings)
    demand_forkable()
    gc.collect()
    # What is there now stays for ever and is shared: a collection would copy every page that it looks at.
    gc.freeze()


def main() -> None:
    """argv: the socket's descriptor, the supervisor's process number."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    ignore_signals()
    # A driver that crashes says where.
    faulthandler.enable()
    from invokeai_saas.operating import logs
    from invokeai_saas.settings import load_settings

    settings = load_settings()
    logs.configure(settings)
    os.environ.setdefault("TQDM_DISABLE", "1")
    preload(settings)
    from invokeai_saas.workers.runner import run_items

    serve(socket.socket(fileno=descriptor), lambda pipe, memory, wish: run_items(settings, pipe, memory, wish))


if __name__ == "__main__":
    main()
