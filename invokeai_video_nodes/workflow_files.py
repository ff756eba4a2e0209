"""Where our workflow files lie, whichever way the pack was installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries them inside the package; a clone (editable install or nodes/ folder) has them beside it.
_FOLDERS = (_PACKAGE / "_workflows", _PACKAGE.parent / "workflows")


def workflow_files() -> list[Path]:
    """Every workflow JSON that ships with the pack, in name order.

    Raises FileNotFoundError when the installation is incomplete, naming both places.
    """
    for folder in _FOLDERS:
        files = sorted(folder.glob("*.json"))
        if files:
            return files
    looked = " or ".join(str(folder) for folder in _FOLDERS)
    raise FileNotFoundError(f"expected workflow files in {looked}, got none; install invokeai-video again")


def workflow_file(name: str) -> Path:
    """The shipped workflow whose file name without .json is `name`."""
    by_name = {path.stem: path for path in workflow_files()}
    if name not in by_name:
        raise FileNotFoundError(f"expected one of the workflows {', '.join(by_name)}, got '{name}'")
    return by_name[name]
