"""A worker that fetches both models of model_folders.py, slowly, until it is killed: folder and seconds per piece are its arguments."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from saas.stores import SIGNING_SECRET  # noqa: E402

from invokeai_saas.storage.disk import DiskStore  # noqa: E402
from invokeai_saas.storage.signing import Signer  # noqa: E402
from invokeai_saas.workers.model_files import ModelFiles  # noqa: E402

PATHS = {"folder-key": "folder-key", "file-key": "file-key/model.safetensors"}


class Slow(DiskStore):
    """Gives a hundredth of what it has at a time."""

    def chunks(self, key: str, *, start: int = 0) -> Iterator[bytes]:
        for piece in super().chunks(key, start=start):
            for at in range(0, len(piece), 100_000):
                time.sleep(float(sys.argv[2]))
                yield piece[at : at + 100_000]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    files = ModelFiles(Slow(folder / "files", Signer(SIGNING_SECRET)), folder / "worker", records=lambda: PATHS, reserve_bytes=0)
    print("fetching", flush=True)
    for key, path in PATHS.items():
        files.ensure(key, path)
    time.sleep(60)
