"""Notes every statement of InvokeAI's services and which function sent it, into the file that SAAS_RECORD_STATEMENTS names."""

import atexit
import json
import os
import sys
from pathlib import Path

from invokeai_saas.db.cursor import Cursor


def record_if_asked() -> None:
    """Start noting when the environment asks for it; the file is written, and added to, when the process ends."""
    target = os.environ.get("SAAS_RECORD_STATEMENTS")
    if not target:
        return
    seen: dict[str, set[str]] = {}

    def noting(name: str):
        original = getattr(Cursor, name)

        def noted(self, sql, *args):
            code = sys._getframe(1).f_code
            source = code.co_filename.partition("site-packages/invokeai/")[2]
            if source:
                seen.setdefault(sql, set()).add(f"{source}::{code.co_qualname}")
            return original(self, sql, *args)

        return noted

    def write() -> None:
        path = Path(target)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for sql, callers in seen.items():
            known[sql] = sorted({*known.get(sql, ()), *callers})
        path.write_text(json.dumps(known), encoding="utf-8")

    for name in ("execute", "executemany"):
        setattr(Cursor, name, noting(name))
    atexit.register(write)
