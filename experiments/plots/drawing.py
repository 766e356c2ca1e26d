"""What all figures share: house style, colours, panels, curves with their seeds, labels at the ends of lines."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

INK, MUTED, FAINT = "#1a1a1a", "#5f6368", "#dadce0"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07700", "#3B8EC6", "#7A5195")
MARKS = "osD^vP<*>"
"""Of a figure's colours, in the order in which they are used: no curve is told from another by colour alone."""
RULES = {"mup": PALETTE[0], "ntk": PALETTE[1], "standard": PALETTE[3], "mean_field": PALETTE[2]}
NAMES = {"mup": "muP", "ntk": "NTK", "nngp": "NNGP", "mean_field": "mean field"}
"""What a reader calls it that a configuration names."""
DASHED = (0, (4, 2))
DASHES = ("-", DASHED, ":", "-.")
"""Of curves on which marks mean something else."""
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
}


class Picture(Figure):
    """A figure that a notebook shows as it is, whether or not it has ``%matplotlib inline``."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        with style():
            self.savefig(content, format="png", dpi=110)
        return content.getvalue()


def style():
    """The house style as a context (``with style():``) or a decorator; matplotlib's settings come back after it."""
    return matplotlib.rc_context(STYLE)


@style()
def figure(
    titles: Sequence[str] = ("",),
    *,
    caption: str,
    panel: tuple[float, float] = (3.2, 2.7),
    columns: int = 4,
    sharey: bool = True,
) -> tuple[Figure, list[Axes]]:
    """An empty figure with one panel for each title, outside pyplot, so that nothing is shown or kept alive.

    Args:
        titles: one for each panel.
        caption: what to look at; kept as the figure's label.
        panel: width and height of a panel in inches; a lone panel is made wider.
        columns: panels in a row.
        sharey: one vertical scale for all.

    Returns:
        (figure, axes), the axes in the order of the titles.
    """
    count = len(titles)
    columns = min(columns, count)
    rows = -(-count // columns)
    size = max(columns * panel[0] + 0.8, 5.6), rows * panel[1] + 0.3 + 0.5 * (count == 1)
    made = Picture(figsize=size, layout="constrained", label=caption)
    axes = list(made.subplots(rows, columns, sharey=sharey, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    for ax, title in zip(axes, titles):
        ax.set_title(NAMES.get(title, title))
    return made, axes[:count]


def sequential(values: Iterable) -> dict:
    """One colour for each ordered value (widths, layers): the last is the darkest, all of contrast 3 to 1 to white."""
    values = list(values)
    places = np.linspace(0.56, 0.0, len(values)) if len(values) > 1 else [0.0]
    return {value: matplotlib.colormaps["viridis"](place) for value, place in zip(values, places)}


def cell_colors(two_sided: bool) -> Colormap:
    """The colours of a heat map; grey where there is no value."""
    name = "PuOr_r" if two_sided else "viridis"
    return matplotlib.colormaps[name].with_extremes(bad="#c8c8c8")


def rule_color(name: str, number: int) -> str:
    """A parametrization has one colour in every figure; anything else takes the palette's ``number``."""
    return RULES[name] if name in RULES else PALETTE[number % len(PALETTE)]


def split(data: xr.DataArray, dim: str) -> list[tuple[str, xr.DataArray]]:
    """(title, part) for each value of a dimension, or the whole under an empty title if it has no such dimension."""
    if dim not in data.dims:
        return [("", data)]
    return [(str(value), data.sel({dim: value}, drop=True)) for value in data[dim].values]


def pick(data: xr.DataArray, title: str, dim: str = "parametrization") -> xr.DataArray:
    """The part that `split` gives this title."""
    return dict(split(data, dim))[title]


def named(result) -> dict:
    """A result by name: as it is where it has names (layers, widths), under an empty name where it is one alone."""
    return dict(result) if isinstance(result, Mapping) else {"": result}


def spans_decades(values: np.ndarray) -> bool:
    """Whether a logarithmic axis serves positive values better than a linear one."""
    finite = values[np.isfinite(values)]
    return finite.size > 0 and finite.min() > 0 and bool(finite.max() > 30 * finite.min())


def median(data: xr.DataArray) -> xr.DataArray:
    """The median over seeds, not finite where one of them diverged."""
    return data.median("seed", skipna=False) if "seed" in data.dims else data


def stroke(ax: Axes, color, values: Any = ()) -> dict[str, Any]:
    """How a curve of this colour is drawn: with the marker that the colour has in the whole figure.

    Args:
        ax: the panel.
        color: of the curve.
        values: of the curve; where they are many, a few marks are spread along it.

    Returns:
        Keywords of ``ax.plot`` and ``ax.errorbar``.
    """
    marks = vars(ax.figure).setdefault("marks", {})
    place = marks.setdefault(matplotlib.colors.to_hex(color), len(marks))
    # Curves that lie on one another have their marks at other places, in fractions of the panel's diagonal.
    many = np.isfinite(np.asarray(values, float)).sum() > 16
    every = (0.03 + 0.05 * (place % 4), 0.2) if many else None
    return {"color": color, "marker": MARKS[place % len(MARKS)], "markevery": every}


def curve(
    ax: Axes,
    line: xr.DataArray,
    dim: str,
    color,
    *,
    label: str = "",
    minimum: bool = False,
    linestyle: Any = "-",
) -> None:
    """Draws the median over seeds, a band from the smallest to the largest, and a cross before divergence."""
    x, y = line[dim].values, median(line).values
    finite = np.isfinite(y)
    how = stroke(ax, color, y)
    ax.plot(x[finite], y[finite], linestyle=linestyle, label=label or None, **how)
    if "seed" in line.dims:
        ends = line.min("seed", skipna=False).values, line.max("seed", skipna=False).values
        ax.fill_between(x, *ends, where=np.isfinite(ends[1]), color=color, alpha=0.15, linewidth=0)
    if not finite.any():
        return
    if minimum:
        lowest = int(np.nanargmin(np.where(finite, y, np.nan)))
        ax.plot(
            x[lowest],
            y[lowest],
            how["marker"],
            color=color,
            markeredgecolor=INK,
            markersize=8,
            zorder=5,
        )
    last = int(np.flatnonzero(finite)[-1])
    if last + 1 < len(x):
        ax.plot(x[last], y[last], "x", color=color, markersize=5, zorder=4)


def intervals(
    ax: Axes, line: xr.DataArray, low: xr.DataArray | None, high: xr.DataArray | None, color
) -> None:
    """Draws a bar from low to high at each point, nothing where they are not given."""
    if low is not None and high is not None:
        bars = np.maximum([line.values - low.values, high.values - line.values], 0)
        (x,) = (line[dim].values for dim in line.dims)
        ax.errorbar(x, line.values, bars, fmt="none", ecolor=color, elinewidth=1, capsize=2)


def over_names(ax: Axes, names: Sequence[str], values, errors, color, label: str = "") -> None:
    """A line over named places in their order (layers), with bars where there are errors."""
    places = np.arange(len(names))
    ax.errorbar(places, values, yerr=errors, capsize=2, label=label, **stroke(ax, color))
    crowded = sum(map(len, names)) > 30
    if list(names) == [""]:  # one alone, which has no name
        ax.set_xticks([])
        return
    ax.set_xticks(
        places, list(names), rotation=30 if crowded else 0, ha="right" if crowded else "center"
    )
    ax.set_xlim(-0.3, len(names) - 0.7)


def slope_line(x: np.ndarray, y: np.ndarray, slope: float) -> np.ndarray:
    """The power law of a given slope through the geometric middle of the points."""
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.where(y > 0, y, np.nan))
    return np.exp(slope * (log_x - log_x.mean()) + np.nanmean(log_y))


def log_ticks(axis) -> None:
    """Plain numbers where a logarithmic axis spans less than two decades, powers of ten elsewhere.

    Call it when the limits stand; a linear axis is left as it is.
    """
    if axis.get_scale() != "log":
        return
    low, high = axis.get_view_interval()
    if not 0 < low < high < np.inf:  # everything diverged: an empty panel, not an error
        low, high = 0.1, 1.0
        axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})
    axis.set_minor_formatter(NullFormatter())
    if high / low < 100:
        subs = (1, 2, 5) if high / low > 4 else (1, 1.5, 2, 3, 4, 5, 6, 8)
        axis.set_major_locator(LogLocator(10, subs=subs))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def width_ticks(ax: Axes, widths: np.ndarray) -> None:
    """A logarithmic axis with a tick at each measured width, eight at most."""
    kept = widths[:: -(-len(widths) // 8)]
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(kept))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def cell_ticks(axis, values: np.ndarray) -> None:
    """Names the cells of a heat map, nine at most."""
    every = -(-len(values) // 9)
    texts = [value if isinstance(value, str) else f"{value:.3g}" for value in values.tolist()]
    axis.set_ticks(range(0, len(values), every), texts[::every])
    axis.set_minor_locator(NullLocator())


def cell_values(
    ax: Axes, image: AxesImage, values: np.ma.MaskedArray, errors: np.ndarray | None = None
) -> None:
    """Writes its value into each cell of a small heat map, with as many digits as the range of colours needs."""
    digits = int(
        np.clip(2 - np.floor(np.log10(max(image.norm.vmax - image.norm.vmin, 1e-12))), 0, 4)
    )
    for (row, column), value in np.ma.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        color = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK
        text = f"{value:.{digits}f}"
        text += "" if errors is None else f"\n± {errors[row, column]:.{digits}f}"
        ax.text(column, row, text, ha="center", va="center", color=color)


def end_labels(ax: Axes, labels: Sequence[tuple]) -> None:
    """Names lines at their right ends, moved apart where the names would overlap; call it when the limits stand.

    Args:
        ax: the panel.
        labels: (height of the line's end, text, colour) and optionally whether it is bold.
    """
    log = ax.get_yscale() == "log"
    low, high = np.log(ax.get_ylim()) if log else ax.get_ylim()
    ends = np.array([np.log(max(y, 1e-300)) if log else y for y, *_ in labels])
    place = (np.nan_to_num(ends, nan=low, posinf=high, neginf=low) - low) / (high - low)
    order = np.argsort(place)
    spec = ax.get_subplotspec()
    rows = spec.get_gridspec().nrows if spec else 1
    # A line of text in fractions of the panel.
    apart = 13 * rows / (ax.figure.get_size_inches()[1] * 72 * 0.75)
    spread = np.clip(place[order], 0, 1)
    for i in range(1, len(spread)):
        spread[i] = max(spread[i], spread[i - 1] + apart)
    spread -= max(0.0, spread[-1] - 1)
    for i in range(len(spread) - 2, -1, -1):
        spread[i] = min(spread[i], spread[i + 1] - apart)
    for number, y in zip(order, spread):
        _, text, color, *bold = labels[number]
        text = NAMES.get(text, text)
        weight = "bold" if any(bold) else "normal"
        ax.annotate(
            text, (1.02, y), xycoords="axes fraction", va="center", color=color, weight=weight
        )


def short(path: str) -> str:
    """The name of a layer deep inside others by the first and the last of them."""
    first, *inside = path.split("/")
    return f"{first}/…/{inside[-1]}" if len(inside) > 1 else path


def legend(ax: Axes, title: str = "") -> None:
    """The names of the lines right of a panel, the last on top."""
    handles, texts = ax.get_legend_handles_labels()
    texts = [NAMES.get(text, text) for text in texts]
    if texts:
        ax.legend(
            handles[::-1], texts[::-1], title=title, loc="center left", bbox_to_anchor=(1.01, 0.5)
        )


def signed(slope: float) -> str:
    """A slope in two digits with its sign."""
    text = f"{slope:+.2f}"
    return "0" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def words(dim: str) -> str:
    """The name of a dimension as words."""
    return dim.replace("_", " ")


def label_of(array: xr.DataArray, otherwise: str) -> str:
    """The array's own long_name and units, as xarray keeps them, or else the given words."""
    text = array.attrs.get("long_name", otherwise)
    units = array.attrs.get("units", "1")  # 1: a pure number
    return f"{text} ({units})" if units != "1" else text
