"""A real store that is away now and then, as S3 is for a while."""

import random
from collections.abc import Iterable
from pathlib import Path

from saas.stores import SIGNING_SECRET

from invokeai_saas.storage.disk import DiskStore
from invokeai_saas.storage.errors import StorageUnavailable
from invokeai_saas.storage.signing import Signer


class Unsteady(DiskStore):
    """A disk that is away for the next `away` calls, or fails every call with a chance."""

    def __init__(self, folder: Path, *, chance: float = 0.0, seed: int = 0) -> None:
        super().__init__(folder / "files", Signer(SIGNING_SECRET))
        self.away, self._chance, self._rng = 0, chance, random.Random(seed)
        self.check()

    def _answer(self) -> None:
        if self.away > 0 or self._rng.random() < self._chance:
            self.away = max(0, self.away - 1)
            raise StorageUnavailable("away")

    def put(self, key: str, data: bytes, content_type: str) -> None:
        self._answer()
        super().put(key, data, content_type)

    def delete(self, keys: Iterable[str]) -> None:
        self._answer()
        super().delete(keys)
