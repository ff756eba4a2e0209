"""`invokeai-saas worker`: settings and options in, one slot per device, until SIGTERM; exit code 0 after an orderly end.

    checks (before anything is loaded) ─► names in the registry ─► template process ─► slots claim and work, beats say what they do
    SIGTERM: claim nothing more, finish what runs (SAAS_DRAIN_SECONDS) ─► a second one, or the end of that: give it back ─► 0

Light: neither torch nor InvokeAI. What runs graphs are the runner processes; what keeps their leases is this one, which nothing blocks.
"""

import difflib
import faulthandler
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from invokeai_saas.db.database import PostgresDatabase
from invokeai_saas.db.migrate import refuse_stale
from invokeai_saas.db.opening import MAY_BECOME, application_dsn, demand_connection, running_dsn
from invokeai_saas.errors import BadSettings, SaasError
from invokeai_saas.events.opening import open_bus
from invokeai_saas.jobs.holding import is_outage
from invokeai_saas.settings import Settings
from invokeai_saas.storage.opening import open_store
from invokeai_saas.wakeups.opening import wakeups_of
from invokeai_saas.workers import registry
from invokeai_saas.workers.gpus import Gpu, all_gpus
from invokeai_saas.workers.model_store import Where, models_folder, usable_keys
from invokeai_saas.workers.registry import TIERS, Instance
from invokeai_saas.workers.slot import BEAT_SECONDS, Device, Slot
from invokeai_saas.workers.template import Template, start_process

logger = logging.getLogger(__name__)
# A peer that vanished without a word is found out in half a minute; a firewall that forgot the connection says nothing at all.
KEEPALIVES = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30000}
# A process that is stopped, or swapped out, in the middle of a claim holds its user's turn: everybody else waits for that user.
IDLE_TRANSACTION_MS = 3000
OK, FAILED = 0, 1
LOOK_FOR_MODELS_SECONDS = 60.0
StartTemplate = Callable[[socket.socket], int | subprocess.Popen[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says; empty is everything that is there, and the basic tier."""

    tiers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    name: str | None = None
    models: Where = "shared"


class Supervisor:
    """See Crew in slot.py. `start_template` is another one in tests: a fork of a process that has InvokeAI already."""

    def __init__(self, settings: Settings, options: Options, *, start_template: StartTemplate = start_process) -> None:
        self.settings, self._start_template = settings, start_template
        self.leaving, self.at_once = Event(), Event()
        self.model_keys: frozenset[str] | None = None
        self.models = demand_models(options.models, settings)
        tiers, found = demand_tiers(options.tiers), demand_devices(options.devices)
        self.runners = len(found)
        owner = running_dsn(settings)
        demand_connection(owner, "DATABASE_URL")
        refuse_stale(owner)
        self.dsn = worker_dsn(application_dsn(settings, owner))
        demand_connection(self.dsn, "DATABASE_APP_URL" if settings.database_app_url else "DATABASE_URL", statement=MAY_BECOME)
        self._devices = [self._device(name, gpu, tiers, options.name) for name, gpu in found]
        self.database = PostgresDatabase(
            self.dsn,
            pool_size=2 + 2 * len(found),
            timeout_seconds=settings.db_timeout_seconds,
            statement_timeout_seconds=settings.statement_timeout_seconds,
            sharing=settings.sharing,
        )
        # Only waited for: nothing is enqueued here.
        self.wakeups = wakeups_of(settings, self.database)
        self._bus = open_bus(settings, self.database, others=True)
        self._store = open_store(settings)
        self._template: Template | None = None
        self._slots: list[Slot] = []
        self._leave_by = float("inf")
        self._said: list[Event] = []

    def run(self) -> int:
        """Serve until a signal, or until no device is left; returns the exit code. In the main thread."""
        self._look_for_models()
        self._slots = self._register()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.leave())
        try:
            self._template = Template(self._start_template)
            threads = [Thread(target=slot.run, name=f"slot-{slot.device.name}", daemon=True) for slot in self._slots]
            beats = Thread(target=self._beat, args=(threads,), name="worker-beats", daemon=True)
            for thread in (*threads, beats):
                thread.start()
            if self._bus is not None:
                self._bus.subscribe_wanted(self._look_at)
            while any(thread.is_alive() for thread in threads):
                self._look_after(self._template)
                threads[0].join(0.2) if threads[0].is_alive() else time.sleep(0.2)
            self._say_how_it_ends()
            beats.join()
        finally:
            if self._template is not None:
                self._template.stop()
            if self._bus is not None:
                self._bus.close()
            self.wakeups.close()
            self.database.close()
        logger.info("stopped")
        return FAILED if any(slot.taken_over for slot in self._slots) else OK

    def leave(self) -> None:
        """A signal: the first one drains, the next one gives back at once."""
        if self.leaving.is_set():
            self.at_once.set()
            return
        self._leave_by = time.monotonic() + self.settings.drain_seconds
        self.leaving.set()

    @property
    def ending(self) -> str | None:
        """What the registry says of the end; None before the first signal."""
        if not self.leaving.is_set():
            return None
        if self.at_once.is_set():
            return f"{registry.ENDING}, and gives back what it runs"
        return f"{registry.ENDING}, and may finish what it runs for {max(self._leave_by - time.monotonic(), 0.0):.0f} s more"

    def template(self) -> Template:
        """The one that lives now; a new one comes within a moment of the old one's end."""
        assert self._template is not None, "run() makes it"
        return self._template

    def _look_after(self, template: Template) -> None:
        if time.monotonic() > self._leave_by:
            self.at_once.set()
        self._say_how_it_ends()
        if not template.lives() and not self.leaving.is_set():
            logger.error("the process that runners are made from is gone, with all of them: a new one starts")
            self._template = Template(self._start_template)

    def _say_how_it_ends(self) -> None:
        """Once each. Not in the signal's handler: that may stand in the middle of another line."""
        if self.leaving.is_set() and self.leaving not in self._said:
            self._said.append(self.leaving)
            running = [(slot.device.instance.name, slot.attempt) for slot in self._slots]
            items = ", ".join(f"item {attempt.item_id} on {name}" for name, attempt in running if attempt is not None)
            finishes = f"it finishes what it runs within {self.settings.drain_seconds:g} s: {items}" if items else "it runs nothing"
            logger.warning("told to end: it claims nothing more, and %s", finishes)
        if self.at_once.is_set() and self.at_once not in self._said:
            self._said.append(self.at_once)
            logger.warning("it ends now: what it still runs goes back to the queue")

    def _register(self) -> list[Slot]:
        """Every device's name in the registry. Raises NameTaken before anything heavy is started."""
        slots: list[Slot] = []
        try:
            for device in self._devices:
                instance = replace(device.instance, model_keys=self.model_keys)
                slots.append(Slot(self, device, registry.register(self.database, instance)))
        except BaseException:
            for slot in slots:
                slot.withdraw()
            self.database.close()
            raise
        names = ", ".join(device.instance.name for device in self._devices)
        logger.info("worker %s for %s", names, " and ".join(self._devices[0].instance.tiers))
        return slots

    def _beat(self, threads: Sequence[Thread]) -> None:
        outage, looked_at = False, -LOOK_FOR_MODELS_SECONDS
        while any(thread.is_alive() for thread in threads):
            try:
                if time.monotonic() - looked_at >= LOOK_FOR_MODELS_SECONDS:
                    self._look_for_models()
                    looked_at = time.monotonic()
                for slot in self._slots:
                    slot.beat()
                outage = False
            except Exception as error:
                if not is_outage(error):
                    logger.exception("a heartbeat failed")
                elif not outage:
                    logger.warning("the database does not answer; heartbeats wait for it: %s", error)
                    outage = True
            # A drain that an administrator asks for is heard of within a beat; that this worker ends, others hear at once.
            if self.leaving.is_set():
                time.sleep(BEAT_SECONDS)
            else:
                self.leaving.wait(BEAT_SECONDS)

    def _look_at(self, items: frozenset[int] | None) -> None:
        """Somebody may have canceled these (None: any): the rows say so, now and not within two seconds."""
        for slot in self._slots:
            slot.look_now(items)

    def _look_for_models(self) -> None:
        """Models are installed and pushed while a worker runs."""
        try:
            self.model_keys = usable_keys(self.database, self._store, self.models, models_folder(self.settings))
        except (SaasError, OSError) as error:
            logger.warning("the models that this worker can run are those of before: %s", error)

    def _device(self, name: str, gpu: Gpu | None, tiers: tuple[str, ...], given: str | None) -> Device:
        host = f"{socket.gethostname()}:{os.getpid()}"
        instance = Instance(
            name=f"{given or host}/{name}",
            worker_id=f"{host}/{name}",
            tiers=tiers,
            device=name,
            gpu_name=None if gpu is None else gpu.name,
            memory_mb=None if gpu is None else gpu.memory_mb,
        )
        folder = (
            Path(self.settings.data_dir).absolute()
            / "workers"
            / f"{given or socket.gethostname()}-{name.replace(':', '-')}".replace("/", "-")
        )
        return Device(name, instance, folder, gpu)


def serve_worker(settings: Settings, options: Options) -> int:
    """The command's life."""
    supervisor = Supervisor(settings, options)
    # A library that crashes says where.
    faulthandler.enable()
    return supervisor.run()


def worker_dsn(dsn: str) -> str:
    """The address with what keeps a worker that stands still from holding up others: its locks fall before its lease does."""
    given = str(conninfo_to_dict(dsn).get("options") or "")
    return make_conninfo(dsn, **KEEPALIVES, options=f"{given} -c idle_in_transaction_session_timeout={IDLE_TRANSACTION_MS}".strip())


def demand_tiers(given: Sequence[str]) -> tuple[str, ...]:
    """Known tiers in their order, basic without any; raises BadSettings with the nearest."""
    for tier in given:
        if tier not in TIERS:
            raise BadSettings(f"--tier: expected one of {', '.join(TIERS)}, got {tier!r}{_nearest(tier, TIERS)}")
    return tuple(tier for tier in TIERS if tier in given) or TIERS[:1]


def demand_devices(given: Sequence[str]) -> list[tuple[str, Gpu | None]]:
    """Devices of this machine, all cards without any named; raises BadSettings with the nearest."""
    gpus: dict[str, Gpu | None] = {gpu.device: gpu for gpu in all_gpus()}
    if not given:
        if not gpus:
            raise BadSettings("--devices: expected a machine with an NVIDIA card, got none; --devices cpu works without, slowly")
        return list(gpus.items())
    known = [*gpus, "cpu", "mps"]
    for device in given:
        if device not in known:
            raise BadSettings(f"--devices: expected some of {', '.join(known)}, got {device!r}{_nearest(device, known)}")
    if len(set(given)) < len(given):
        raise BadSettings(f"--devices: expected each device once, got {', '.join(given)}")
    return [(device, gpus.get(device)) for device in given]


def demand_models(where: Where, settings: Settings) -> Where:
    """`where`, if it can be: raises BadSettings for a shared folder that is not mounted. One of this machine's own is made."""
    folder = models_folder(settings)
    if where != "shared":
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise BadSettings(f"--models shared: expected the server's models' folder at {folder}, got none: mount it, or use --models sync")
    return where


def _nearest(word: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; the nearest is {found[0]}" if found else ""
