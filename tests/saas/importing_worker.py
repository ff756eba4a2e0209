"""Run by test_import_runs.py in a process of its own: loads InvokeAI once, then forks an import per line of its input, to be killed.

A line is `dsn<TAB>folder of files<TAB>root<TAB>owner`; answers are `pid` and, when it ended, its exit status.
"""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from invokeai.app.services.shared.sqlite.sqlite_util import init_db  # noqa: E402, F401  (loads what an import needs)

from invokeai_saas.accounts.model import Accounts  # noqa: E402
from invokeai_saas.db.database import PostgresDatabase  # noqa: E402
from invokeai_saas.db.upstream_schema import upstream_migration_ids  # noqa: E402
from invokeai_saas.importing.run import import_root  # noqa: E402
from invokeai_saas.storage.disk import DiskStore  # noqa: E402
from invokeai_saas.storage.files import Files  # noqa: E402
from invokeai_saas.storage.signing import Signer  # noqa: E402


def run(dsn: str, folder: str, root: str, owner: str) -> None:
    database = PostgresDatabase(dsn, pool_size=2)
    store = DiskStore(Path(folder) / "files", Signer(b"s" * 32))
    store.check()
    report = import_root(Path(root), accounts=Accounts(database), files=Files(database, store), owner_email=owner, say=lambda line: None)
    os._exit(0 if report.complete else 3)


upstream_migration_ids()
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            run(*line.rstrip("\n").split("\t"))
        except BaseException as error:
            print(f"the import failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
