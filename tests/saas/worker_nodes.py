"""A node of the tests' workers that does what its script says, in order, as a denoise node would: in steps that look whether to stop.

    sleep S    work for so many seconds            hold S     the same, with Python's lock in hand: nothing else of the process runs
    load S     load a model for so long            save       a picture into the gallery
    until F    work until there is a file F                       touch F    make the file F
    steps N    N steps of 50 ms, each told with a preview
    die        SIGKILL to the own process          raise TYPE MESSAGE      fail; TYPE is a class of faults below, or of Python's
"""

import builtins
import ctypes
import os
import signal
import time
from pathlib import Path

from invokeai.app.invocations.baseinvocation import BaseInvocation, InvocationContext, invocation
from invokeai.app.invocations.fields import InputField
from invokeai.app.invocations.primitives import StringOutput
from invokeai.app.services.session_processor.session_processor_common import CanceledException
from PIL import Image

from invokeai_saas.jobs.metering import off_the_clock

STEP_SECONDS = 0.02


class AcceleratorError(RuntimeError):
    """As torch's."""


@invocation("saas_test_work", title="Work", version="1.0.0", use_cache=False)
class WorkInvocation(BaseInvocation):
    """Does what `script` says."""

    script: str = InputField(default="", description="Lines of the tests' language")

    def invoke(self, context: InvocationContext) -> StringOutput:
        for line in self.script.split(";"):
            word, _, rest = line.strip().partition(" ")
            _do(context, word, rest)
        return StringOutput(value="done")


def _do(context: InvocationContext, word: str, rest: str) -> None:
    match word:
        case "sleep":
            _sleep(context, float(rest))
        case "load":
            with off_the_clock():
                _sleep(context, float(rest))
        case "hold":
            # Through PyDLL the lock stays with the caller.
            ctypes.PyDLL(None).usleep(int(float(rest) * 1e6))
        case "until":
            while not Path(rest).exists():
                _sleep(context, STEP_SECONDS)
        case "touch":
            Path(rest).touch()
        case "steps":
            for step in range(1, int(rest) + 1):
                _sleep(context, 0.05)
                context.util.signal_progress(f"Denoising step {step}/{rest}", step / int(rest), Image.new("RGB", (64, 64), (step, 30, 200)))
        case "save":
            context.images.save(Image.new("RGB", (16, 16), (200, 30, 30)))
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            kind, _, message = rest.partition(" ")
            error = getattr(builtins, kind, None) or globals().get(kind) or type(kind, (RuntimeError,), {})
            raise error(message)
        case _:
            raise ValueError(f"no such word: {word!r}")


def _sleep(context: InvocationContext, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if context.util.is_canceled():
            raise CanceledException
        time.sleep(STEP_SECONDS)
