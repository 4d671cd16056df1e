"""What the alignment study found, as claims with intervals, as tables, and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from PIL import Image
from scipy.stats import spearmanr
from scipy.stats import t as student

mpl.use("agg")
import matplotlib.pyplot as plt

NAMES = {
    "bhattacharyya": "Bhattacharyya",
    "expected_likelihood": "expected likelihood",
    "prototype": "prototype",
    "hellinger_gaussian": "Hellinger–Gaussian",
}
COLOURS = {
    "bhattacharyya": "#1b6ca8",
    "expected_likelihood": "#c8792b",
    "prototype": "#5b8c3a",
    "hellinger_gaussian": "#8a4f9e",
}
CHANCE: dict[str, Any] = {"color": "#888888", "linestyle": ":", "linewidth": 1}
DPI = 110
COLOURS_KEPT = 96


def mean_with_interval(values: ArrayLike) -> list[float]:
    """Of runs: mean and Student's 95 % interval for it."""
    x = np.asarray(values, float)
    half = student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan
    return [float(x.mean()), float(x.mean() - half), float(x.mean() + half)]


def follows(losses: Sequence[float], scores: Sequence[float]) -> float:
    """Spearman's rank correlation of the score with the loss, the sign turned: 1 if it grows whenever loss falls."""
    return float(spearmanr(-np.asarray(losses), scores).statistic)


def column(found: dict[str, Any], name: str, rank: int = -1) -> list[float]:
    """Of one rank, over layers or checkpoints; the last rank by default."""
    return [row[rank] for row in found[name]]


def findings(results: dict[str, Any]) -> dict[str, Any]:
    """What the page says, of the largest rank: values as [value, low, high], or as plain numbers."""
    of = {"language": _of_languages, "docstrings": _of_docstrings, "smollm2": _of_smollm2}
    return {part: of[part](results[part]) for part in of if part in results}


def _of_languages(part: dict[str, Any]) -> dict[str, Any]:
    runs = part["runs"]
    kl = np.array([run["kl"] for run in runs])
    learnt = (kl[:, :1] - kl) / (kl[:, :1] - kl[:, -1:])  # of all that is learnt, by checkpoint
    frequencies = np.array([run["kl_of_frequencies"] for run in runs])
    early = int(np.flatnonzero(learnt.mean(axis=0) < 0.5)[-1])
    found: dict[str, Any] = {
        "loss": [mean_with_interval([run["nll"][at] for run in runs]) for at in (0, -1)],
        "kl": [mean_with_interval([run["kl"][at] for run in runs]) for at in (0, -1)],
        "early_step": runs[0]["steps"][early],
        "learnt_early": mean_with_interval(learnt[:, early]),
        "learnt_by_frequencies": mean_with_interval((kl[:, 0] - frequencies) / (kl[:, 0] - kl[:, -1])),
    }
    for target in ("data", "own"):
        found[target] = {}
        for kind in runs[0][target]:
            each = [run[target][kind] for run in runs]
            scores = np.array([column(one, "held_out") for one in each])  # (runs, checkpoints)
            chance = np.array([column(one, "null_held_out") for one in each])
            correlations = [follows(run["nll"], score) for run, score in zip(runs, scores, strict=True)]
            others = [column(run[target]["bhattacharyya"], "held_out")[-1] for run in runs]
            found[target][kind] = {
                "untrained": mean_with_interval(scores[:, 0]),
                "trained": mean_with_interval(scores[:, -1]),
                "change": mean_with_interval(scores[:, -1] - scores[:, 0]),
                "excess": mean_with_interval(scores[:, -1] - chance[:, -1]),
                "behind_bhattacharyya": mean_with_interval(np.array(others) - scores[:, -1]),
                "at_early": mean_with_interval(scores[:, early]),
                "in_sample": mean_with_interval([column(one, "captured")[-1] for one in each]),
                "modes": mean_with_interval([column(one, "modes")[-1] for one in each]),
                "lowest": mean_with_interval(scores.min(axis=1)),
                "later_correlation": min(
                    follows(run["nll"][early:], score[early:]) for run, score in zip(runs, scores, strict=True)
                ),
                "correlation": [float(np.mean(correlations)), min(correlations), max(correlations)],
                "chance": float(chance.mean()),
            }
    found["log_laws"] = {
        kind: mean_with_interval([run["log_laws"][kind]["held_out"][-1] for run in runs]) for kind in runs[0]["data"]
    }
    return found


def _estimate(found: dict[str, Any], at: int) -> list[float]:
    return [found["held_out"][at][-1], *found["interval"][at][-1]]


def _of_docstrings(part: dict[str, Any]) -> dict[str, Any]:
    checkpoints = part["checkpoints"]
    losses = [one["nll"][-1] for one in checkpoints]
    found: dict[str, Any] = {
        "loss": [[one["nll"][-1], *one["nll_interval"][-1]] for one in (checkpoints[0], checkpoints[-1])],
        "own": {},
        "other": {},
    }
    for kind in part["other"]:
        own = [one["own"][kind] for one in checkpoints]
        scores = [column(one, "held_out")[-1] for one in own]
        layers = column(own[-1], "held_out")
        found["own"][kind] = {
            "untrained": _estimate(own[0], -1),
            "trained": _estimate(own[-1], -1),
            "highest": max(scores),
            "highest_step": checkpoints[int(np.argmax(scores))]["step"],
            "excess": [value - column(own[-1], "null_held_out")[-1] for value in _estimate(own[-1], -1)],
            "modes": column(own[-1], "modes")[-1],
            "correlation": follows(losses, scores),
            "chance": column(own[-1], "null_held_out")[-1],
            "by_layer": layers,
            "correlation_by_layer": follows(checkpoints[-1]["nll"], layers),
        }
        other = part["other"][kind]  # the checkpoints, and then what the other model's own states score
        scores = column(other, "held_out")[:-1]
        found["other"][kind] = {
            "untrained": _estimate(other, 0),
            "trained": _estimate(other, -2),
            "itself": _estimate(other, -1),
            "correlation": follows(losses, scores),
            "chance": column(other, "null_held_out")[-1],
        }
    return found


def _of_smollm2(part: dict[str, Any]) -> dict[str, Any]:
    best_layer = part["own"]["bhattacharyya"]["best_layer"]
    found: dict[str, Any] = {"loss": [[part["nll"][at], *part["nll_interval"][at]] for at in (0, best_layer, -1)]}
    for kind, own in part["own"].items():
        scores, best, chance = column(own, "held_out"), own["best_layer"], column(own, "null_held_out")[-1]
        modes = np.array(own["modes_of_last_layer"])
        found[kind] = {
            "embedding": _estimate(own, 0),
            "last": _estimate(own, -1),
            "best": _estimate(own, best),
            "best_layer": best,
            "excess": [value - chance for value in _estimate(own, -1)],
            "in_sample": column(own, "captured")[-1],
            "in_sample_chance": column(own, "null")[-1],
            "chance": chance,
            "correlation": follows(part["nll"], scores),
            "modes": column(own, "modes")[-1],
            "modes_below_half": int((modes < 0.5).sum()),
            "least_mode": int(modes.argmin()) + 1,
            "least_mode_share": float(modes.min()),
            "first_modes": modes[:4].tolist(),
            "least_named": int(modes[: len(own["tokens"])].argmin()) + 1,
            "least_named_share": float(modes[: len(own["tokens"])].min()),
        }
    found["fewer"] = {
        m: {"last": _estimate(each, -1), "in_sample": column(each, "captured")[-1]} for m, each in part["fewer"].items()
    }
    return found


def in_words(value: list[float] | float) -> str:
    """Two digits, with the interval if there is one; whole numbers as they are."""
    if isinstance(value, list):
        return f"{in_words(value[0])} [{in_words(value[1])}, {in_words(value[2])}]"
    return str(value) if isinstance(value, int) else f"{value:.2f}".replace("-", "−")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Of each part: Markdown, as the page has it."""
    made = {}
    named = {"data": "the language", "own": "the model itself", "other": "another model"}
    header = ["similarity", "modes of", "untrained", "trained", "correlation with −loss", "by chance"]
    for part, targets in (("language", ("data", "own")), ("docstrings", ("other", "own"))):
        if part in found:
            rows = []
            for target in targets:
                for kind, each in found[part][target].items():
                    names = ("untrained", "trained", "correlation", "chance")
                    rows.append([NAMES[kind], named[target], *(in_words(each[name]) for name in names)])
            made[part] = _table(header, rows)
    if "smollm2" in found:
        rows = []
        for kind, each in found["smollm2"].items():
            if kind in NAMES:
                values = [in_words(each["embedding"]), f"{in_words(each['best'])} at {each['best_layer']}"]
                names = ("last", "in_sample", "correlation", "chance")
                rows.append([NAMES[kind], *values, *(in_words(each[name]) for name in names)])
        header = ["similarity", "embedding", "best layer", "last layer", "the same in sample", "correlation with −loss"]
        made["smollm2"] = _table([*header, "by chance"], rows)
    return made


def draw(results: dict[str, Any], folder: Path) -> None:
    """One picture for each part, and one that compares similarities."""
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    with plt.rc_context({**style, "grid.alpha": 0.3, "legend.frameon": False}):
        if "language" in results:
            _language(results["language"], folder)
        if "docstrings" in results:
            _docstrings(results["docstrings"], folder)
        if "smollm2" in results:
            _smollm2(results["smollm2"], folder)
        if "language" in results and "docstrings" in results:
            _similarities(results, folder)


def _panels(count: int) -> tuple[Any, list[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(3.3 * count, 3.0), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(COLOURS_KEPT).save(path, optimize=True)  # half of the bytes


def _steps(axis: Axes, steps: Sequence[int]) -> None:
    axis.set_xscale("symlog", linthresh=max(steps[1], 1))
    axis.set_xlim(left=0)
    axis.set_xlabel("steps of training")


def _language(part: dict[str, Any], folder: Path) -> None:
    runs, rank = part["runs"], part["settings"]["ranks"][-1]
    steps = runs[0]["steps"]
    figure, axes = _panels(3)
    for run in runs:
        axes[0].plot(steps, run["kl"], color="#444444", linewidth=1)
    axes[0].set(title="KL from the language", ylabel="nats per token")
    for axis, target, title in ((axes[1], "data", "modes of the language"), (axes[2], "own", "the model's own modes")):
        for kind in runs[0][target]:
            scores = np.array([column(run[target][kind], "held_out") for run in runs])
            axis.plot(steps, scores.mean(axis=0), color=COLOURS[kind], label=NAMES[kind])
            axis.fill_between(steps, scores.min(axis=0), scores.max(axis=0), color=COLOURS[kind], alpha=0.15)
        chance = [column(run[target]["bhattacharyya"], "null_held_out") for run in runs]
        axis.plot(steps, np.mean(chance, axis=0), label="by chance", **CHANCE)
        axis.set(title=title, ylim=(0, 1.02), ylabel=f"captured of {rank} modes, held out")
    axes[2].legend(loc="center right")
    for axis in axes:
        _steps(axis, steps)
    _save(figure, folder / "alignment-language.png")


def _docstrings(part: dict[str, Any], folder: Path) -> None:
    checkpoints, rank = part["checkpoints"], part["settings"]["ranks"][-1]
    steps = [one["step"] for one in checkpoints]
    figure, axes = _panels(4)
    axes[0].plot(steps, [one["nll"][-1] for one in checkpoints], color="#444444", label="loss")
    axes[0].plot(steps, [one["entropy"] for one in checkpoints], color="#444444", linestyle="--", label="entropy")
    axes[0].set(title="held-out text", ylabel="nats per character")
    axes[0].legend()
    for kind, colour in COLOURS.items():
        other = part["other"][kind]
        low, high = np.array([row[-1] for row in other["interval"][:-1]]).T
        axes[1].plot(steps, column(other, "held_out")[:-1], color=colour, label=NAMES[kind])
        axes[1].fill_between(steps, low, high, color=colour, alpha=0.15)
        own = [one["own"][kind] for one in checkpoints]
        low, high = np.array([one["interval"][-1][-1] for one in own]).T
        axes[2].plot(steps, [column(one, "held_out")[-1] for one in own], color=colour, label=NAMES[kind])
        axes[2].fill_between(steps, low, high, color=colour, alpha=0.15)
        axes[3].plot(column(own[-1], "held_out"), color=colour, label=NAMES[kind])
    chance = column(part["other"]["bhattacharyya"], "null_held_out")[-1]
    for axis, title in zip(
        axes[1:], ("modes of another model, trained", "the model's own modes", "trained, by layer"), strict=True
    ):
        axis.axhline(chance, label="by chance", **CHANCE)
        axis.set(title=title, ylim=(0, 1.02), ylabel=f"captured of {rank} modes, held out")
    for axis in axes[:3]:
        _steps(axis, steps)
    axes[3].set(xlabel="layer", xticks=range(part["settings"]["depth"] + 1))
    axes[1].legend(loc="upper left")
    _save(figure, folder / "alignment-docstrings.png")


def _smollm2(part: dict[str, Any], folder: Path) -> None:
    rank = part["settings"]["ranks"][-1]
    figure, axes = _panels(3)
    for kind, own in part["own"].items():
        low, high = np.array([row[-1] for row in own["interval"]]).T
        axes[0].plot(column(own, "held_out"), color=COLOURS[kind], label=NAMES[kind])
        axes[0].fill_between(range(len(low)), low, high, color=COLOURS[kind], alpha=0.15)
        modes = own["modes_of_last_layer"]
        axes[2].plot(range(1, len(modes) + 1), modes, ".", markersize=4, color=COLOURS[kind])
    axes[0].plot(column(part["own"]["bhattacharyya"], "null_held_out"), label="by chance", **CHANCE)
    axes[0].set(title="SmolLM2, by layer", xlabel="layer", ylim=(0, 1.02))
    axes[0].set_ylabel(f"captured of {rank} modes, held out")
    axes[1].plot(part["nll"], color="#444444")
    axes[1].set(title="loss of each layer's readout", xlabel="layer", ylabel="nats per token", yscale="log")
    axes[1].set_yticks([3, 10, 30, 100], ["3", "10", "30", "100"], minor=False)
    axes[0].legend(loc="upper left")
    axes[2].axhline(0, **CHANCE)
    axes[2].set(title="last layer, mode by mode", xlabel="mode")
    axes[2].set_ylabel("share that is linear in states, held out")
    _save(figure, folder / "alignment-smollm2.png")


def _similarities(results: dict[str, Any], folder: Path) -> None:
    found = results["findings"]
    rows = [("random languages", found["language"]["own"]), ("docstrings", found["docstrings"]["own"])]
    if "smollm2" in found:
        rows.append(("SmolLM2", found["smollm2"]))
    figure, (axis,) = _panels(1)
    figure.set_size_inches(5.6, 2.6)
    for i, (kind, colour) in enumerate(COLOURS.items()):
        values = np.array([each[kind]["excess"] for _, each in rows], float)
        at = np.arange(len(rows)) + 0.15 * (i - 1.5)
        errors = [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]
        axis.errorbar(values[:, 0], at, xerr=errors, fmt="o", markersize=4, color=colour, label=NAMES[kind])
    axis.set(yticks=range(len(rows)), yticklabels=[name for name, _ in rows], xlabel="captured, held out, above chance")
    axis.invert_yaxis()
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, folder / "alignment-similarities.png")
