"""Interpreter start -> one import hook; everything else waits until InvokeAI is imported.

The wheel's `.pth` runs `install()` in every interpreter of the environment, so this module imports nothing but `sys` and
`os` and puts one finder in front of `sys.meta_path`. The finder answers only for the modules in `HOOKED`: it lets the other
finders find them, and runs our hook (`hooks.run`) right after the module has been executed. A hook never raises into InvokeAI.
"""

import os
import sys

KILL_SWITCH = "INVOKEAI_VIDEO_DISABLE"

HOOKED = frozenset(
    {
        "invokeai.backend.model_manager.taxonomy",
        "invokeai.backend.model_manager.configs.factory",
        "invokeai.backend.model_manager.load",
        "invokeai.backend.model_manager.starter_models",
        "invokeai.app.services.model_install.model_install_default",
        "invokeai.app.api.no_cache_staticfiles",
        "invokeai.app.invocations.load_custom_nodes",
    }
)


def disabled() -> bool:
    """True when the kill switch is set: `INVOKEAI_VIDEO_DISABLE=1` (anything but empty, 0, false, no)."""
    return os.environ.get(KILL_SWITCH, "").strip().lower() not in ("", "0", "false", "no")


class HookFinder:
    """A `sys.meta_path` finder that wraps the loader of the modules in `HOOKED` and of nothing else."""

    def find_spec(self, name, path=None, target=None):
        """Return the spec that the other finders give, with our loader around theirs; None for every other module."""
        if name not in HOOKED:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or isinstance(finder, HookFinder) or find is None:
                continue
            spec = find(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = HookLoader(spec.loader)
                return spec
        return None

    def invalidate_caches(self):
        """The other finders hold the caches."""


class HookLoader:
    """Executes a module with the loader it would have had, then runs our hook for it."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def create_module(self, spec):
        """Create the module as the inner loader does."""
        return self.inner.create_module(spec)

    def exec_module(self, module):
        """Execute the module, give it back its own loader (so that `inspect.getsource` works), and run the hook."""
        module.__spec__.loader = module.__loader__ = self.inner
        self.inner.exec_module(module)
        run_hook(module)


def run_hook(module):
    """Run the hook of one freshly executed module; a failure here leaves stock behaviour and one log line."""
    try:
        from invokeai_video_patches import hooks

        hooks.run(module)
    except Exception as error:  # a broken installation of ours must not break InvokeAI
        import logging

        logging.getLogger("InvokeAI").warning("invokeai-video: %s stays as it is: %s", module.__name__, error)


def install():
    """Put the finder first on `sys.meta_path`, once; nothing happens when the kill switch is set."""
    if disabled() or any(isinstance(finder, HookFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, HookFinder())
