"""What a worker says before anything is loaded; and its small parts: tiers and devices, whose fault it was, the shared meter."""

import os
import subprocess
import sys
import traceback
from pathlib import Path

import psycopg
import pytest
from invokeai.app.services.image_records.image_records_common import ImageRecordSaveException

from invokeai_saas.cli import main
from invokeai_saas.errors import BadSettings
from invokeai_saas.settings import load_settings
from invokeai_saas.workers import faults
from invokeai_saas.workers.faults import InARow
from invokeai_saas.workers.shared_meter import MeterReader, SharedMeter, new_memory, open_memory
from invokeai_saas.workers.supervisor import demand_devices, demand_models, demand_tiers

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), ("basic",)),
        (("dedicated", "basic"), ("basic", "dedicated")),
        (("high_performance", "high_performance"), ("high_performance",)),
    ],
)
def test_tiers_come_in_their_order_and_without_any_it_is_the_basic_one(given, expected):
    assert demand_tiers(given) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tier", "basics"], "--tier: expected one of basic, high_performance, dedicated, got 'basics'; the nearest is basic"),
        (["--devices", "cuda"], "--devices: expected some of cpu, mps, got 'cuda'"),
        (["--devices", "cpu,cpu"], "--devices: expected each device once, got cpu, cpu"),
        ([], "--devices: expected a machine with an NVIDIA card, got none; --devices cpu works without, slowly"),
        (["--devices", "cpu"], "expected DATABASE_URL, or SAAS_DATA_DIR of a server that runs on this machine, got neither"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAAS_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setattr("invokeai_saas.workers.supervisor.all_gpus", list)
    (tmp_path / "invokeai" / "models").mkdir(parents=True)
    code = main(["worker", *arguments])

    assert code == 2
    assert words in capsys.readouterr().err


def test_a_shared_models_folder_that_is_not_mounted_is_refused_and_an_own_one_is_made(tmp_path):
    settings = load_settings(data_dir=tmp_path)
    with pytest.raises(BadSettings, match="--models shared: expected the server's models' folder at .*/models, got none"):
        demand_models("shared", settings)

    assert demand_models("sync", settings) == "sync"
    assert demand_models("shared", settings) == "shared"


def test_a_database_that_was_not_migrated_is_refused(cluster, tmp_path, monkeypatch, capsys):
    from saas.worker_fleet import as_address

    dsn = cluster.empty()
    monkeypatch.setenv("SAAS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", as_address(dsn))
    (tmp_path / "invokeai" / "models").mkdir(parents=True)
    code = main(["worker", "--devices", "cpu"])
    cluster.drop(dsn)

    assert code == 1
    assert "invokeai-saas migrate" in capsys.readouterr().err


def test_devices_are_those_of_the_machine(monkeypatch):
    from invokeai_saas.workers.gpus import Gpu

    cards = [Gpu(f"cuda:{number}", str(number), "H200", 143000) for number in range(2)]
    monkeypatch.setattr("invokeai_saas.workers.supervisor.all_gpus", lambda: cards)

    assert demand_devices(()) == [("cuda:0", cards[0]), ("cuda:1", cards[1])]
    assert demand_devices(("cuda:1", "cpu")) == [("cuda:1", cards[1]), ("cpu", None)]


def test_the_supervisor_imports_neither_torch_nor_invokeai():
    code = (
        "import invokeai_saas.workers.supervisor, sys; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'invokeai', 'diffusers', 'transformers')])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'patches'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error_type", "message", "why", "spoiled"),
    [
        ("OSError", "[Errno 28] No space left on device: '/x'", "the disk is full", False),
        ("AcceleratorError", "CUDA error: an illegal memory access was encountered", "the GPU failed", True),
        ("RuntimeError", "CUDA error: uncorrectable ECC error encountered", "the GPU failed", True),
        ("StorageUnavailable", "away", "the storage does not answer", False),
        ("ModelMissing", "model m has no files", "a model is missing", False),
        ("SafetensorError", "Error while deserializing header", "a model's files are damaged", False),
        ("MemoryError", "", "the machine's memory is full", False),
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 80 GiB", None, False),
        ("ValueError", "expected 16 frames, got 17", None, False),
        ("RuntimeError", "The size of tensor a (3) must match the size of tensor b (4)", None, False),
    ],
)
def test_whose_fault_an_error_is(error_type, message, why, spoiled):
    fault = faults.of(error_type, message)

    assert (fault is None) == (why is None)
    assert fault is None or (fault.why.startswith(str(why)), fault.spoiled, fault.counts) == (True, spoiled, True)


def test_a_database_that_is_away_is_no_workers_fault_in_particular():
    fault = faults.of("Unavailable", "expected a database connection within 10 s, got none")

    assert fault is not None
    assert not fault.counts


def test_what_a_service_of_invokeai_makes_of_a_deadlock_is_nobodys_fault():
    try:
        try:
            raise psycopg.errors.DeadlockDetected("deadlock detected")
        except psycopg.Error as error:
            raise ImageRecordSaveException from error
    except ImageRecordSaveException:
        fault = faults.of("ImageRecordSaveException", "Image record not saved", traceback.format_exc())

    assert fault is not None
    assert (fault.why, fault.counts) == ("the database was busy: Image record not saved", False)


def test_in_a_row_counts_items_once_and_starts_every_time_and_forgets_at_a_success():
    row = InARow(3)
    for item in (7, 7, 7, 8):
        row.failed(item, "ann")
    before = (row.count, row.is_too_many)
    row.did_not_start()
    after = (row.count, row.is_too_many)
    row.went_well()

    assert (before, after, row.count) == ((2, False), (3, True), 0)


def test_items_of_one_owner_alone_prove_less_than_those_of_two():
    row, of_two = InARow(3), InARow(3)
    for item in range(8):
        row.failed(item, "ann")
    alone = row.is_too_many
    row.failed(8, "ann")
    for item, owner in enumerate(("ann", "ann", "bob")):
        of_two.failed(item, owner)

    assert (alone, row.is_too_many, of_two.is_too_many) == (False, True, True)


@pytest.fixture
def meters():
    descriptor = new_memory()
    reader = MeterReader(descriptor)
    yield open_memory(descriptor), reader
    reader.close()
    os.close(descriptor)


def test_the_shared_meter_shows_seconds_of_a_node_that_runs_without_pauses(meters, monkeypatch):
    memory, reader = meters
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    reader.watch(7)
    nothing = reader.read()
    meter = SharedMeter(memory, 7)
    meter._clock = lambda: now[0]
    meter._since = now[0]
    meter.allow(5.0)
    meter.begin_node()
    now[0] = 103.0
    running = reader.read()
    with meter.paused():
        now[0] = 105.0
        paused = reader.read()
    now[0] = 106.0
    meter.end_node()
    now[0] = 110.0
    ended = reader.read()

    assert (nothing.seconds, nothing.limit_seconds) == (0.0, None)
    assert (running.seconds, running.worked_seconds, running.is_over) == (3.0, 3.0, False)
    assert (paused.seconds, paused.worked_seconds) == (3.0, 5.0)
    assert (ended.seconds, ended.worked_seconds, ended.is_over) == (4.0, 6.0, True)


def test_a_torn_record_and_another_items_are_not_believed(meters):
    memory, reader = meters
    reader.watch(7)
    meter = SharedMeter(memory, 7)
    meter.allow(2.5)
    before = reader.read()
    memory[5] = memory[5] ^ 0xFF
    torn = reader.read()
    meter.allow(3.5)
    reader.watch(8)

    assert (before.limit_seconds, torn.limit_seconds, reader.read().limit_seconds) == (2.5, 2.5, None)
