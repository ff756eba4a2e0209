"""The engine in this process: results, errors, cancellation, and what it refuses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from graphs import Graph, add, connect, text_to_video

if TYPE_CHECKING:
    from invokeai_video_nodes.headless import Engine


def sum_graph(**second: Any) -> Graph:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "first", "add", a=1, b=2)
    add(graph, "second", "div", **{"b": 1, **second})
    connect(graph, "first.value", "second.a")
    return graph


def test_outputs_are_listed_by_the_node_ids_of_the_graph(engine: Engine) -> None:
    result = engine.run(sum_graph())

    assert {name: output["value"] for name, output in result.outputs.items()} == {"first": 3, "second": 3}
    assert result.videos == result.images == []


def test_images_are_listed_once_and_intermediate_ones_are_not(engine: Engine) -> None:
    graph: Graph = {"nodes": {}, "edges": []}
    add(graph, "kept", "blank_image", width=64, height=64)
    add(graph, "passing", "blank_image", width=64, height=64, is_intermediate=True)
    add(graph, "again", "image")
    connect(graph, "kept.image", "again.image")

    images = engine.run(graph).images

    assert [path.parent for path in images] == [engine.root / "outputs" / "images"]


def test_a_failing_node_is_named_with_its_own_message(engine: Engine) -> None:
    from invokeai_video_nodes.headless import NodeError

    with pytest.raises(NodeError) as caught:
        engine.run(sum_graph(b=0))

    error = caught.value
    assert (error.node_type, error.node_id, error.error_type) == ("div", "second", "ZeroDivisionError")
    assert "division by zero" in error.message and "Traceback" in error.traceback


def test_a_graph_with_an_unknown_node_is_refused_before_it_is_queued(engine: Engine) -> None:
    with pytest.raises(ValueError, match="no_such_node"):
        engine.run({"nodes": {"a": {"id": "a", "type": "no_such_node"}}, "edges": []})


def test_a_model_keeps_its_key_when_it_is_installed_again(engine: Engine, tiny_folder: Path) -> None:
    assert engine.install(tiny_folder) == engine.install(str(tiny_folder))


def test_a_second_engine_in_one_process_is_refused(engine: Engine, tmp_path: Path) -> None:
    from invokeai_video_nodes.headless import Engine as Another

    with pytest.raises(RuntimeError, match="expected no other engine in this process"), Another(tmp_path / "other"):
        pass


def test_a_run_past_its_time_is_canceled(engine: Engine, tiny_model: dict[str, Any]) -> None:
    from invokeai_video_nodes.headless import RunCanceled

    graph = text_to_video(tiny_model, denoise={"steps": 1000, "num_frames": 64})
    started = time.monotonic()

    with pytest.raises(RunCanceled, match="within 2 s"):
        engine.run(graph, timeout=2)

    assert time.monotonic() - started < 120
    assert not engine.services.session_processor.get_status().is_processing


def test_an_error_in_the_caller_s_event_function_cancels_the_run_and_is_raised(engine: Engine, tiny_model: dict[str, Any]) -> None:
    def fail(event: Any) -> None:
        if getattr(event, "message", "").startswith("Denoising"):
            raise LookupError("ours")

    with pytest.raises(LookupError, match="ours"):
        engine.run(text_to_video(tiny_model, denoise={"steps": 500}), on_event=fail)

    assert engine.run(sum_graph()).outputs


def test_events_come_in_the_order_of_the_run(engine: Engine) -> None:
    names: list[str] = []

    engine.run(sum_graph(), on_event=lambda event: names.append(type(event).__event_name__))

    assert names[0] == "queue_item_status_changed" and names[-1] == "queue_item_status_changed"
    assert names.count("invocation_complete") == 2


def test_one_node_can_be_timed_outside_the_queue(engine: Engine, tiny_model: dict[str, Any]) -> None:
    from invokeai_video_nodes.nodes.denoise_z_image import ZImageVideoDenoiseInvocation

    outputs = engine.run(text_to_video(tiny_model)).outputs
    node = ZImageVideoDenoiseInvocation(
        id="timed",
        num_frames=8,
        width=64,
        height=64,
        steps=3,
        seed=1,
        transformer=outputs["model"]["transformer"],
        positive_conditioning=outputs["prompt"]["conditioning"],
    )

    latents = node.invoke(engine.context(node)).latents

    stored = engine.services.tensors
    assert stored.load(latents.latents_name).equal(stored.load(outputs["denoise"]["latents"]["latents_name"]))
