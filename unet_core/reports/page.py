"""`report.html`: a run on one page, with its charts as PNG in `plots/` (the extra `report`).

write_report(RunDirectory("runs/membrane"))

All that the page shows comes from files, so nothing of it is believed: the template escapes every
text, and the page forbids itself scripts and anything from elsewhere.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import pathlib
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from unet_core.drawing import charts, pictures
from unet_core.drawing.charts import Line
from unet_core.files import os_errors, read_bytes, write_whole
from unet_core.reports import run_charts
from unet_core.reports.run_files import RunFiles
from unet_core.reports.scores_file import Matrix, Numbers, Scores, class_names
from unet_core.run_directory import RunDirectory
from unet_core.settings import FIELDS, RunConfig

NEEDS = ("jinja2", "matplotlib")
PLOTS = (
    *("curves.png", "classes.png", "training.png", "confusion.png"),
    *("precision_recall.png", "calibration.png", "probabilities.png"),
)
# What of a long list is shown; the whole is in the files that are linked.
_MOST_ROWS, _MOST_NAMES, _MOST_WORST = 200, 300, 10
# Pictures are made smaller than this, in pixels a side.
_SIDE = 560
_PANELS = ("image", "truth", "prediction", "errors")
_COLUMNS = (
    *("dice", "iou", "precision", "recall", "average_precision", "boundary_f1", "hausdorff95"),
)
_COLUMN_TITLES = (
    *("Dice", "IoU", "Precision", "Recall", "Average precision", "Boundary F1", "Hausdorff 95 %"),
)
_LINKED = (
    *("config.json", "about.json", "history.csv", "scores.json", "per_image.csv", "worst.png"),
    *("precision_recall.png", "threshold.json", "encoder_weights.csv", "init_from.csv"),
    *("network.svg", "held_out", "predictions", "plots", "checkpoints", "events"),
)


def missing_packages() -> list[str]:
    """Returns the packages of the extra `report` that are not installed."""
    return [name for name in NEEDS if importlib.util.find_spec(name) is None]


def report_files(run: RunDirectory) -> list[pathlib.Path]:
    """Returns what the report of a run may write in its folder."""
    return [run.report, *(run.plots / name for name in PLOTS)]


def write_report(run: RunDirectory) -> None:
    """Writes `report.html` and `plots/` of a run.

    Raises:
        UserError: If there is no run, one of its files cannot be read, or one is in the way that
            the run has not written.
    """
    files = RunFiles.read(run)
    run.claim(*report_files(run))
    drawn = _plots(files)
    page = render("report.html", _context(files))
    with os_errors(run.path, "the report cannot be written", "Make room, or permit writing."):
        run.plots.mkdir(exist_ok=True)
        for name, content in drawn.items():
            write_whole(run.plots / name, content)
        write_whole(run.report, page.encode())


def render(template: str, context: Mapping[str, Any]) -> str:
    """Returns a page by a template of `templates`, every text in it escaped."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unet_core.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "url": _url, "duration": duration}
    # The markup of a chart is made, and escaped, by Matplotlib.
    environment.filters["svg"] = lambda chart: markupsafe.Markup(charts.svg(chart))
    return environment.get_template(template).render(legend=legend, **context)


def number(value: float | None) -> str:
    """Returns a number as it is read: whole ones in thousands, others with four decimals."""
    if value is None or value != value:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Returns a duration in words."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def legend(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Returns name, colour, marker and dash of the lines of charts, each look once."""
    glyphs = dict(zip(charts.MARKERS, ("", "●", "■", "▲", "◆", "▼", "✚", "✖"), strict=True))
    found: dict[tuple[str, int, bool], dict[str, Any]] = {}
    for line in lines:
        entry = {
            "name": line.name,
            "colour": line.colour % len(charts.COLOURS),
            "marker": glyphs[line.marker],
            "dashed": line.dashed,
        }
        found.setdefault((line.name, line.colour, line.dashed), entry)
    return list(found.values())


def differing_settings(config: RunConfig) -> list[dict[str, str]]:
    """Returns name, value, default and help of the settings that are not at their defaults."""
    default = RunConfig()
    return [
        {
            "name": name,
            "value": setting_text(config[name]),
            "default": setting_text(default[name]),
            "help": field.metadata["help"],
        }
        for name, field in FIELDS.items()
        if config[name] != default[name] and name not in ("mode", "run_dir")
    ]


def setting_text(value: Any) -> str:
    """Returns the value of a setting as it is written in a flag."""
    if value is None or value in ("", ()):
        return "-"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _plots(files: RunFiles) -> dict[str, bytes]:
    """Returns the pictures of `plots/` by their names."""
    groups = {
        "curves.png": run_charts.learning_curves(files),
        "classes.png": run_charts.per_class_curves(files),
        "training.png": run_charts.training_charts(files),
    }
    found = {name: charts.png(group, columns=2) for name, group in groups.items() if group}
    if files.scores is None:
        return found
    matrix, names = Matrix.of(files.scores), class_names(files.scores.scores)
    found["confusion.png"] = charts.confusion_png(
        matrix.counts, matrix.shares, names, matrix.columns
    )
    single = {
        "precision_recall.png": run_charts.precision_recall(files.scores),
        "calibration.png": run_charts.reliability(files.scores),
        "probabilities.png": run_charts.probabilities(files.scores),
    }
    return found | {name: charts.png([chart]) for name, chart in single.items() if chart.lines}


def _context(files: RunFiles) -> dict[str, Any]:
    scores, about = files.scores, files.about
    network = files.run.network
    return {
        "files": files,
        "title": files.name,
        "best_step": files.best_step(),
        "tiles": _tiles(files),
        "curves": run_charts.learning_curves(files),
        "class_keys": [Line(name, (), (), n) for n, name in enumerate(files.classes.names)],
        "class_curves": run_charts.per_class_curves(files),
        "training": run_charts.training_charts(files),
        "history": _history_table(files),
        "scored": _scored(files) if scores else None,
        "frequencies": _frequencies(files),
        "parts": {"training": about.training, "held out": about.held_out} if about else {},
        "most_names": _MOST_NAMES,
        "network": about.network if about else {},
        "drawing": _data_uri("svg+xml", read_bytes(network)) if network.is_file() else None,
        "settings": differing_settings(files.config),
        "links": [name for name in _LINKED if os.path.lexists(files.run.path / name)],
    }


def _tiles(files: RunFiles) -> list[tuple[str, Any, str]]:
    """Returns title, number and remark of what matters most."""
    tiles: list[tuple[str, Any, str]] = []
    monitor, best = files.config.training.monitor, files.best_step()
    if files.scores:
        found = files.scores.scores
        tiles += [
            (title, found[name], remark)
            for name, title, remark in (
                ("dice/mean", "mean Dice", ""),
                ("iou/mean", "mean IoU", ""),
                ("accuracy", "accuracy", "always naming the most frequent class: "),
                ("v_rand/chosen", "V_Rand", "threshold chosen on training images"),
                ("v_info/chosen", "V_Info", "threshold chosen on training images"),
                ("object_f1/0.50", "object F1", "at IoU 0.5"),
            )
            if name in found
        ]
        baseline = number(found.get("majority_baseline"))
        tiles = [(t, v, f"{r}{baseline}" if r.endswith(": ") else r) for t, v, r in tiles]
    if best is not None:
        steps, values = files.column(f"held_out/{monitor}")
        tiles.append((f"best {monitor}", values[steps.index(best)], f"at step {best:,}"))
    return tiles


def _history_table(files: RunFiles) -> dict[str, Any]:
    """Returns columns and rows of the history, every n-th row of a long one, and the last."""
    step = -(-len(files.rows) // _MOST_ROWS) or 1
    rows = files.rows[::step]
    if files.rows and rows[-1] is not files.rows[-1]:
        rows.append(files.rows[-1])
    columns = [name for name in files.columns if any(row.get(name) for row in rows)]
    return {"columns": columns, "rows": rows, "step": step}


def _scored(files: RunFiles) -> dict[str, Any]:
    """Returns what of `scores.json` is shown."""
    assert files.scores is not None
    scores = files.scores
    names, found = class_names(scores.scores), scores.scores
    shown = [c for c in _COLUMNS if any(f"{c}/{name}" in found for name in names)]
    matrix = Matrix.of(scores)
    ranked = _ranked(scores.per_image)
    return {
        "names": names,
        "how": how_scored(scores),
        "swatches": _swatches(files),
        "columns": [(c, _COLUMN_TITLES[_COLUMNS.index(c)]) for c in shown],
        "totals": matrix.totals.tolist(),
        "matrix": matrix,
        "precision_recall": run_charts.precision_recall(scores),
        "reliability": run_charts.reliability(scores),
        "probabilities": run_charts.probabilities(scores),
        "pictures": _pictures(files, ranked),
        "worst": [
            (name, scores.per_image[name], _links(files, name)) for name in ranked[:_MOST_WORST]
        ],
        "worst_columns": _worst_columns(scores, names),
    }


def how_scored(scores: Scores) -> str:
    """Returns how masks were made, in words."""
    parts = [f"{len(scores.per_image)} held-out image(s)"]
    if scores.step is not None:
        parts.append(f"{scores.weights} weights, step {scores.step:,}")
    if scores.tta:
        parts.append(f"test-time augmentation {scores.tta}")
    if scores.threshold:
        parts.append(f"{scores.threshold.name or 'each class'} above {scores.threshold.value:g}")
    parts += [f"{name} above {value:g}" for name, value in scores.thresholds.items()]
    for name in ("fill_holes", "drop_smaller", "keep_largest"):
        if value := getattr(scores, name):
            parts.append(f"{name} {','.join(value)}")
    return "; ".join(parts)


def _swatches(files: RunFiles) -> dict[str, str]:
    """Returns the colour of each class in the pictures, as CSS writes it."""
    ids = np.arange(len(files.classes))[None]
    colours = pictures.mask_picture(ids, files.classes)[0, :, ::-1]
    return {
        name: "#{:02x}{:02x}{:02x}".format(*map(int, colour))
        for name, colour in zip(files.classes.names, colours, strict=True)
    }


def _ranked(per_image: Mapping[str, Numbers]) -> list[str]:
    """Returns the names of the images whose mean Dice is defined, the lowest first."""
    dice = {name: found["dice/mean"] for name, found in per_image.items()}
    known = {name: value for name, value in dice.items() if value is not None}
    return sorted(known, key=lambda name: (known[name], name))


def _worst_columns(scores: Scores, names: Sequence[str]) -> list[str]:
    wanted = ["dice/mean", "iou/mean", "accuracy", *(f"dice/{name}" for name in names)]
    return [name for name in wanted if any(name in found for found in scores.per_image.values())]


def _pictures(files: RunFiles, ranked: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the best, the median and the worst image with its pictures."""
    assert files.scores is not None
    places = {"Best": -1, "Median": len(ranked) // 2, "Worst": 0} if ranked else {}
    chosen: dict[str, str] = {}
    for title, place in places.items():
        chosen.setdefault(ranked[place], title)
    return [
        {
            "title": title,
            "name": name,
            "dice": files.scores.per_image[name]["dice/mean"],
            "panels": _panels(files, name),
            "links": _links(files, name),
        }
        for name, title in chosen.items()
    ]


def _panels(files: RunFiles, name: str) -> list[tuple[str, str]]:
    """Returns title and data URI of the pictures of an image; none if they are not there."""
    path = files.run.path / "held_out" / f"{name}_errors.png"
    try:
        content = np.frombuffer(read_bytes(path), np.uint8)
        row = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        row = None
    if row is None:
        files.missing.append(f"held_out/{path.name} cannot be read, so it is not shown.")
        return []
    panels = pictures.panels_of(row, len(_PANELS))
    if panels is None:
        return [("image, truth, prediction, errors", _picture_uri(row, is_mask=False))]
    return [
        (title, _picture_uri(panel, is_mask=title in ("truth", "prediction")))
        for title, panel in zip(_PANELS, panels, strict=True)
    ]


def _picture_uri(picture: np.ndarray, *, is_mask: bool) -> str:
    """Returns a picture as a data URI, smaller if it is large; masks stay sharp."""
    factor = _SIDE / max(picture.shape[:2])
    if factor < 1:
        kind = cv2.INTER_NEAREST if is_mask else cv2.INTER_AREA
        picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=kind)
    ending, how = (".png", []) if is_mask else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 85])
    _, content = cv2.imencode(ending, picture, how)
    return _data_uri("png" if is_mask else "jpeg", content.tobytes())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _links(files: RunFiles, name: str) -> list[tuple[str, str]]:
    """Returns title and place of the full-size pictures of an image that are there."""
    titles = {"predict": "prediction", "errors": "side by side"}
    places = {title: f"held_out/{name}_{kind}.png" for kind, title in titles.items()}
    return [(t, place) for t, place in places.items() if (files.run.path / place).is_file()]


def _frequencies(files: RunFiles) -> list[dict[str, Any]]:
    """Returns pixels and shares of each class in the parts of the data, as far as known."""
    parts: dict[str, Mapping[str, int]] = {}
    if files.about:
        for title, part in (("training", files.about.training), ("held out", files.about.held_out)):
            if part.class_pixels is not None:
                parts[title] = part.class_pixels
    if "held out" not in parts and files.scores:
        names = class_names(files.scores.scores)
        counts = Matrix.of(files.scores).totals.tolist()
        parts["held out"] = dict(zip(names, counts, strict=True))
    return [
        {
            "title": title,
            "total": sum(pixels.values()),
            "classes": [
                (name, pixels.get(name, 0), pixels.get(name, 0) / max(sum(pixels.values()), 1))
                for name in files.classes.names
            ],
        }
        for title, pixels in parts.items()
    ]


def _url(path: str | pathlib.Path) -> str:
    """Returns a path as a relative link."""
    quoted = urllib.parse.quote(str(path))
    # A first part with a colon would be the scheme of an address.
    return quoted if quoted.startswith(("/", ".")) else f"./{quoted}"
