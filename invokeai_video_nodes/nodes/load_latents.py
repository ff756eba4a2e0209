"""The file that a failed decode left -> the clip's latents, from which a decode alone makes the video."""

from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import InputField
from invokeai.app.invocations.primitives import LatentsOutput
from invokeai.app.services.shared.invocation_context import InvocationContext

from invokeai_video_nodes.nodes.clip_latents import save_clip
from invokeai_video_nodes.nodes.fields import CATEGORY
from invokeai_video_nodes.nodes.kept_latents import load_kept


@invocation(
    "video_latents_load",
    title="Load Video Latents",
    tags=["video", "latents", "load", "decode"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class VideoLatentsLoadInvocation(BaseInvocation):
    """Brings back the latents of a clip whose decode failed, so that the denoising need not be done again."""

    name: str = InputField(
        description="The file that the failed decode named: clip-….safetensors, or its full path.", title="Latents File"
    )

    def invoke(self, context: InvocationContext) -> LatentsOutput:
        latents, facts = load_kept(self.name)
        return save_clip(context, latents, facts)
