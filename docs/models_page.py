"""The starter models' rows -> docs/models.md.

    python -m docs.models_page

A test compares the page with the rows.
"""

from __future__ import annotations

from pathlib import Path

from invokeai_video_patches.starter_rows import BUNDLES, NOT_LICENSED_IN, ROWS, STABILITY, UPSTREAM_MEMBERS, Row, size_text

PAGE = Path(__file__).resolve().parent / "models.md"

_HEAD = """\
# Models

Model Manager → Starter Models offers all of these. A click installs a model and what it needs beside it; a bundle installs a set that
makes videos at once. This page is written by `python -m docs.models_page`.

*Download* is what comes over the wire. *At work* is what the transformer (or the UNet, the VAE, the text encoders) takes on the card
while it works; the clip needs room too. HunyuanVideo's text encoders (15 GB, of either generation) work before the transformer and are
gone by then. *Card* is the smallest on which the transformer stays in place. A smaller one works as well, slower: InvokeAI keeps in main
memory what does not fit.

A motion module works inside the UNet of a Stable Diffusion 1.5 model (1.7 GB at work), any that you have; ControlNets, IP-Adapters,
T2I-Adapters and LoRAs for it are among InvokeAI's own starter models. Where a repository offers a module in 16 bits too, InvokeAI takes
that on a GPU, and the download is half of what stands here.
"""
_BUNDLE_HEAD = "## Bundles\n\n| bundle | download | holds |\n|---|---|---|"
_MODEL_HEAD = (
    "## Models\n\n| model | what it does | download | at work | card | needs | licence | source |\n|---|---|---|---|---|---|---|---|"
)


def page() -> str:
    """The whole page."""
    bundles = "\n".join(_bundle_line(key, name) for key, name in BUNDLES.items())
    models = "\n".join(_model_line(row) for row in ROWS)
    return f"{_HEAD}\n{_BUNDLE_HEAD}\n{bundles}\n\n{_MODEL_HEAD}\n{models}\n\n{_licences()}"


def _bundle_line(key: str, name: str) -> str:
    members = [row for row in ROWS if key in row.bundles]
    download, held = size_text(sum(row.size_gb for row in members)), ", ".join(row.name for row in members)
    if upstream := UPSTREAM_MEMBERS.get(key):
        download, held = f"{download} and InvokeAI's own", ", ".join([held, *(f"`{source}`" for source in upstream)])
    return f"| *{name}* | {download} | {held} |"


def _model_line(row: Row) -> str:
    source = "in the pack" if row.in_package else f"`{row.source}`"
    cells = [
        f"*{row.name}*",
        row.description,
        size_text(row.size_gb),
        size_text(row.weights_gb),
        f"{row.card_gb} GB" if row.card_gb else "any",
        ", ".join(row.dependencies) or "nothing",
        row.licence,
        source,
    ]
    return f"| {' | '.join(cells)} |"


def _licences() -> str:
    lines = [f"- **{name}** does not apply in {nowhere}." for name, nowhere in NOT_LICENSED_IN.items() if nowhere]
    text = "\n".join(lines)
    return (
        f"## Licences\n\n{text}\n"
        "  It gives no right to use the model there. Its text lies in the repositories of the sources.\n"
        f"- **{STABILITY}**: free for research and private use; it sets conditions for commercial use. Its text lies in the repositories\n"
        "  of the sources.\n"
        "- The licences are the checkpoints' own. This pack is Apache-2.0 and brings none of their files.\n"
    )


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
