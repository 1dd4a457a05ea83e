"""A picture of the races of one run: how many times as fast as its best opponent each row is.

Every run writes it beside its tables where matplotlib is installed; ``python benchmarks/plot.py
FILE PICTURE`` draws that of a --benchmark-json.
"""

import json
import sys

import report

COLORS = {
    "eager": "C0",
    "compile": "C2",
    "chunked": "C3",
    "composition": "C5",
    "onnxruntime": "C1",
    "openvino": "C4",
}


def save(races, path):
    """Write the picture to ``path`` and return that, or None without matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        return None
    tables = report.tables_of(races)
    heights = [len(members) + 2 for _, members in tables]
    figure = Figure(figsize=(10, 0.25 * sum(heights) + 0.5), layout="constrained")
    grid = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    seen = set()
    for axes, (table, members) in zip(grid, tables, strict=True):
        ratios, names = zip(*(report.best_ratio(race["medians"]) for race in members), strict=True)
        sides = [name.split()[0] for name in names]
        seen.update(sides)
        places = range(len(members))
        bars = axes.barh(places, ratios, color=[COLORS[side] for side in sides])
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize="small")
        axes.set_yticks(places, [race["row"] for race in members], fontsize="small")
        axes.set_xlim(0, 1.1 * max(ratios))
        axes.set_title(report.heading(*table), fontsize="medium")
        axes.axvline(1, color="black", linewidth=1)  # left of it imgfast is slower
        axes.invert_yaxis()
    grid[-1].set_xlabel("time of the best opponent by that of imgfast")
    patches = [Patch(color=color, label=side) for side, color in COLORS.items() if side in seen]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        saved = json.load(file)
    print(save([b["extra_info"] for b in saved["benchmarks"]], sys.argv[2]))
