"""A flat graph in, the sizes that its nodes will have out: exact where the graph says them, None where only the running graph knows.

An edge is followed as far as it carries a number that is written in the graph: integers, their sums, the size of a picture that another
node makes from numbers. Nothing here limits anything: gate does, and again before the node runs.
"""

from collections.abc import Callable

from invokeai_saas.plans.flatten import FlatGraph, FlatNode
from invokeai_saas.plans.nodes import BOXED, RULES, SAME_SIZE, Rule

Size = tuple[int | None, int | None]
# The size in pixels of a stored picture, or of what stored latents will become, by name.
ImageSize = Callable[[str], tuple[int, int] | None]
UNKNOWN: Size = (None, None)
# More than any limit: numbers end here, so that none is too long to be reckoned with.
BEYOND = 10**12
_SIDES = {"width": 0, "height": 1}


class Sizes:
    """Reads one flat graph; `image_size` and `latents_size` know what is stored (None for what they do not know)."""

    def __init__(self, flat: FlatGraph, image_size: ImageSize | None = None, latents_size: ImageSize | None = None) -> None:
        self._flat = flat
        self._stored = {"image_name": image_size, "latents_name": latents_size}
        self._known: dict[str, Size] = {}
        self._numbers: dict[tuple[str, str], int | float | None] = {}
        for path in flat.order:
            # In this order nothing is asked before it is known, however long the graph is.
            self.size(path)
            self._output(path, "value")

    def number(self, path: str, name: str) -> int | float | None:
        """The value of an input; None when it is not written in the graph."""
        feeds = self._flat.feeds(path, name)
        if feeds:
            return self._output(*feeds[0]) if len(feeds) == 1 else None
        value = self._flat.nodes[path].values.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
            return None
        return max(-BEYOND, min(value, BEYOND))

    def whole(self, path: str, name: str) -> int | None:
        """number(), cut to a whole one."""
        value = self.number(path, name)
        return int(value) if value is not None else None

    def given(self, path: str, name: str) -> bool:
        """Whether an input has a value or an edge."""
        return bool(self._flat.feeds(path, name)) or self._flat.nodes[path].values.get(name) is not None

    def size(self, path: str) -> Size:
        """(width, height) of what a node makes."""
        if path not in self._known:
            self._known[path] = self._made(self._flat.nodes[path])
        return self._known[path]

    def of_input(self, path: str, name: str) -> Size:
        """The size of the picture or latents that an input gets."""
        feeds = self._flat.feeds(path, name)
        if feeds:
            return self._size_through(*feeds[0]) if len(feeds) == 1 else UNKNOWN
        value = self._flat.nodes[path].values.get(name)
        for kind, size_of in self._stored.items():
            stored = getattr(value, kind, None)
            if stored and size_of is not None:
                return size_of(stored) or UNKNOWN
        return UNKNOWN

    def _made(self, node: FlatNode) -> Size:
        rule = RULES.get(node.type)
        if node.type == "svd_start_image" and (self._flat.feeds(node.path, "size") or node.values.get("size") != "own"):
            return UNKNOWN
        if node.type in BOXED:
            return self._boxed(node)
        if node.type in SAME_SIZE:
            return self.of_input(node.path, SAME_SIZE[node.type])
        return self.of_rule(node, rule) if rule is not None else UNKNOWN

    def of_rule(self, node: FlatNode, rule: Rule) -> Size:
        """As the rule says: its own numbers first, then the first input that has a size, times the factor."""
        own = tuple(self.whole(node.path, name) if name else None for name in (rule.width, rule.height))
        stated = [bool(name) and self.given(node.path, str(name)) for name in (rule.width, rule.height)]
        followed: Size = UNKNOWN
        if not all(stated):
            fed = next((name for name in rule.follows if self.given(node.path, name)), None)
            followed = self._scaled(node, rule, self.of_input(node.path, fed)) if fed else UNKNOWN
        width, height = (mine if is_stated else theirs for mine, is_stated, theirs in zip(own, stated, followed, strict=True))
        return width, height

    def _scaled(self, node: FlatNode, rule: Rule, size: Size) -> Size:
        factor = self.number(node.path, rule.factor) if isinstance(rule.factor, str) else rule.factor
        if factor is None:
            return UNKNOWN
        width, height = (None if side is None else min(int(side * factor), BEYOND) for side in size)
        return width, height

    def _boxed(self, node: FlatNode) -> Size:
        """Pictures whose edges are moved."""
        if node.type == "paste_image_into_bounding_box":
            return self.of_input(node.path, "target_image")
        if node.type == "crop_image_to_bounding_box":
            return self._box(node)
        if node.type == "merge_tiles_to_image":
            tiles = [] if self._flat.feeds(node.path, "tiles_with_images") else node.values.get("tiles_with_images") or []
            corners = [(each.tile.coords.right, each.tile.coords.bottom) for each in tiles]
            return (max(x for x, _ in corners), max(y for _, y in corners)) if corners else UNKNOWN
        if node.type == "img_pad_crop":
            image = self.of_input(node.path, "image")
            added = [self.whole(node.path, name) for name in ("left", "right", "top", "bottom")]
            if None in image or None in added:
                return UNKNOWN
            left, right, top, bottom = (each or 0 for each in added)
            return (image[0] or 0) + left + right, (image[1] or 0) + top + bottom
        below, above = (self.of_input(node.path, name) for name in ("base_image", "image"))
        at = [self.whole(node.path, name) for name in ("x", "y")]
        if None in (*below, *above, *at):
            return UNKNOWN
        width, height = (_pasted(b or 0, a or 0, o or 0) for b, a, o in zip(below, above, at, strict=True))
        return width, height

    def _box(self, node: FlatNode) -> Size:
        feeds = self._flat.feeds(node.path, "bounding_box")
        if len(feeds) == 1 and self._flat.nodes[feeds[0][0]].type == "bounding_box":
            sides = [self.whole(feeds[0][0], name) for name in ("x_min", "x_max", "y_min", "y_max")]
        else:
            box = None if feeds else node.values.get("bounding_box")
            sides = [getattr(box, name, None) for name in ("x_min", "x_max", "y_min", "y_max")]
        if None in sides:
            return UNKNOWN
        x_min, x_max, y_min, y_max = (side or 0 for side in sides)
        return x_max - x_min, y_max - y_min

    def _output(self, path: str, name: str) -> int | float | None:
        if (path, name) not in self._numbers:
            self._numbers[path, name] = self._found(path, name)
        return self._numbers[path, name]

    def _found(self, path: str, name: str) -> int | float | None:
        node = self._flat.nodes[path]
        if name in _SIDES and (node.type in RULES or node.type in SAME_SIZE or node.type in BOXED):
            return self.size(path)[_SIDES[name]]
        if node.type in ("integer", "float"):
            return self.number(path, "value")
        if node.type in ("add", "sub", "mul"):
            value = _reckoned(node.type, *(self.number(path, each) for each in ("a", "b")))
            return None if value is None or abs(value) >= BEYOND else value
        return None

    def _size_through(self, path: str, name: str) -> Size:
        """Of an output that is a picture or latents; a second output of a node may be another one than the first."""
        return self.size(path) if name in ("image", "latents", "noise") else UNKNOWN


def _pasted(below: int, above: int, at: int) -> int:
    return max(below, above + at) - min(0, at)


def _reckoned(operation: str, a: int | float | None, b: int | float | None) -> int | float | None:
    if a is None or b is None or BEYOND in (abs(a), abs(b)):
        return None
    return a + b if operation == "add" else a - b if operation == "sub" else a * b
