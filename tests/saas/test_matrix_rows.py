"""The isolation matrix knows every operation of InvokeAI: a route without a row fails, and so does a row without a route."""

from saas.matrix import rows

from invokeai_saas.accounts.api import REPLACED
from invokeai_saas.closed.routes import upstream_routes


def served() -> set[tuple[str, str]]:
    replaced = {(method, f"/api{path}") for method, path in REPLACED}
    return {(method, path.replace(":path}", "}")) for (method, path), _ in upstream_routes()} - replaced


def test_every_route_of_invokeai_has_a_row():
    assert served() - set(rows()) == set()


def test_every_row_has_a_route():
    assert set(rows()) - served() == set()


def test_an_own_row_names_what_is_foreign():
    vague = [row for row, told in rows().items() if told.kind == "own" and not told.ids and "<" not in str(told.body)]

    assert vague == []
