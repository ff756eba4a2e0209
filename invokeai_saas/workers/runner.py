"""One device's runner: a process with InvokeAI's services and its own cache of models, which works on what its supervisor hands it.

forked ─► sees its card only ─► database, files, services ─► Ready ─► Run ─► Done ─► Run ─► … ─► Quit, or the supervisor is gone
"""

import logging
import os
import socket
import sys
import tempfile
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import UUID

from invokeai_saas.accounts.model import Accounts
from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.events.opening import open_bus
from invokeai_saas.jobs.holding import is_outage
from invokeai_saas.jobs.lease import Capability
from invokeai_saas.storage.opening import open_files
from invokeai_saas.swaps.install import Parts, admission_of
from invokeai_saas.swaps.model_loading import UnchargedModelLoads
from invokeai_saas.workers.handed import HandedProcessor, HandedQueue
from invokeai_saas.workers.model_store import open_model_files
from invokeai_saas.workers.pipe import Broken, Done, Message, Pipe, Quit, Ready, Run, Stop
from invokeai_saas.workers.services import make_services
from invokeai_saas.workers.shared_meter import SharedMeter, open_memory
from invokeai_saas.workers.template import RunnerWish

if TYPE_CHECKING:
    from invokeai_saas.settings import Settings

logger = logging.getLogger(__name__)
# The thread that works, the one that listens, and what InvokeAI does beside.
POOL_SIZE = 4


class Runner:
    """The services of one device, and the pipe to who hands out the items."""

    def __init__(self, settings: "Settings", pipe: Pipe, memory: int, wish: RunnerWish) -> None:
        self._pipe, self._memory, self._lock = pipe, open_memory(memory), Lock()
        self._database = PostgresDatabase(
            wish.dsn,
            pool_size=POOL_SIZE,
            timeout_seconds=settings.db_timeout_seconds,
            statement_timeout_seconds=settings.statement_timeout_seconds,
            sharing=settings.sharing,
        )
        self._processor: HandedProcessor | None = None
        self._invoker = self._make_services(settings, wish)

    def _make_services(self, settings: "Settings", wish: RunnerWish) -> Any:
        files, self._bus = open_files(settings, self._database), open_bus(settings, self._database, others=True)
        models = open_model_files(settings, self._database, files.store) if wish.models == "sync" else None
        UnchargedModelLoads.model_files = models
        parts = Parts(
            database=self._database,
            files=files,
            accounts=Accounts(self._database),
            sharing=settings.sharing,
            metering=settings.metering,
            bus=self._bus,
        )

        def processor(session_runner: Any) -> HandedProcessor:
            self._processor = HandedProcessor(
                session_runner=session_runner,
                answer=self._say,
                new_meter=lambda item_id: SharedMeter(self._memory, item_id),
                stop_seconds=settings.stop_seconds,
                models=models,
            )
            return self._processor

        def queue(db: Any) -> HandedQueue:
            can = Capability(incarnation=UUID(wish.incarnation))
            return HandedQueue(self._database, worker_id=wish.worker_id, admission=admission_of(parts), can=can)

        others = {"DefaultSessionProcessor": processor, "SqliteSessionQueue": queue}
        return make_services(parts, folder=Path(wish.folder), device=_torch_device(wish), runners=wish.runners, others=others)

    def serve(self) -> None:
        """Listen until the supervisor says Quit or is gone."""
        self._say(Ready())
        try:
            while not isinstance(message := self._pipe.receive(), Quit):
                self._obey(message)
        except EOFError:
            # Its items are nobody's now; the reaper gives them to others.
            logger.error("the supervisor is gone: its runner ends")
            return
        self._invoker.stop()
        if self._bus is not None:
            self._bus.close()
        self._database.close()

    def _obey(self, message: Message) -> None:
        assert self._processor is not None, "make_services makes it"
        match message:
            case Run():
                self._processor.hand(message.attempt)
            case Stop():
                self._processor.stop_item(message.item_id, message.why)
            case _:
                logger.warning("a message that no runner knows: %s", type(message).__name__)

    def _say(self, message: Ready | Done) -> None:
        with self._lock:
            self._pipe.send(message)


def run_items(settings: "Settings", end: socket.socket, memory: int, wish: RunnerWish) -> None:
    """The life of a runner, right after the fork."""
    pipe = Pipe(end)
    try:
        _settle_in(wish)
        runner = Runner(settings, pipe, memory, wish)
    except Exception as error:
        logger.exception("the runner of %s cannot start", wish.device)
        pipe.send(Broken(f"{type(error).__name__}: {error}"[:500], is_outage(error)))
        return
    runner.serve()


def _settle_in(wish: RunnerWish) -> None:
    """See one card, and have a folder that nobody else empties or fills."""
    if wish.visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = wish.visible
    folder = Path(wish.folder)
    arriving = folder / "tmp"
    arriving.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(arriving.resolve())
    sys.stdin = open(os.devnull)  # noqa: SIM115 - to the end of the process


def _torch_device(wish: RunnerWish) -> str:
    """The name of the device here, where one card is visible."""
    return "cuda:0" if wish.device.startswith("cuda") and wish.visible is not None else wish.device
