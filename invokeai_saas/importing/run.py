"""The import as steps: users, models, pictures, videos, boards and what lies on them, workflows, presets, prompts, interface state."""

from collections.abc import Callable
from pathlib import Path

from invokeai_saas.accounts.model import Accounts
from invokeai_saas.db import tenancy
from invokeai_saas.importing import ledger, people, tables
from invokeai_saas.importing.media import bring_images, bring_pictures, bring_videos
from invokeai_saas.importing.models import bring_models
from invokeai_saas.importing.report import Report
from invokeai_saas.importing.rows import Work, bring_rows
from invokeai_saas.importing.source import Source, open_root
from invokeai_saas.storage.files import Files

QUEUE = "SELECT count(*) FROM session_queue"
WORKFLOW_IDS = "SELECT workflow_id AS id FROM workflow_library WHERE category <> 'default' ORDER BY rowid"
PRESET_IDS = "SELECT id FROM style_presets WHERE type <> 'default' ORDER BY rowid"
MODEL_IDS = "SELECT id FROM models ORDER BY rowid"
REASON = "an operator asks what an import would bring"


def import_root(
    root: Path, *, accounts: Accounts, files: Files, owner_email: str | None = None, say: Callable[[str], None] = print
) -> Report:
    """Bring a root over. Raises ImportRefused before anything is written; a later error leaves what was done to the next run."""
    report = Report(say)
    with open_root(root) as source:
        people.demand_owner(source, owner_email)
        owners = people.bring_users(source, accounts, report, owner_email)
        work, folders = Work(source, accounts.database, files, owners, report), source.folders
        bring_models(work)
        bring_images(work)
        bring_videos(work)
        for table in tables.PLAIN:
            bring_rows(work, table)
        bring_pictures(work, "workflow", tables.WORKFLOWS.kind, WORKFLOW_IDS, folders.workflow_pictures)
        bring_pictures(work, "style_preset", tables.PRESETS.kind, PRESET_IDS, folders.style_preset_pictures)
        bring_pictures(work, "model", tables.MODELS.kind, MODEL_IDS, folders.model_pictures)
        _say_what_stays(source, report)
    return report


def count_root(root: Path, *, accounts: Accounts, owner_email: str | None = None, say: Callable[[str], None] = print) -> Report:
    """What import_root() would look at; `there` is what any import brought before. Writes nothing."""
    report = Report(say, heading=("in the root", "brought yet", ""))
    with open_root(root) as source:
        people.demand_owner(source, owner_email)
        totals = {people.KIND: source.number("SELECT count(*) FROM users WHERE user_id <> 'system'")}
        for table in (tables.MODELS, tables.RELATIONSHIPS, tables.IMAGES, tables.VIDEOS, *tables.PLAIN):
            totals[table.kind] = source.number(table.total)
        with tenancy.as_system(REASON), accounts.database.postgres() as cursor:
            for kind, total in totals.items():
                report.of(kind).brought, report.of(kind).there = total, ledger.count(cursor, kind)
        report.of(tables.IMAGES.kind).bytes = _bytes(source.folders.images)
        report.of(tables.VIDEOS.kind).bytes = _bytes(source.folders.videos)
        _say_what_stays(source, report)
    return report


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _say_what_stays(source: Source, report: Report) -> None:
    if items := source.number(QUEUE):
        report.notes.append(f"{items} queue items stay in the root: jobs do not move between installations")
