"""What each change is worth: differences from a base over several seeds, a row a change."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vit.plots.style import BLUE, GRAY, VERMILION, as_array, new_figure, set_title

_BAND = "#DDDDDD"
_LEAST_RANGE = 2  # points to either side: a single small difference should not fill the width


def plot_differences(results: Mapping[str, Sequence[float]], base: str, *, title: str = "") -> Figure:
    """Accuracy minus the mean of the base, the best change on top.

    Every seed is a dot, their mean a diamond on a line of one standard error either way. A change that does nothing has
    its diamond in the gray band with a probability of 95 %, so of twenty such changes one stands outside. All errors
    come from one deviation, pooled over all names: that of a few seeds alone is itself mostly chance. With one seed of
    each nothing is known of chance, and there is no band. Blue diamonds are above the base, vermilion ones below, and
    those inside the band gray.

    Args:
        results: for each name the accuracies in percent, one a seed; the base among them.
        base: the name of the base.
    """
    if base not in results:
        raise ValueError(f"base={base!r} is not in results; there are: {', '.join(results) or 'none'}")
    values = {name: as_array(of_name, dtype=float) for name, of_name in results.items()}
    if any(v.ndim != 1 or not len(v) for v in values.values()):
        raise ValueError("results must hold one or more accuracies for each name")
    center, (deviation, freedom) = values[base].mean(), _pooled_deviation(values.values())
    differences = {name: v - center for name, v in values.items() if name != base}
    names = sorted(differences, key=lambda name: differences[name].mean())
    figure, ax = new_figure(height=1.2 + 0.27 * max(len(names), 1))
    ax.axvline(0, color=GRAY, linewidth=1.2, zorder=1)
    for y, name in enumerate(names):
        of_name = differences[name]
        mean = of_name.mean()
        color = BLUE if mean >= 0 else VERMILION
        if freedom:
            band = _t_95(freedom) * deviation * (1 / len(values[base]) + 1 / len(of_name)) ** 0.5
            color = GRAY if abs(mean) <= band else color
            ax.add_patch(Rectangle((-band, y - 0.5), 2 * band, 1, color=_BAND, linewidth=0, zorder=0))
        seeds = {"color": "white", "markeredgecolor": GRAY, "markersize": 3.5, "zorder": 4}
        ax.plot(of_name, np.full(len(of_name), y), "o", **seeds)
        error = deviation / len(of_name) ** 0.5
        ax.errorbar(mean, y, xerr=error, fmt="D", color=color, markersize=6, elinewidth=1.5, zorder=3)
        points = f"{mean:+.1f}" if round(mean, 1) else "0.0"
        ax.text(1.01, y, points, transform=ax.get_yaxis_transform(), color=color, va="center", fontsize=9)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.set_ylim(-0.7, len(names) - 0.3)
    ax.grid(axis="y", visible=False)
    spread = f"one seed ± {deviation:.1f}" if deviation else "no spread is known"
    ax.set_xlabel(f"percentage points of accuracy above the {base}'s {center:.1f} % ({spread})")
    left, right = ax.get_xlim()
    ax.set_xlim(min(left, -_LEAST_RANGE), max(right, _LEAST_RANGE))
    set_title(ax, title)
    return figure


def _pooled_deviation(samples: Iterable[np.ndarray]) -> tuple[float, int]:
    """The standard deviation of one seed, from all samples, each around its own mean, and its degrees of freedom; both
    are 0 if all samples are of one."""
    samples = list(samples)
    freedom = sum(len(sample) - 1 for sample in samples)
    squares = sum(((sample - sample.mean()) ** 2).sum() for sample in samples)
    return float((squares / freedom) ** 0.5) if freedom else 0.0, freedom


def _t_95(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t, to a hundredth."""
    known = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 8: 2.306, 12: 2.179, 24: 2.064, 60: 2.000}
    ends = [1 / f for f in known] + [0.0]  # it is nearly linear in 1 / freedom
    return float(np.interp(-1 / freedom, [-end for end in ends], [*known.values(), 1.960]))
