"""The routes of files: a signed address of our own in, bytes out; videos, which S3 plays to the browser itself; a gallery's page by names.

Whoever asks was identified before (accounts/middleware.py), by the Bearer header or by the cookie that <img> and <video> send.
"""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, RedirectResponse
from invokeai.app.api.auth_dependencies import CurrentMediaUserOrDefault, CurrentUserOrDefault
from invokeai.app.api.routers import images, videos
from invokeai.app.services.images.images_common import ImageDTO

from invokeai_saas.accounts.errors import NotSignedIn
from invokeai_saas.db import tenancy
from invokeai_saas.storage.disk import DiskStore
from invokeai_saas.storage.errors import ObjectMissing
from invokeai_saas.storage.files import Files
from invokeai_saas.storage.keys import ObjectName

# InvokeAI's routes that these replace: (method, path under /api).
REPLACED = (
    ("GET", "/v1/videos/i/{video_name}/full"),
    ("HEAD", "/v1/videos/i/{video_name}/full"),
    ("POST", "/v1/images/images_by_names"),
)
PRIVATE = {"Cache-Control": "private, no-store"}

files_router = APIRouter(prefix="/v1", tags=["files"])


def files_of(request: Request) -> Files:
    """What the application was given."""
    files: Files = request.app.state.saas_files
    return files


@files_router.get("/stored/{key:path}", response_class=Response)
def read_stored(key: Annotated[str, PathParameter(max_length=1024)], request: Request) -> Response:
    """An object of the disk store by its signed address, with ranges; S3 has addresses of its own."""
    context, store = tenancy.current_or_none(), files_of(request).store
    if context is None or context.user_id is None:
        raise NotSignedIn
    if not isinstance(store, DiskStore):
        raise ObjectMissing("no such file")
    path: Path = store.local_path(store.signer.verify(key, request.query_params, asking_user_id=context.user_id))
    return FileResponse(path, headers=PRIVATE)


@files_router.get("/videos/i/{video_name}/full", operation_id="get_video_full", response_class=Response)
@files_router.head("/videos/i/{video_name}/full", operation_id="get_video_full_head", response_class=Response)
def play_video(request: Request, current_user: CurrentMediaUserOrDefault, video_name: str) -> Response:
    """The whole video or a range of it: from the disk through this server, from S3 by an address that expires."""
    files = files_of(request)
    if isinstance(files.store, DiskStore):
        return videos.get_video_full(request, current_user, video_name)
    try:
        # Asked of the database with the caller's rights: a foreign name and a missing one answer alike, and as InvokeAI's route does.
        address = files.signed_url(ObjectName("video", video_name))
    except ObjectMissing:
        raise ObjectMissing("Video not found") from None
    return RedirectResponse(address, headers=PRIVATE)


@files_router.post("/images/images_by_names", operation_id="get_images_by_names")
def get_images_by_names(
    current_user: CurrentUserOrDefault,
    image_names: Annotated[
        list[images.ImageName],
        Body(embed=True, max_length=images.MAX_IMAGE_BATCH_SIZE, description="Object containing list of image names to fetch DTOs for"),
    ],
) -> list[ImageDTO]:
    """The images of these names in their order. InvokeAI's asks four times per name, and passes over whatever goes wrong."""
    from invokeai.app.api.dependencies import ApiDependencies

    found: list[ImageDTO] = ApiDependencies.invoker.services.images.get_by_names(image_names)
    return found
