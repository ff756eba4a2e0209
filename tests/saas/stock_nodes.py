"""InvokeAI's and our nodes and routers as they are without us, and back to that afterwards: other tests share the process."""

from collections.abc import Iterator
from contextlib import contextmanager

import invokeai.app.services.shared.graph  # noqa: F401 upstream's nodes come first, ours second
from invokeai.app.invocations.baseinvocation import InvocationRegistry
from invokeai.app.services.config.config_default import get_config

from invokeai_saas.closed.routes import upstream_routes


@contextmanager
def nodes_put_back() -> Iterator[None]:
    """All nodes are registered inside; what was closed is open again afterwards."""
    from invokeai_video_nodes import register

    register()
    config, adapter = get_config(), InvocationRegistry.__dict__["get_invocation_typeadapter"]
    denied, classes = config.deny_nodes, set(InvocationRegistry._invocation_classes)
    methods = {cls: cls.__dict__.get("invoke") for cls in classes}
    try:
        yield
    finally:
        for cls, method in methods.items():
            if method is None and "invoke" in cls.__dict__:
                # Its parent's.
                del cls.invoke
            elif cls.__dict__.get("invoke") is not method:
                cls.invoke = method  # type: ignore[method-assign]
        config.deny_nodes = denied
        InvocationRegistry._invocation_classes = classes
        InvocationRegistry.get_invocation_typeadapter = adapter  # type: ignore[method-assign]
        InvocationRegistry.invalidate_invocation_typeadapter()


@contextmanager
def routes_put_back() -> Iterator[None]:
    """What was edited in InvokeAI's routers is as it was afterwards."""
    before = [(router, route, route.endpoint) for _row, (router, route) in upstream_routes()]
    lists = {id(router): (router, list(router.routes)) for router, _route, _endpoint in before}
    try:
        yield
    finally:
        for router, routes in lists.values():
            router.routes[:] = routes
        for _router, route, endpoint in before:
            route.endpoint = endpoint
