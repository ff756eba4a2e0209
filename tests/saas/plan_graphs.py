"""Graphs, workflows, models and plans for the tests of plans: small, in InvokeAI's own types."""

from collections.abc import Mapping
from typing import Any

from invokeai.app.services.session_queue.session_queue_common import Batch
from invokeai.app.services.shared.graph import Graph

from invokeai_saas.plans.batches import demands_of_batch
from invokeai_saas.plans.demands import Demands, Model
from invokeai_saas.plans.graph_demands import demands_of
from invokeai_video_nodes import register

register()

BASES = ("sd-1", "sdxl", "flux", "z-image", "qwen-image", "svd", "z-image-video", "hunyuan-video", "wan", "external", "any", "new-base")
# Keys as the installation knows them: the base of each is its name.
MODELS = {base: Model(key=base, name=f"the {base} model", base=base, type="main") for base in BASES}
MODELS |= {"motion": Model(key="motion", name="motion", base="sd-1", type="motion_module")}
MODELS |= {"flux-lora": Model(key="flux-lora", name="a lora", base="flux", type="lora")}
PICTURES = {"small": (512, 512), "large": (3000, 2000)}
RETURN = {"id": "return", "type": "workflow_return"}
EXPOSE = "saved_workflow_input::"


def model(key: str, base: str | None = None) -> dict[str, str]:
    """A model's identifier as a graph has it; its base may be a lie."""
    return {"key": key, "hash": "h", "name": "n", "base": base or MODELS[key].base if key in MODELS else "sd-1", "type": "main"}


def graph(*nodes: Mapping[str, Any], edges: tuple[str, ...] = ()) -> Graph:
    """Nodes, and edges like "noise.noise > denoise.noise"."""
    made: Graph = Graph.model_validate({"nodes": {node["id"]: dict(node) for node in nodes}, "edges": [_edge(each) for each in edges]})
    made.validate_self()
    return made


def batch(made: Graph, *groups: list[tuple[str, list[Any]]], runs: int = 1) -> Batch:
    """Each group zips its ("node.field", values); the groups are multiplied."""
    data = [[{"node_path": at.split(".")[0], "field_name": at.split(".")[1], "items": values} for at, values in group] for group in groups]
    return Batch.model_validate({"graph": made, "data": data or None, "runs": runs})


def workflow(*nodes: Mapping[str, Any], edges: tuple[str, ...] = (), exposed: tuple[str, ...] = ()) -> dict[str, Any]:
    """A saved workflow with a return node, in the editor's form."""
    drawn = [_drawn(node) for node in (*nodes, RETURN)]
    return {
        "nodes": drawn,
        "edges": [_drawn_edge(each) for each in edges],
        "exposedFields": [{"nodeId": at.split(".")[0], "fieldName": at.split(".")[1]} for at in exposed],
        "form": None,
    }


def read(made: Any, workflows: Mapping[str, Any] | None = None) -> Demands:
    """demands_of(), or demands_of_batch(), with what is stored here."""
    asked: dict[str, Any] = {"resolve_workflow": (workflows or {}).get, "model_base": MODELS.get, "image_size": PICTURES.get}
    return demands_of_batch(made, **asked) if isinstance(made, Batch) else demands_of(made, **asked)


def still(base: str = "sd-1", *, key: str | None = None, width: int = 512, height: int = 512, steps: int = 20) -> Graph:
    """A picture by noise and a UNet."""
    return graph(*still_nodes(base, key=key, width=width, height=height, steps=steps), edges=STILL_EDGES)


STILL_EDGES = ("loader.unet > denoise.unet", "noise.noise > denoise.noise", "denoise.latents > decode.latents")


def still_nodes(base: str, *, key: str | None = None, width: int = 512, height: int = 512, steps: int = 20) -> list[dict[str, Any]]:
    """The nodes of still()."""
    return [
        {"id": "loader", "type": "main_model_loader", "model": model(key or base, base)},
        {"id": "noise", "type": "noise", "width": width, "height": height},
        {"id": "denoise", "type": "denoise_latents", "steps": steps},
        {"id": "decode", "type": "l2i"},
    ]


def clip(family: str, *, frames: int = 16, width: int = 512, height: int = 512, steps: int = 20) -> Graph:
    """A clip of a family."""
    numbers = {"num_frames": frames, "width": width, "height": height, "steps": steps}
    if family == "animatediff":
        nodes = (
            {"id": "main", "type": "main_model_loader", "model": model("sd-1")},
            {"id": "loader", "type": "animatediff_model_loader", "motion_module": model("motion", "sd-1")},
            {"id": "denoise", "type": "animatediff_denoise", **numbers},
        )
        return graph(*nodes, edges=("main.unet > loader.unet", "loader.model > denoise.model"))
    if family == "svd":
        loader = {"id": "loader", "type": "svd_model_loader", "model": model("svd")}
        sized = {"id": "start", "type": "img_resize", "width": width, "height": height, "image": {"image_name": "small"}}
        denoise = {"id": "denoise", "type": "svd_denoise", "num_frames": frames, "steps": steps}
        return graph(loader, sized, denoise, edges=("loader.model > denoise.model", "start.image > denoise.image"))
    prefix = family.replace("-", "_")
    node = "wan_video_denoise" if family == "wan" else f"{prefix}_denoise"
    loader = {"id": "loader", "type": f"{prefix}_model_loader", "model": model(family)}
    return graph(loader, {"id": "denoise", "type": node, **numbers}, edges=("loader.transformer > denoise.transformer",))


def _edge(text: str) -> dict[str, dict[str, str]]:
    (from_node, from_field), (to_node, to_field) = (side.split(".", 1) for side in text.split(" > "))
    return {"source": {"node_id": from_node, "field": from_field}, "destination": {"node_id": to_node, "field": to_field}}


def _drawn(node: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {name: {"name": name, "label": "", "value": value} for name, value in node.items() if name not in ("id", "type")}
    return {"id": node["id"], "type": "invocation", "data": {"id": node["id"], "type": node["type"], "inputs": inputs}}


def _drawn_edge(text: str) -> dict[str, str]:
    edge = _edge(text)
    return {
        "id": text,
        "type": "default",
        "source": edge["source"]["node_id"],
        "sourceHandle": edge["source"]["field"],
        "target": edge["destination"]["node_id"],
        "targetHandle": edge["destination"]["field"],
    }
