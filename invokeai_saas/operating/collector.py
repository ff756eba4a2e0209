"""Python's cyclic collector beside a million objects that never go away: InvokeAI's modules, nodes and schemas.

    serve: pause() ─► imports, application, services ─► settle() ─► requests

Going through all of them again and again took a fifth of a start, and later held up every request for half a second at a time.
"""

import gc


def pause() -> None:
    """No collections until settle(): what a start makes stays."""
    gc.disable()


def settle() -> None:
    """Collect from here on, and never again look at what is there now. Some 50,000 objects of it are garbage, and not worth the second."""
    gc.freeze()
    gc.enable()
