"""InvokeAI's workflow thumbnails over storage/. Those of the workflows that upstream ships stay files of its package."""

from pathlib import Path

from invokeai.app.services.invoker import Invoker
from invokeai.app.services.workflow_records.workflow_records_common import WorkflowCategory
from invokeai.app.services.workflow_thumbnails import workflow_thumbnails_disk
from invokeai.app.services.workflow_thumbnails.workflow_thumbnails_base import WorkflowThumbnailServiceBase
from invokeai.app.services.workflow_thumbnails.workflow_thumbnails_common import (
    WorkflowThumbnailFileDeleteException,
    WorkflowThumbnailFileNotFoundException,
    WorkflowThumbnailFileSaveException,
)
from invokeai.app.util.misc import uuid_string
from PIL.Image import Image as PILImageType

from invokeai_saas.storage.errors import BadName, ObjectMissing
from invokeai_saas.storage.files import Files
from invokeai_saas.swaps.pictures import Pictures

_SHIPPED = Path(workflow_thumbnails_disk.__file__).parent / "default_workflow_thumbnails"


class StoredWorkflowThumbnails(WorkflowThumbnailServiceBase):
    """A picture per workflow; a workflow that the caller may not see has none."""

    def __init__(self, files: Files) -> None:
        self._pictures = Pictures(files, "workflow")

    def start(self, invoker: Invoker) -> None:
        """Keeps the records at hand."""
        self._invoker = invoker

    def get_path(self, workflow_id: str, with_hash: bool = True) -> Path:
        """A local file, to read."""
        if (shipped := self._shipped(workflow_id)) is not None:
            return shipped
        try:
            return self._pictures.path(workflow_id)
        except (BadName, ObjectMissing) as error:
            raise WorkflowThumbnailFileNotFoundException(str(error)) from error

    def get_url(self, workflow_id: str, with_hash: bool = True) -> str | None:
        """The route's address, None without a picture. The random query keeps browsers from showing a replaced one."""
        shipped = self._shipped(workflow_id)
        if not (self._pictures.exists(workflow_id) if shipped is None else shipped.exists()):
            return None
        url: str = self._invoker.services.urls.get_workflow_thumbnail_url(workflow_id)
        return f"{url}?{uuid_string()}" if with_hash else url

    def save(self, workflow_id: str, image: PILImageType) -> None:
        """Store or replace the picture of the caller's own workflow."""
        try:
            self._pictures.save(workflow_id, image)
        except Exception as error:
            raise WorkflowThumbnailFileSaveException(f"Workflow thumbnail not saved: {error}") from error

    def delete(self, workflow_id: str) -> None:
        """Remove the picture."""
        try:
            self._pictures.delete(workflow_id)
        except (BadName, ObjectMissing) as error:
            raise WorkflowThumbnailFileNotFoundException(str(error)) from error
        except Exception as error:
            raise WorkflowThumbnailFileDeleteException(f"Workflow thumbnail not deleted: {error}") from error

    def _shipped(self, workflow_id: str) -> Path | None:
        workflow = self._invoker.services.workflow_records.get(workflow_id).workflow
        return _SHIPPED / f"{workflow_id}.png" if workflow.meta.category is WorkflowCategory.Default else None
