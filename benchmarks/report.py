"""Tables of ratios from the races of one run, in Markdown.

Every run ends with them; ``python benchmarks/report.py FILE`` prints those of a --benchmark-json.
"""

import itertools
import json
import statistics
import sys
from datetime import datetime
from pathlib import Path

from opponents import BOUNDS, LAYOUTS, OPPONENTS, SIDES

RESULTS = Path(__file__).parent / "results"


def save(text, kind):
    """Write ``text`` to a new file of :data:`RESULTS` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now():%Y-%m-%d-%H%M%S}-{kind}.md"
    path.write_text(text)
    return path


def render(races, machine):
    """All tables.

    Args:
        races: dicts of ``op``, ``task``, ``place``, ``row``, ``medians`` (name to seconds) and
            ``absent`` (who did not race, and why).
        machine: pytest-benchmark's machine_info, with imgfast's facts beside.
    """
    facts = machine["imgfast"]
    cpu = machine["cpu"].get("brand_raw", machine["machine"])
    title = f"{cpu}, torch {facts['torch']}, imgfast {facts['imgfast']}, ISA {facts['isa']}"
    note = "Median milliseconds; CL is channels_last; x is the opponent's time by imgfast's."

    tables = [_table(*table, members) for table, members in tables_of(races)]
    return "\n\n".join([f"{title}\n{note}", *tables]) + "\n"


def tables_of(races):
    """The races that share a table, in pairs of ``(op, task, place)`` and list."""

    def key(race):
        return race["op"], race["task"], race["place"]

    groups = itertools.groupby(sorted(races, key=key), key)
    return [(table, list(members)) for table, members in groups]


def heading(op, task, place):
    return f"{op}, {task}, {place}"


def best_ratio(medians, *opponents):
    """The time of the best of the opponents by that of the best of imgfast, and its name."""
    ours, _ = _best(medians, "imgfast")
    best, name = _best(medians, *(opponents or OPPONENTS))
    return best / ours, name


def _table(op, task, place, races):
    names = [side + suffix for side in SIDES for suffix in LAYOUTS]
    names = [n for n in names if any(n in race["medians"] for race in races)]
    more = any(not n.startswith(("imgfast", "eager")) for n in names)  # opponents than eager
    bounds = [n for n in BOUNDS if any(n in race["medians"] for race in races)]
    lines = [["row", *names, *bounds, *(["x eager"] if more else []), "x best", "best opponent"]]
    ratios = []
    for race in races:
        medians = race["medians"]
        best, opponent = best_ratio(medians)
        eager, _ = best_ratio(medians, "eager")
        ratios.append((best, eager, race["row"].partition(":")[0]))
        lines.append([
            race["row"],
            *(f"{1e3 * medians[n]:.3g}" if n in medians else "" for n in names + bounds),
            *([f"{eager:.2f}"] if more else []),
            f"{best:.2f}",
            opponent + "".join(f"; {name} is slower" for name in _slower(medians)),
        ])  # fmt: skip
    lowest, _, row = min(ratios)
    mean_best, mean_eager = (statistics.geometric_mean(r[i] for r in ratios) for i in (0, 1))
    summary = f"Geometric mean {mean_best:.2f}x the best opponent"
    if more:
        summary += f" and {mean_eager:.2f}x the best of eager"
    summary += f"; lowest row {row} with {lowest:.2f}x."
    for bound in bounds:
        shares = [
            _best(race["medians"], "imgfast")[0] / race["medians"][bound]
            for race in races
            if bound in race["medians"]
        ]
        summary += f"\nimgfast takes {min(shares):.2f} to {max(shares):.2f}x the {bound} alone."
    absent = dict.fromkeys(name for race in races for name in race["absent"])
    if absent:
        summary += f"\nDid not race: {', '.join(absent)}."
    return f"### {heading(op, task, place)}\n\n{aligned(lines)}\n\n{summary}"


def _best(medians, *sides):
    return min((t, name) for name, t in medians.items() if name.split()[0] in sides)


def _slower(medians):
    """The layouts of imgfast that lose to an opponent in that same layout."""
    for suffix in LAYOUTS:
        ours, *theirs = (medians.get(side + suffix) for side in SIDES)
        if ours is not None and ours > min(t for t in theirs if t is not None):
            yield "imgfast" + suffix


def aligned(lines):
    """A Markdown table of these rows of cells, the heading first."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    cells_of = [[c.rjust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    for cells, line in zip(cells_of, lines, strict=True):
        cells[0] = line[0].ljust(widths[0])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [cells_of[0], rule, *cells_of[1:]])


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        saved = json.load(file)
    print(render([b["extra_info"] for b in saved["benchmarks"]], saved["machine_info"]))
