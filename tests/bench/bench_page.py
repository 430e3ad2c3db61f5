"""How long the operator's page takes with 64 participants and 100 models, and how large it is.

Every page is asked for over its own loopback port, warm, as a browser does. At most 300 ms each.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from harness import Bench, alternating

sys.path.insert(0, str(Path(__file__).parents[1]))
from server.page.conftest import Page, page_of
from server.page.crowded import MODELS, crowded_state

MOST_MS = 300
PATHS = ("/", "/people", "/rounds", f"/rounds/round-{MODELS:03d}", "/concepts", "/server")
TIMES = 7


def main() -> None:
    bench = Bench("page")
    with tempfile.TemporaryDirectory() as folder:
        state, journal = crowded_state(Path(folder))
        pages = page_of(state, journal)
        page: Page = next(pages)
        times = alternating({path: lambda path=path: page.get(path) for path in PATHS}, TIMES)
        for path, measured in times.items():
            bench.add_spread(f"page {path}", "time", [1000 * each for each in measured], "ms")
            bench.add(f"page {path}", "size", len(page.get(path).content) / 1000, "kB")
        next(pages, None)
        journal.close()
    bench.write()
    slow = [row.case for row in bench.rows if row.figure == "time" and row.value > MOST_MS]
    if slow:
        sys.exit(f"slower than {MOST_MS} ms: {', '.join(slow)}")


if __name__ == "__main__":
    main()
