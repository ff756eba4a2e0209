"""Model records with absolute paths: the files stay where they are, and are said to be missing where they are."""

import json
from pathlib import Path

from invokeai_saas.importing.rows import Work, bring_rows
from invokeai_saas.importing.tables import MODELS, RELATIONSHIPS, Values


def bring_models(work: Work) -> None:
    """All records and which of them belong together."""
    bring_rows(work, MODELS, lambda values: _in_place(work, values))
    bring_rows(work, RELATIONSHIPS)


def _in_place(work: Work, values: Values) -> Values:
    """Paths in a root's records are relative to its models folder."""
    config = json.loads(values["config"])
    said = config.get("path")
    # Models of external providers have no file.
    if not isinstance(said, str) or not said or "://" in said:
        return values
    path = work.source.folders.models / said
    if not path.exists():
        work.report.notes.append(f"model {config.get('name')}: expected its file at {path}, there is none")
    elif not config.get("file_size"):
        # Databases of before 5.10 do not say; upstream's migration looks for the file in its own folder.
        config["file_size"] = _size(path)
    return values | {"config": json.dumps(config | {"path": str(path)})}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*"))
