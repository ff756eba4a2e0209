"""A 3D VAE on the device, with tiles for the memory that is free, for encode and decode alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from invokeai.app.services.shared.invocation_context import InvocationContext
from invokeai.backend.model_manager.load.load_base import LoadedModel

from invokeai_video_nodes.nodes.compute import all_bytes, compute_device, free_bytes
from invokeai_video_nodes.nodes.progress import stops_when_canceled
from invokeai_video_nodes.pipelines.vae3d import TilePlan, plan_for, working_bytes


@contextmanager
def vae_in_tiles(
    context: InvocationContext, loaded: LoadedModel, shape: tuple[int, ...], *, doing: str, tile_frames: int = 0, tile_size: int = 0
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The VAE, and the options of `encode_video` and `decode_video` for latents of this shape: plan, device, stop, what is told.

    `doing` begins the progress message; `tile_frames` and `tile_size` set by hand what is not 0, see `plan_for`.
    """
    device = compute_device()
    # First ask for what would be best, so that InvokeAI moves other models away; then see what there is.
    wished = plan_for(loaded.model, shape, free_bytes=all_bytes(device), tile_frames=tile_frames, tile_size=tile_size)

    def on_tile(done: int, total: int) -> None:
        context.util.signal_progress(f"{doing} latent frame {done}/{total}", done / total)

    def on_shrink(at: int, before: TilePlan, after: TilePlan) -> None:
        context.logger.warning(f"Out of memory at latent frame {at}: going on with tiles of {after} instead of {before}.")

    needed = working_bytes(loaded.model, wished)
    with stops_when_canceled(context) as stop, loaded.model_on_device(working_mem_bytes=needed) as (_, vae):
        plan = plan_for(vae, shape, free_bytes=free_bytes(device), tile_frames=tile_frames, tile_size=tile_size)
        yield vae, {"plan": plan, "device": device, "stop": stop, "on_tile": on_tile, "on_shrink": on_shrink}
