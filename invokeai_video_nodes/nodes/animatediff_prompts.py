"""Lines of "frame: prompt" -> conditionings of InvokeAI's own prompt node, each with the frame that it rules."""

from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.compel import CompelInvocation
from invokeai.app.invocations.fields import FieldDescriptions, Input, InputField, UIComponent
from invokeai.app.invocations.model import CLIPField
from invokeai.app.services.session_processor.session_processor_common import CanceledException
from invokeai.app.services.shared.invocation_context import InvocationContext

from invokeai_video_nodes.nodes.animatediff_fields import AnimateDiffPromptScheduleField, AnimateDiffPromptScheduleOutput
from invokeai_video_nodes.nodes.fields import CATEGORY, with_limits
from invokeai_video_nodes.pipelines.prompt_schedule import parse_schedule
from invokeai_video_nodes.pipelines.shapes import FRAME_RULES

RULE = FRAME_RULES["animatediff"]


@invocation(
    "animatediff_prompt_schedule",
    title="Prompt Schedule - AnimateDiff",
    tags=["video", "animatediff", "prompt", "travel", "schedule"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class AnimateDiffPromptScheduleInvocation(BaseInvocation):
    """Encodes prompts that take turns over a clip; between two of them the clip goes from one to the other."""

    prompts: str = InputField(
        default="0: spring\n8: autumn",
        description='One line for each prompt, "frame: prompt", in the order of the frames, counted from 0.',
        ui_component=UIComponent.Textarea,
    )
    before: str = InputField(
        default="", description="Text that is put in front of every prompt.", ui_component=UIComponent.Textarea, title="Text Before"
    )
    after: str = InputField(
        default="", description="Text that is put behind every prompt.", ui_component=UIComponent.Textarea, title="Text After"
    )
    num_frames: int = with_limits(
        InputField(default=16, description="How many frames the clip has, as in the denoise node (4 to 128)."),
        minimum=RULE.min_frames,
        maximum=RULE.max_frames,
    )
    loop: bool = InputField(default=False, description="The last prompt leads back to the first, for a clip that is repeated.")
    clip: CLIPField = InputField(description=FieldDescriptions.clip, input=Input.Connection, title="CLIP")

    def invoke(self, context: InvocationContext) -> AnimateDiffPromptScheduleOutput:
        RULE.check_frames(self.num_frames)
        schedule = parse_schedule(self.prompts, num_frames=self.num_frames)
        texts = [self._whole(scheduled.prompt) for scheduled in schedule]
        names = {text: self._encoded(context, text) for text in dict.fromkeys(texts)}
        field = AnimateDiffPromptScheduleField(
            conditioning_names=[names[text] for text in texts],
            frames=[scheduled.frame for scheduled in schedule],
            num_frames=self.num_frames,
            loop=self.loop,
        )
        return AnimateDiffPromptScheduleOutput(prompt_schedule=field, num_frames=self.num_frames)

    def _whole(self, prompt: str) -> str:
        return ", ".join(text for text in (self.before.strip(" ,"), prompt, self.after.strip(" ,")) if text)

    def _encoded(self, context: InvocationContext, prompt: str) -> str:
        """The name of the conditioning that InvokeAI's own prompt node stores: its syntax, textual inversions and LoRAs hold here."""
        if context.util.is_canceled():
            raise CanceledException
        output = CompelInvocation(id=self.id, prompt=prompt, clip=self.clip).invoke(context)
        return output.conditioning.conditioning_name
