"""Any picture -> the start image of a Stable Video Diffusion clip, in a size that the model can continue."""

from typing import Literal

from invokeai.app.invocations.baseinvocation import BaseInvocation, Classification, invocation
from invokeai.app.invocations.fields import ImageField, InputField, WithBoard, WithMetadata
from invokeai.app.invocations.primitives import ImageOutput
from invokeai.app.services.shared.invocation_context import InvocationContext

from invokeai_video_nodes.nodes.fields import CATEGORY, with_limits
from invokeai_video_nodes.nodes.svd_fields import RULE, SIZES
from invokeai_video_nodes.pipelines.svd.start_frame import Fit, fit_picture, ideal_size, trained_size

_OWN = "Only where Size is 'My own': {} of the clip in pixels, a multiple of 8."


@invocation(
    "svd_start_image",
    title="Start Image - SVD",
    tags=["video", "svd", "img2vid", "i2v", "resize"],
    category=CATEGORY,
    version="1.0.0",
    classification=Classification.Beta,
)
class SVDStartImageInvocation(BaseInvocation, WithMetadata, WithBoard):
    """Brings a picture to the size that the clip will have."""

    image: ImageField = InputField(description="The picture that the clip starts from.")
    size: Literal["ideal", "trained", "own"] = InputField(
        default="ideal",
        description="Ideal: as close to the picture's shape as the model does well. Trained: 1024x576, or 576x1024 for an upright "
        "picture, exactly as the model was trained. My own: the width and height below.",
        ui_choice_labels={"ideal": "Ideal", "trained": "As trained", "own": "My own"},
    )
    how: Fit = InputField(
        default="crop",
        description="What happens where the shapes differ: crop cuts the edges off, fit adds black bars, stretch distorts.",
        ui_choice_labels={"crop": "Crop", "fit": "Fit with bars", "stretch": "Stretch"},
        title="Resize",
    )
    width: int = with_limits(InputField(default=1024, description=_OWN.format("width")), **SIZES)
    height: int = with_limits(InputField(default=576, description=_OWN.format("height")), **SIZES)

    def invoke(self, context: InvocationContext) -> ImageOutput:
        record = context.images.get_dto(self.image.image_name)
        width, height = self._size(record.width, record.height)
        if (record.width, record.height) == (width, height):
            return ImageOutput.build(record)
        picture = fit_picture(context.images.get_pil(self.image.image_name), width=width, height=height, how=self.how)
        return ImageOutput.build(context.images.save(image=picture))

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the clip for a picture of this size. Raises BadInput for a size of one's own off the grid."""
        if self.size == "ideal":
            return ideal_size(width, height)
        if self.size == "trained":
            return trained_size(width, height)
        RULE.check_size("width", self.width)
        RULE.check_size("height", self.height)
        return self.width, self.height
