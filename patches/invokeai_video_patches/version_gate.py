"""The InvokeAI versions that the patches were written against."""

import re

LOWEST = (6, 14, 2)
BELOW = (6, 15)
SUPPORTED = "6.14.2 or a later 6.14"


def installed_version() -> str:
    """Version of the installed InvokeAI, "none" where there is no distribution of that name."""
    from importlib import metadata

    try:
        return metadata.version("invokeai")
    except metadata.PackageNotFoundError:
        return "none"


def is_supported(version: str) -> bool:
    """True for 6.14.2 <= version < 6.15; pre-releases of 6.15 and anything unreadable are refused."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if match is None:
        return False
    numbers = tuple(int(part or 0) for part in match.groups())
    return LOWEST <= numbers < BELOW
