"""Writes what the questions found into one page with plots.

python bench/summary.py [RESULTS] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

from harness import RESULTS

ORDER = ("softmax_stats", "divergences", "panels", "kernels", "spectrum", "geometry", "alignment", "scaling")
COLOURS = {"markovlm": "#1b6ca8", "torch": "#c8792b", "other": "#9a9a9a"}


def environment(found: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    peaks = found["peaks"]
    limits = (
        f"; at most {peaks['float32']:.0f} GFLOP/s of float32, {peaks['bfloat16']:.0f} of bfloat16, "
        f"{peaks['memory']:.0f} GB/s of memory"
        if peaks
        else ""
    )
    return (
        f"{found['date'][:10]}, {found['cpu']}, {found['cores']} cores{limits}. Build {found['core']['isa']} "
        f"({found['core']['compiler']}), {packages}, {found['numpy_blas']}, Python {found['python']}."
    )


def table(case: dict[str, Any], peaks: dict[str, float]) -> list[str]:
    lines = [
        "| contender | median s | fastest s | GFLOP/s | of peak | extra MiB | largest error |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in sorted(case["rows"], key=lambda row: row["median"]):
        share = f"{row['gflops'] / peaks[row['dtype']]:.0%}" if row["dtype"] in peaks else ""
        memory = "" if row["extra_mib"] is None else f"{row['extra_mib']:,.0f}"
        errors = ", ".join(f"{name} {error:.0e}" for name, error in row["errors"].items()) or row["note"]
        figures = f"{row['median']:.3f} | {min(row['seconds']):.3f} | {row['gflops']:.0f} | {share} | {memory}"
        lines.append(f"| {row['name']} | {figures} | {errors} |")
    lines += ["", "| figure | measured | wanted | |", "|---|---:|---:|---|"]
    lines += [
        f"| {target['name']} | {target['ratio']:.2f} | {'≥' if target['at_least'] else '≤'} {target['bound']:g} "
        f"| {'met' if target['met'] else '**missed**'} |"
        for target in case["targets"]
    ]
    return lines


def bars(case: dict[str, Any], path: Path) -> None:
    rows = sorted(case["rows"], key=lambda row: -row["median"])
    figure, axes = plt.subplots(figsize=(9, 0.26 * len(rows) + 1.2), layout="constrained")
    kinds = [
        "markovlm" if "markovlm" in row["name"] else "torch" if "torch" in row["name"] else "other" for row in rows
    ]
    drawn = axes.barh(
        [row["name"] for row in rows], [row["median"] for row in rows], color=[COLOURS[kind] for kind in kinds]
    )
    axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlabel("seconds, median of interleaved rounds")
    axes.set_title(case["title"], loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.01)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def growth(cases: dict[str, Any], peaks: dict[str, float], path: Path) -> None:
    figure, all_axes = plt.subplots(
        1, len(cases), figsize=(3.2 * len(cases) + 1, 3.4), layout="constrained", squeeze=False
    )
    for axes, (name, case) in zip(all_axes[0], cases.items(), strict=True):
        for dtype, colour in (("float32", COLOURS["markovlm"]), ("bfloat16", COLOURS["torch"])):
            rows = [row for row in case["rows"] if row["dtype"] == dtype]
            sizes = [int(re.sub(r"\D", "", row["name"].split("=")[1])) for row in rows]
            axes.plot(sizes, [row["gflops"] for row in rows], "o-", color=colour, label=dtype)
            if dtype in peaks:
                axes.axhline(peaks[dtype], color=colour, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(name)
        axes.set_title(case["title"].split(": ", 1)[1], loc="left", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0][0].set_ylabel("GFLOP/s; dotted: the CPU's peak")
    all_axes[0][0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "measured")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update({"svg.hashsalt": "markovlm", "svg.fonttype": "none"})
    lines = ["# What was measured", "", "Made by `python bench/summary.py` from what the commands below left.", ""]
    # also what was kept beside it under a longer name, such as scaling-d.json by --json
    found_files = [(question, path) for question in ORDER for path in sorted(given.results.glob(f"{question}*.json"))]
    for name, path in found_files:
        found = json.loads(path.read_text("utf8"))
        peaks = found["environment"]["peaks"]
        lines += [f"## `{found['command']}`", "", environment(found["environment"]), ""]
        if name == "scaling":
            growth(found["cases"], peaks, given.out / f"{path.stem}.svg")
            lines += [f"![rates as sizes grow]({path.stem}.svg)", ""]
        for case_name, case in found["cases"].items():
            if name != "scaling":
                bars(case, given.out / f"{name}-{case_name}.svg")
                lines += [f"![{case['title']}]({name}-{case_name}.svg)", ""]
            lines += [f"### {case['title']}", "", *table(case, peaks), ""]
    (given.out / "RESULTS.md").write_text("\n".join(lines), "utf8")


if __name__ == "__main__":
    main()
