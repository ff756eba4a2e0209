"""Fresh processes in which many threads translate their first statements at once; prints how many processes got one wrong.

argv: how many processes. Forked before the first translation, so that each meets the parser as an import leaves it.
"""

import os
import sys
import threading

from invokeai_saas.db import sqlite_dialect

THREADS = 12
# What one thread alone makes of them.
STATEMENTS = {
    "INSERT INTO boards (board_id, user_id) VALUES (?, ?)": "INSERT INTO boards (board_id, user_id) VALUES ($1, $2)",
    "SELECT count(*) FROM boards WHERE user_id = ?": "SELECT COUNT(*) FROM boards WHERE user_id = $1",
}


def translate_all() -> bool:
    """Whether every thread got every statement right."""
    sys.setswitchinterval(1e-6)
    start, wrong = threading.Barrier(THREADS), []

    def translate() -> None:
        start.wait()
        wrong.extend(sqlite for sqlite, postgres in STATEMENTS.items() if sqlite_dialect.translate(sqlite).sql != postgres)

    threads = [threading.Thread(target=translate) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return not wrong


def main() -> None:
    """Fork, translate, count."""
    wrong = 0
    for _ in range(int(sys.argv[1])):
        child = os.fork()
        if child == 0:
            os._exit(0 if translate_all() else 1)
        wrong += os.waitpid(child, 0)[1] != 0
    print(wrong)


if __name__ == "__main__":
    main()
