"""Charts by Matplotlib (the extra `report`): one as SVG for a page, several as one PNG.

chart = Chart("loss", [Line("held-out", steps, losses), Line("training", steps, more, dashed=True)])
markup = svg(chart)                                # text and lines in the colours of the page
content = png([chart, another], columns=2)         # on white

Nothing here imports Matplotlib before it draws, and no global state of it is changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    *("#d55e00", "#0072b2", "#009e73", "#9c8c00", "#56b4e9", "#d18f00", "#cc79a7", "#7f7f7f"),
)
"""Colours that all people can tell apart: those of `ClassMap.palette`, darker for white paper."""
MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")
"""What tells lines of one colour apart, beyond the number of colours."""
# In an SVG these stand for the page's colours of text and of lines of a grid.
_INK, _GRID = "#1b1c1d", "#d8d9da"
# Width and height of a chart; what numbers and titles need on the left, right, below and above.
# Matplotlib's own layouts measure every text, which takes as long as all drawing.
_INCHES = (4.4, 2.9)
_SQUARE_INCHES = (4.0, 3.6)
_LEFT, _RIGHT, _BELOW, _ABOVE = 0.72, 0.12, 0.5, 0.1
# Lines of so few points show each of them.
_FEW = 25


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What it shows.
        x: The places.
        y: The values there; what is not finite is left out.
        colour: Its number: lines of equal numbers look alike, but for dashes.
        dashed: Whether it is dashed.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 1
    dashed: bool = False

    @property
    def marker(self) -> str:
        """The marker of its points; empty for a line without."""
        return MARKERS[self.colour // len(COLOURS) % len(MARKERS)]


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over one horizontal axis.

    Attributes:
        title: What it shows.
        lines: The lines.
        x_title: Under the horizontal axis.
        y_title: Beside the vertical axis.
        mark: Place of a vertical line, such as the best step.
        is_unit: Whether both axes go from 0 to 1.
        has_diagonal: Whether the diagonal is drawn, where both axes are equal.
        is_log: Whether the vertical axis is logarithmic.
        from_zero: Whether the vertical axis begins at 0.
        last_x: Up to where the horizontal axis goes at least.
    """

    title: str
    lines: Sequence[Line]
    x_title: str = "step"
    y_title: str = ""
    mark: float | None = None
    is_unit: bool = False
    has_diagonal: bool = False
    is_log: bool = False
    from_zero: bool = False
    last_x: float | None = None


def svg(chart: Chart) -> str:
    """Returns a chart as an element `<svg>` for an HTML page, without its title and legend.

    Text is drawn in the page's colour (`currentColor`), the grid in its `--grid`, lines in `--c0`,
    `--c1` ... if the page has these. All texts are escaped.
    """
    with _style():
        width, height = _SQUARE_INCHES if chart.is_unit else _INCHES
        figure = _figure(width, height)
        _draw(_axes(figure, 0, 0, width, height), chart)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    markup = buffer.getvalue()
    markup = markup[markup.index("<svg") :]
    for part in ("metadata", "style"):
        markup = re.sub(rf"<{part}.*?</{part}>", "", markup, flags=re.DOTALL)
    # Names that several charts of a page would share; what is referred to is named by its content.
    markup = re.sub(r'<g id="[^"]*"', "<g", markup)
    markup = re.sub(r' (xmlns(:xlink)?|version|width|height)="[^"]*"', "", markup, count=5)
    markup = markup.replace(_INK, "currentColor").replace(_GRID, f"var(--grid, {_GRID})")
    for number, colour in enumerate(COLOURS):
        markup = markup.replace(colour, f"var(--c{number}, {colour})")
    return markup.strip()


def png(charts: Sequence[Chart], *, columns: int = 3) -> bytes:
    """Returns charts as one PNG, in rows, with titles and one legend below."""
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    width, height = _SQUARE_INCHES if charts[0].is_unit else _INCHES
    legend: dict[tuple[str, int, bool], Line] = {}
    for line in (line for chart in charts for line in chart.lines):
        legend.setdefault((line.name, line.colour, line.dashed), line)
    across = max(1, int(width * columns / 2.2))
    below = 0.2 + 0.22 * -(-len(legend) // across)
    titled = height + 0.3
    with _style():
        figure = _figure(width * columns, titled * rows + below)
        drawn = {}
        for place, chart in enumerate(charts):
            row, column = divmod(place, columns)
            bottom = below + titled * (rows - 1 - row)
            axes = _axes(figure, width * column, bottom, width, height)
            axes.set_title(chart.title)
            for line, artist in zip(chart.lines, _draw(axes, chart), strict=True):
                drawn[line.name, line.colour, line.dashed] = artist
        # The names come after: a legend leaves out those that begin with "_".
        box = figure.legend(
            [drawn[key] for key in legend],
            ["x"] * len(legend),
            loc="lower center",
            ncols=min(across, len(legend)),
            frameon=False,
        )
        for text, line in zip(box.get_texts(), legend.values(), strict=True):
            text.set_text(line.name)
        return _as_png(figure)


def confusion_png(
    counts: np.ndarray, shares: np.ndarray, names: Sequence[str], columns: Sequence[str]
) -> bytes:
    """Returns a confusion matrix as PNG: shares of the true class, and counts.

    Args:
        counts: [C, N], true classes in rows.
        shares: [C, N], of the pixels of the true class.
        names: The C names.
        columns: The N titles of the columns, predicted classes.
    """
    side = 2.2 + 0.85 * len(names)
    with _style():
        figure = _figure(side, side, measured=True)
        axes = figure.add_subplot()
        axes.imshow(np.minimum(shares, 1), cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted", ylabel="truth")
        axes.grid(visible=False)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{shares[row, column]:.1%}\n{count:.4g}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        return _as_png(figure)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    own: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "unet_core",
        # Names of classes are no formulas.
        "text.parse_math": False,
        "text.usetex": False,
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    }
    with matplotlib.rc_context():
        # What a user's own matplotlibrc says does not change a report.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(own)
        yield


def _figure(width: float, height: float, *, measured: bool = False) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained" if measured else None)


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Returns axes that with their numbers and titles fill a place, in inches."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes(
        (
            (left + _LEFT) / whole_width,
            (bottom + _BELOW) / whole_height,
            (width - _LEFT - _RIGHT) / whole_width,
            (height - _BELOW - _ABOVE) / whole_height,
        )
    )


def _draw(axes: Axes, chart: Chart) -> list[Any]:
    drawn = []
    if chart.has_diagonal:
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=(0, (1, 2)))
    if chart.mark is not None:
        axes.axvline(chart.mark, color=_INK, linewidth=1, linestyle=(0, (1, 2)))
    for line in chart.lines:
        x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
        shown = np.isfinite(x) & np.isfinite(y)
        marker = line.marker or ("o" if shown.sum() <= _FEW else "")
        (artist,) = axes.plot(
            x[shown],
            y[shown],
            color=COLOURS[line.colour % len(COLOURS)],
            linestyle=(0, (4, 2)) if line.dashed else "-",
            linewidth=1.2 if line.dashed else 1.8,
            marker=marker,
            markersize=4 if line.marker else 2.5,
            markevery=max(1, int(shown.sum()) // 10) if line.marker else None,
        )
        drawn.append(artist)
    if chart.is_log:
        from matplotlib.ticker import EngFormatter, NullFormatter

        axes.set_yscale("log")
        # Matplotlib writes powers as formulas, which are not read here.
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.locator_params(nbins=5)
    if chart.is_unit:
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    else:
        axes.set_xlim(0, max(axes.get_xlim()[1], 1.02 * (chart.last_x or 0)))
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    axes.set(xlabel=chart.x_title, ylabel=chart.y_title)
    return drawn


def _as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
