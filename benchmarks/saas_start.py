"""How long a start takes: `invokeai-saas serve` against stock `invokeai-web` until the first page, and what a first start adds.

Pairs of starts on roots that were started before, in alternating order: prints the difference in seconds (bound: 3). Then first starts of
ours on empty folders: prints what is ours in them, the database made, migrated and the administrator in it (bound: 8).

    python benchmarks/saas_start.py [--pairs 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

from live_server import Server, make_environment  # noqa: E402
from saas.live_saas import SaasServer  # noqa: E402

WARM_BOUND, FIRST_BOUND = 3.0, 8.0


def stock_seconds(environment: Path, root: Path) -> float:
    """Until stock InvokeAI answers."""
    with Server(environment, root, variables={"INVOKEAI_MULTIUSER": "true"}) as server:
        return server.start_seconds


def our_seconds(folder: Path) -> float:
    """Until ours serves its page."""
    with SaasServer(folder) as server:
        return server.start_seconds


def own_share_seconds(folder: Path) -> float:
    """Database made, migrated, administrator made: the part of a first start that is not InvokeAI's."""
    from invokeai_saas.accounts.admin import ensure_admin
    from invokeai_saas.accounts.setup import accounts_of
    from invokeai_saas.db.embedded import stop_embedded
    from invokeai_saas.db.opening import open_database
    from invokeai_saas.settings import load_settings

    settings = load_settings(data_dir=folder)
    started = time.perf_counter()
    database = open_database(settings, migrate_first=True)
    ensure_admin(accounts_of(settings, database), "admin@localhost")
    seconds = time.perf_counter() - started
    database.close()
    stop_embedded(folder)
    return seconds


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory(prefix="saas-start-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        environment = make_environment(folder / "environment", wheel=None)
        # The first of each makes roots and database, and reads the libraries from the disk.
        stock_seconds(environment, folder / "stock")
        print(f"first start of ours, all of it: {our_seconds(folder / 'ours'):.1f} s", flush=True)
        differences = []
        for turn in range(pairs):
            ours = our_seconds(folder / "ours") if turn % 2 else 0.0
            stock = stock_seconds(environment, folder / "stock")
            ours = ours or our_seconds(folder / "ours")
            differences.append(ours - stock)
            print(f"warm: stock {stock:.1f} s, ours {ours:.1f} s, difference {ours - stock:+.1f} s (bound {WARM_BOUND})", flush=True)
        shares = [own_share_seconds(folder / f"first-{turn}") for turn in range(pairs)]
    warm, first = statistics.median(differences), statistics.median(shares)
    print(f"median difference {warm:+.1f} s (bound {WARM_BOUND}); own share of a first start {first:.1f} s (bound {FIRST_BOUND})")
    return 0 if warm <= WARM_BOUND and first <= FIRST_BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
