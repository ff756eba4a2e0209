"""Run by test_storage_crashes.py in a process of its own, to be killed: saves and deletes images and says what was done."""

import random
import sys
import uuid
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from saas.stored_rows import delete_row, save_image  # noqa: E402

from invokeai_saas.db import tenancy  # noqa: E402
from invokeai_saas.db.database import PostgresDatabase  # noqa: E402
from invokeai_saas.storage.disk import DiskStore  # noqa: E402
from invokeai_saas.storage.files import Files  # noqa: E402
from invokeai_saas.storage.signing import Signer  # noqa: E402

dsn, folder, seed = sys.argv[1:]
rng = random.Random(seed)
database = PostgresDatabase(dsn, pool_size=2)
files = Files(database, DiskStore(Path(folder) / "files", Signer(b"s" * 32)))
mine: list[str] = []
print("ready", "-", flush=True)
while True:
    if mine and rng.random() < 0.4:
        name = mine.pop(rng.randrange(len(mine)))
        print("deleting", name, flush=True)
        delete_row(database, "ann", name)
        with tenancy.as_user("ann"):
            files.purge("image", [name])
        print("deleted", name, flush=True)
    else:
        name = f"{uuid.uuid4()}.png"
        save_image(files, database, "ann", name, size=rng.randrange(1, 5000))
        mine.append(name)
        print("saved", name, flush=True)
