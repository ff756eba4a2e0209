"""InvokeAI moves image files between folders by date or type; ours are found by their rows and never move."""

from contextlib import AbstractContextManager, nullcontext


class NoImageMoves:
    """What the rest of InvokeAI asks its service of moves; the routes that start one are off."""

    def image_mutation_lock(self) -> AbstractContextManager[None]:
        """Nothing moves, so a delete waits for nobody."""
        return nullcontext()

    def is_maintenance_active(self) -> bool:
        """Never."""
        return False
