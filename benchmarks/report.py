"""Tables of ratios from the races of one run, in Markdown.

Every run ends with them; ``python benchmarks/report.py FILE`` prints those of a --benchmark-json.
"""

import itertools
import json
import statistics
import sys

from opponents import LAYOUTS, SIDES


def render(races, machine):
    """All tables.

    Args:
        races: dicts of ``op``, ``task``, ``threads``, ``row`` and ``medians`` (name to seconds).
        machine: pytest-benchmark's machine_info, with imgfast's facts beside.
    """
    facts = machine["imgfast"]
    cpu = machine["cpu"].get("brand_raw", machine["machine"])
    title = f"{cpu}, torch {facts['torch']}, imgfast {facts['imgfast']}, ISA {facts['isa']}"
    note = "Median milliseconds; CL is channels_last; x is the opponent's time by imgfast's."

    def key(race):
        return race["op"], race["task"], race["threads"]

    groups = itertools.groupby(sorted(races, key=key), key)
    tables = [_table(*group, list(members)) for group, members in groups]
    return "\n\n".join([f"{title}\n{note}", *tables]) + "\n"


def _table(op, task, threads, races):
    names = [side + suffix for side in SIDES for suffix in LAYOUTS]
    names = [n for n in names if any(n in race["medians"] for race in races)]
    compiled = any(n.startswith("compile") for n in names)
    lines = [["row", *names, *(["x eager"] if compiled else []), "x best", "best opponent"]]
    ratios = []
    for race in races:
        medians = race["medians"]
        ours, _ = _best(medians, "imgfast")
        eager, _ = _best(medians, "eager")
        best, opponent = _best(medians, "eager", "compile")
        ratios.append((best / ours, eager / ours, race["row"]))
        lines.append([
            race["row"],
            *(f"{1e3 * medians[n]:.3g}" if n in medians else "" for n in names),
            *([f"{eager / ours:.2f}"] if compiled else []),
            f"{best / ours:.2f}",
            opponent + "".join(f"; {name} is slower" for name in _slower(medians)),
        ])  # fmt: skip
    lowest, _, row = min(ratios)
    mean_best, mean_eager = (statistics.geometric_mean(r[i] for r in ratios) for i in (0, 1))
    summary = f"Geometric mean {mean_best:.2f}x the best opponent"
    if compiled:
        summary += f" and {mean_eager:.2f}x the best of eager"
    summary += f"; lowest row {row} with {lowest:.2f}x."
    heading = f"### {op}, {task}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{heading}\n\n{_aligned(lines)}\n\n{summary}"


def _best(medians, *sides):
    return min((t, name) for name, t in medians.items() if name.split()[0] in sides)


def _slower(medians):
    """The layouts of imgfast that lose to stock in that same layout."""
    for suffix in LAYOUTS:
        ours, *stock = (medians.get(side + suffix) for side in SIDES)
        if ours is not None and ours > min(t for t in stock if t is not None):
            yield "imgfast" + suffix


def _aligned(lines):
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    aligned = [[c.rjust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    for cells, line in zip(aligned, lines, strict=True):
        cells[0] = line[0].ljust(widths[0])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [aligned[0], rule, *aligned[1:]])


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        saved = json.load(file)
    print(render([b["extra_info"] for b in saved["benchmarks"]], saved["machine_info"]))
