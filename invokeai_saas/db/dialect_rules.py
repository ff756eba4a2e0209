"""A parsed SQLite statement in, the same statement as Postgres means it out: one function per difference, applied in order.

Boolean columns are integers 0/1 on both sides (upstream_schema.py), so that rows, sums and comparisons stay as upstream wrote them.
"""

from collections.abc import Callable, Iterator

from sqlglot import exp

ONE, MANY = "p", "many"
# Tables whose key upstream reads back through cursor.lastrowid.
ROW_IDS = {"session_queue": "item_id", "image_subfolder_move_jobs": "id"}
NOW, NOW_SECONDS, JSON_EXTRACT = "sqlite_now", "sqlite_now_seconds", "json_extract"

_STATEMENTS = (exp.Select, exp.SetOperation, exp.Insert, exp.Update, exp.Delete)
# Functions that mean the same on both sides, and those that a rule below rewrites.
_SAME: tuple[type[exp.Expr], ...] = (
    *(
        exp.Count,
        exp.Sum,
        exp.Avg,
        exp.Max,
        exp.Min,
        exp.Coalesce,
        exp.Nullif,
        exp.Cast,
        exp.Case,
        exp.If,
        exp.Exists,
        exp.And,
        exp.Or,
    ),
    *(exp.Lower, exp.Upper, exp.Length, exp.Trim, exp.Replace, exp.Abs, exp.RowNumber, exp.Rank, exp.DenseRank),
)
_REWRITTEN: tuple[type[exp.Expr], ...] = (
    *(exp.Date, exp.TimeToStr, exp.TsOrDsToTimestamp, exp.CurrentTimestamp, exp.StrPosition),
    *(exp.JSONExtract, exp.JSONExtractScalar, exp.Collate),
)
_KNOWN_FUNCTIONS = (*_SAME, *_REWRITTEN)
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Sum)
_NOW_FORMATS = {"%Y-%m-%d %H:%M:%f": NOW, "%Y-%m-%d %H:%M:%S": NOW_SECONDS}


class NoRule(Exception):
    """The statement holds something that no rule covers; the message names it."""


def apply(tree: exp.Expr) -> tuple[exp.Expr, bool]:
    """All rules in order; returns the statement and whether RETURNING was added for lastrowid."""
    refuse_unknown(tree)
    for rule in _RULES:
        rule(tree)
    tree = distinct_before_order(tree).transform(_limits)
    return tree, return_row_id(tree)


def refuse_unknown(tree: exp.Expr) -> None:
    """Only the statements and functions that the rules were written for."""
    if not isinstance(tree, _STATEMENTS):
        raise NoRule(f"statement {type(tree).__name__}")
    for node in tree.walk():
        if isinstance(node, exp.Anonymous):
            raise NoRule(f"function {node.name}")
        if isinstance(node, exp.Func) and not isinstance(node, (*_KNOWN_FUNCTIONS, exp.Predicate)):
            raise NoRule(f"function {node.sql_name()}")
        if isinstance(node, exp.Glob | exp.RegexpLike):
            raise NoRule(f"operator {type(node).__name__}")
        if isinstance(node, exp.Column) and node.name.lower() in {"rowid", "oid", "_rowid_"}:
            raise NoRule("the hidden column rowid")


def insert_or_ignore(tree: exp.Expr) -> None:
    """INSERT OR IGNORE -> ON CONFLICT DO NOTHING."""
    for insert in tree.find_all(exp.Insert):
        alternative = insert.args.get("alternative")
        if alternative is None:
            continue
        if str(alternative).upper() != "IGNORE":
            raise NoRule(f"INSERT OR {alternative}")
        insert.set("alternative", None)
        insert.set("conflict", exp.OnConflict(action=exp.Var(this="DO NOTHING")))


def null_row_ids(tree: exp.Expr) -> None:
    """A NULL for a numbered key means "the next number" in SQLite."""
    for insert in tree.find_all(exp.Insert):
        schema, values = insert.this, insert.expression
        key = ROW_IDS.get(schema.this.name.lower()) if isinstance(schema, exp.Schema) else None
        names = [column.name.lower() for column in schema.expressions] if key else []
        if key not in names or not isinstance(values, exp.Values):
            continue
        sequence = exp.Literal.string(f"{schema.this.name.lower()}_{key}_seq")
        for row in values.expressions:
            given = row.expressions[names.index(str(key))]
            number = exp.Cast(this=given.copy(), to=exp.DataType.build("bigint"))
            given.replace(exp.Coalesce(this=number, expressions=[exp.Anonymous(this="nextval", expressions=[sequence.copy()])]))


def plain_conflict_keys(tree: exp.Expr) -> None:
    """ON CONFLICT (x): the parser reads keys as ordered columns and would write NULLS FIRST."""
    for conflict in tree.find_all(exp.OnConflict):
        keys = conflict.args.get("conflict_keys") or []
        conflict.set("conflict_keys", [key.this if isinstance(key, exp.Ordered) else key for key in keys])


def double_quoted_text(tree: exp.Expr) -> None:
    """`type = "default"`: SQLite takes a quoted name that is no column for text. Upstream quotes no column names."""
    for column in list(tree.find_all(exp.Column)):
        compared = isinstance(column.parent, exp.EQ | exp.NEQ) and column.arg_key == "expression"
        listed = isinstance(column.parent, exp.In) and column.arg_key == "expressions"
        if (compared or listed) and not column.table and isinstance(column.this, exp.Identifier) and column.this.quoted:
            column.replace(exp.Literal.string(column.name))


def booleans_are_integers(tree: exp.Expr) -> None:
    """TRUE and FALSE -> 1 and 0."""
    for literal in list(tree.find_all(exp.Boolean)):
        literal.replace(exp.Literal.number(1 if literal.this else 0))


def values_as_conditions(tree: exp.Expr) -> None:
    """`WHERE flag` -> `WHERE flag <> 0`."""
    for node in list(_conditions(tree)):
        if not isinstance(node, exp.Predicate | exp.Connector | exp.Not | exp.Paren | exp.Escape):
            node.replace(exp.NEQ(this=node.copy(), expression=exp.Literal.number(0)))


def _conditions(tree: exp.Expr) -> Iterator[exp.Expr]:
    for node in tree.walk():
        if isinstance(node, exp.Where | exp.Having | exp.Not | exp.If):
            yield node.this
        elif isinstance(node, exp.Connector):
            yield from (node.this, node.expression)
        elif isinstance(node, exp.Join) and node.args.get("on"):
            yield node.args["on"]
        elif isinstance(node, exp.Paren) and isinstance(node.parent, exp.Where | exp.Having | exp.Not | exp.Connector):
            yield node.this


def conditions_as_values(tree: exp.Expr) -> None:
    """`(a > 0) + (b > 0)` and SUM(a = b): SQLite counts a truth as 1."""
    for predicate in list(tree.find_all(exp.Predicate)):
        node: exp.Expr = predicate
        while isinstance(node.parent, exp.Paren):
            node = node.parent
        if isinstance(node.parent, _ARITHMETIC):
            node.replace(exp.Cast(this=exp.Paren(this=predicate.copy()), to=exp.DataType.build("int")))


def like_without_case(tree: exp.Expr) -> None:
    """LIKE ignores ASCII case in SQLite and knows no escape character; ILIKE under collation C does the same."""
    for like in list(tree.find_all(exp.Like)):
        ilike = exp.ILike(this=like.this.copy(), expression=like.expression.copy())
        escaped = isinstance(like.parent, exp.Escape)
        like.replace(ilike if escaped else exp.Escape(this=ilike, expression=exp.Literal.string("")))


def nocase(tree: exp.Expr) -> None:
    """x COLLATE NOCASE -> LOWER(x)."""
    for collate in list(tree.find_all(exp.Collate)):
        if collate.expression.name.upper() != "NOCASE":
            raise NoRule(f"COLLATE {collate.expression.name}")
        collate.replace(exp.Lower(this=collate.this.copy()))


def json_extracts(tree: exp.Expr) -> None:
    """json_extract(text, path) -> our Postgres function of that name, which answers text as SQLite would print it."""
    for node in list(tree.find_all(exp.JSONExtract, exp.JSONExtractScalar)):
        path = exp.Literal.string(node.expression.sql(dialect="sqlite").strip("'"))
        call: exp.Expr = exp.Anonymous(this=JSON_EXTRACT, expressions=[node.this.copy(), path])
        if isinstance(node.parent, exp.Coalesce) and any(e.is_number for e in node.parent.expressions):
            call = exp.Cast(this=call, to=exp.DataType.build("decimal"))
        node.replace(call)


def times(tree: exp.Expr) -> None:
    """Dates are text: STRFTIME(…, 'NOW'), CURRENT_TIMESTAMP -> functions that print them; DATE(x) -> its first 10 letters."""
    for node in list(tree.find_all(exp.TimeToStr)):
        moment, fmt = node.this, node.args["format"].name
        if moment.this.name.upper() != "NOW" or fmt not in _NOW_FORMATS:
            raise NoRule(f"STRFTIME('{fmt}', {moment.this.sql()})")
        node.replace(exp.Anonymous(this=_NOW_FORMATS[fmt], expressions=[]))
    for current in list(tree.find_all(exp.CurrentTimestamp)):
        current.replace(exp.Anonymous(this=NOW_SECONDS, expressions=[]))
    for date in list(tree.find_all(exp.Date)):
        if not isinstance(date.this, exp.Column):
            raise NoRule(f"DATE of {date.this.sql()}")
        date.replace(exp.Anonymous(this="left", expressions=[date.this.copy(), exp.Literal.number(10)]))


def join_with_condition(tree: exp.Expr) -> None:
    """CROSS JOIN … ON only pins the order in SQLite; Postgres orders joins itself."""
    for join in tree.find_all(exp.Join):
        if join.args.get("kind") == "CROSS" and join.args.get("on"):
            join.set("kind", None)


def derived_tables_have_names(tree: exp.Expr) -> None:
    """FROM (SELECT …) needs an alias before Postgres 16."""
    for number, subquery in enumerate(tree.find_all(exp.Subquery)):
        if isinstance(subquery.parent, exp.From | exp.Join) and not subquery.alias:
            subquery.set("alias", exp.TableAlias(this=exp.to_identifier(f"derived_{number}")))


def bare_columns_in_groups(tree: exp.Expr) -> None:
    """A column beside GROUP BY that is not in it: SQLite picks any row's value, MIN picks one and stays the same."""
    for select in tree.find_all(exp.Select):
        group = select.args.get("group")
        if group is None:
            continue
        keys = {key.sql() for key in group.expressions} | {key.name for key in group.expressions if isinstance(key, exp.Column)}
        for projection in select.expressions:
            inner = projection.unalias()
            if inner.sql() in keys or projection.alias_or_name in keys or not isinstance(inner, exp.Column) or inner.is_star:
                continue
            inner.replace(exp.alias_(exp.Min(this=inner.copy()), inner.name) if inner is projection else exp.Min(this=inner.copy()))


def grouped_values_in_subqueries(tree: exp.Expr) -> None:
    """A subquery beside GROUP BY f(x) that asks for f(x) of its group: MIN(f(x)) is that value, and Postgres accepts it."""
    for select in tree.find_all(exp.Select):
        group = select.args.get("group")
        keys = {key.sql() for key in group.expressions if not isinstance(key, exp.Column)} if group else set()
        inner = [node for projection in select.expressions for sub in projection.find_all(exp.Subquery) for node in sub.walk()]
        for node in inner if keys else ():
            if node.sql() in keys:
                node.replace(exp.Min(this=node.copy()))


def distinct_before_order(tree: exp.Expr) -> exp.Expr:
    """SELECT DISTINCT … ORDER BY LOWER(x): Postgres orders distinct rows by selected columns only, so sort around it."""
    if not isinstance(tree, exp.Select) or not tree.args.get("distinct") or not tree.args.get("order"):
        return tree
    outer = exp.Select(expressions=[exp.Star()])
    for part in ("order", "limit", "offset"):
        outer.set(part, tree.args.get(part))
        tree.set(part, None)
    for column in outer.find_all(exp.Column):
        column.set("table", None)
    return outer.from_(tree.subquery("derived_distinct"))


def arrays(tree: exp.Expr) -> None:
    """IN (…parameters…) -> = ANY($n); NOT IN -> <> ALL($n)."""
    for node in list(tree.find_all(exp.In)):
        items = node.expressions
        if len(items) != 1 or not isinstance(items[0], exp.Placeholder) or not items[0].name.startswith(MANY):
            continue
        negated = isinstance(node.parent, exp.Not)
        target = node.parent if negated else node
        array = items[0].copy()
        quantified = exp.All(this=exp.Paren(this=array)) if negated else exp.Any(this=exp.Paren(this=array))
        operator = exp.NEQ if negated else exp.EQ
        assert target is not None
        target.replace(operator(this=node.this.copy(), expression=quantified))


def number_parameters(tree: exp.Expr) -> None:
    """Placeholders carry their position in the source text; Postgres reads them by number wherever they stand."""
    for placeholder in list(tree.find_all(exp.Placeholder)):
        number = placeholder.name.removeprefix(MANY).removeprefix(ONE)
        placeholder.replace(exp.Parameter(this=exp.Literal.number(number)))


def _limits(node: exp.Expr) -> exp.Expr:
    """A negative LIMIT means none in SQLite, a negative OFFSET means 0."""
    if isinstance(node, exp.Limit | exp.Offset) and isinstance(node.expression, exp.Parameter):
        count = exp.Cast(this=node.expression.copy(), to=exp.DataType.build("bigint"))
        zero = exp.Literal.number(0)
        if isinstance(node, exp.Limit):
            kept: exp.Expr = exp.Case(ifs=[exp.If(this=exp.GTE(this=count, expression=zero), true=count.copy())])
        else:
            kept = exp.Greatest(this=count, expressions=[zero])
        node.set("expression", kept)
    return node


def return_row_id(tree: exp.Expr) -> bool:
    """INSERT into a table with a numbered key -> RETURNING that key, which is lastrowid."""
    if not isinstance(tree, exp.Insert) or tree.args.get("returning"):
        return False
    table = tree.find(exp.Table)
    key = ROW_IDS.get(table.name.lower()) if table is not None else None
    if key is None:
        return False
    tree.set("returning", exp.Returning(expressions=[exp.column(key)]))
    return True


_RULES: tuple[Callable[[exp.Expr], None], ...] = (
    insert_or_ignore,
    null_row_ids,
    plain_conflict_keys,
    double_quoted_text,
    booleans_are_integers,
    like_without_case,
    nocase,
    json_extracts,
    times,
    join_with_condition,
    derived_tables_have_names,
    bare_columns_in_groups,
    grouped_values_in_subqueries,
    arrays,
    number_parameters,
    conditions_as_values,
    values_as_conditions,
)
