"""InvokeAI's interface as an artist uses it: each method is one thing that a person does or sees."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from live_server import Server
from playwright.sync_api import Locator, Page, Response, TimeoutError, WebSocket, expect

TOY = "Toy Video"
# How long a page may take for one thing: the machine may be busy with other tests.
PATIENCE_MS = 180_000


class Interface:
    """The pages of one InvokeAI at `url`, with pictures into the folder `screenshots`."""

    def __init__(self, page: Page, url: str, screenshots: Path) -> None:
        self.page = page
        self.url = url
        self.screenshots = screenshots
        self.polling: list[tuple[int, str | None]] = []
        self.websockets: list[str] = []
        page.on("response", self._note_polling)
        self.progress: list[str] = []
        page.on("websocket", self._note_websocket)
        # It opens over the tabs once per version, some time after the page: on a busy machine after any wait that one would choose.
        page.add_locator_handler(page.get_by_role("dialog").filter(has_text="What's New in Invoke"), self._close)

    def _note_polling(self, response: Response) -> None:
        if "transport=polling" in response.url and response.request.method == "GET":
            self.polling.append((response.status, response.headers.get("content-encoding")))

    def _note_websocket(self, socket: WebSocket) -> None:
        self.websockets.append(socket.url)
        socket.on("framereceived", self._note_progress)

    def _note_progress(self, frame: str | bytes) -> None:
        if isinstance(frame, str) and '"invocation_progress"' in frame:
            self.progress.append(json.loads(frame[frame.index("[") :])[1]["message"])

    def picture(self, name: str) -> Path:
        """Save what the page shows now."""
        path = self.screenshots / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    @staticmethod
    def _close(news: Locator) -> None:
        news.get_by_role("button", name="Close").click()

    def open(self) -> None:
        """Load the page."""
        self.page.goto(self.url)
        self.page.get_by_test_id("Models").wait_for()

    def tab(self, name: str) -> None:
        """Go to one of the tabs at the left edge."""
        self.page.get_by_test_id(name).click()

    def panel(self, name: str) -> None:
        """Go to one of the panels in the middle: Launchpad, Workflow Editor, Viewer."""
        self.page.locator(".dv-tab", has_text=name).first.click()

    def starter_models(self) -> None:
        """Open the model manager's Starter Models."""
        self.tab("Models")
        self.page.get_by_role("tab", name="Starter Models").click()

    def search_starter_models(self, text: str) -> None:
        """Type into the search field above the starter models."""
        self.page.get_by_role("tabpanel").get_by_placeholder("Search").fill(text)

    def install_starter_model(self) -> None:
        """Click the one Install button that the search has left."""
        self.page.get_by_role("tabpanel").get_by_role("button", name="Install").last.click()

    def install_bundle(self, name: str) -> None:
        """Click a bundle and confirm."""
        self.page.get_by_role("tabpanel").get_by_role("button", name=name).click()
        self.page.get_by_role("alertdialog").get_by_role("button", name="Install").click()

    def filter_models(self, kind: str) -> None:
        """Choose a model type in the model manager's filter menu."""
        self.page.get_by_role("button", name="Filtering").click()
        self.page.get_by_role("menuitem", name="Model Type").hover()
        self.page.get_by_role("menuitem", name=kind, exact=True).click()
        self.page.keyboard.press("Escape")

    def model_list(self) -> str:
        """The text of the model manager's list."""
        return self.page.locator("body").inner_text().split("Add Model")[0]

    def wait_for_model(self, heading: str, name: str) -> None:
        """Wait until the list shows the heading and the model."""
        expect(self.page.get_by_text(heading, exact=True).first).to_be_visible()
        expect(self.page.get_by_text(name, exact=True).first).to_be_visible()

    def offered_main_models(self, tab: str) -> str:
        """What the main model picker of Generate or Canvas offers."""
        self.tab(tab)
        self.page.locator("[data-testid=generation-accordion]:visible").get_by_role("button").first.click()
        search = self.page.get_by_placeholder("Search").and_(self.page.locator("section input:visible")).first
        search.wait_for()
        offered = search.locator("xpath=ancestor::section[1]").inner_text()
        self.picture(f"models-of-{tab.lower()}")
        self.page.keyboard.press("Escape")
        return offered

    def load_workflow_file(self, path: Path) -> None:
        """Load a workflow from a file."""
        self.tab("Workflows")
        self.panel("Launchpad")
        with self.page.expect_file_chooser() as chosen:
            self.page.get_by_role("button", name="Load workflow from file").click()
        chosen.value.set_files(path)
        self._confirm_if_asked()

    def _confirm_if_asked(self) -> None:
        """Confirm that the workflow in the editor may go; nothing is asked where nothing would be lost."""
        question = self.page.get_by_role("alertdialog")
        try:
            question.wait_for(timeout=10_000)
        except TimeoutError:
            return
        question.get_by_role("button", name="Load", exact=True).click()
        question.wait_for(state="hidden")

    def node(self, node_id: str) -> Locator:
        """A node in the editor."""
        return self.page.locator(f'.react-flow__node[data-id="{node_id}"]')

    def show_all_nodes(self) -> None:
        """Open the editor and fit the graph into it."""
        self.panel("Workflow Editor")
        self.page.get_by_role("button", name="Fit View").click()
        self.page.wait_for_timeout(1_500)

    def pick_model(self, node_id: str, name: str) -> None:
        """Choose a model in the first picker of a node."""
        self.node(node_id).get_by_role("combobox").first.click(force=True)
        self.page.get_by_role("option", name=name).first.click()

    def form_field(self, target: str) -> Locator:
        """A field of the form at the left, by its "node.input"."""
        return self.page.locator("#node-field-{}-{}".format(*target.split(".")))

    def fill_form(self, **values: object) -> None:
        """Type into fields of the form, each by the words that stand above it; "_" stands for a space."""
        for label, value in values.items():
            field = self.page.get_by_label(label.replace("_", " "), exact=True)
            field.fill(str(value))
            field.press("Tab")

    def pick_model_in_form(self, target: str, name: str) -> None:
        """Choose a model in a picker of the form."""
        self.form_field(target).get_by_role("combobox").first.click(force=True)
        self.page.get_by_role("option", name=name).first.click()

    def save_workflow(self) -> None:
        """Save a workflow that is not in the library yet, under its own name."""
        self.page.get_by_role("button", name="Save Workflow").last.click()
        self.page.get_by_role("button", name="Save As").click()
        self.page.get_by_role("button", name="Save As").wait_for(state="hidden")

    def new_workflow(self) -> None:
        """Empty the editor."""
        self.page.get_by_role("button", name="Workflow Editor Menu").first.click()
        self.page.get_by_role("menuitem", name="New Workflow").first.click()
        self._confirm_if_asked()
        expect(self.page.locator(".react-flow__node")).to_have_count(0)

    def load_from_library(self, name: str) -> None:
        """Load one of the artist's own workflows."""
        self.page.get_by_role("button", name="Choose Workflow from Library").click()
        self.page.get_by_role("button", name="Your Workflows").click()
        self.page.get_by_role("dialog").get_by_text(name, exact=True).first.click()
        self._confirm_if_asked()

    def load_workflow_of_the_shown_video(self) -> None:
        """Click Load Workflow above the viewer."""
        self.page.get_by_role("button", name="Load Workflow", exact=True).last.click()
        self._confirm_if_asked()

    def play(self) -> dict[str, Any]:
        """Let the open clip run for a moment and return what the player says of itself."""
        # In a loop: the player closes itself at the end of a clip, on a slow machine before anybody has looked.
        self.page.wait_for_function(
            "() => { const v = document.querySelector('video'); if (v) v.loop = true; return v && v.currentTime > 0.4; }"
        )
        return self.page.evaluate(
            "() => { const v = document.querySelector('video');"
            " return {width: v.videoWidth, height: v.videoHeight, duration: v.duration, error: v.error && v.error.message}; }"
        )

    def wait_for_one_more(self, server: Server, before: dict[str, int], *, seconds: float) -> None:
        """Wait until one more queue item than `before` (of `server.queue()`) has ended; a failed one fails the test."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = server.queue()
            if status["total"] > before["total"] and status["pending"] == status["in_progress"] == 0:
                break
            self.page.wait_for_timeout(1_000)
        assert status["completed"] == before["completed"] + 1, server.get("/api/v1/queue/default/list_all")

    @property
    def invoke_button(self) -> Locator:
        """The big one."""
        return self.page.get_by_role("button", name="Invoke", exact=True)
