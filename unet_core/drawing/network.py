"""A network as an SVG picture: a box for each stage, a row for each resolution, arrows between.

    svg = draw_network(model, 256, 256)      # text of an .svg file

It needs no other program, and scales to any size. The darker a box, the more of the floating-point
operations are in it; its tooltip lists its layers.
"""

from __future__ import annotations

import dataclasses
import re
from xml.etree import ElementTree

import keras

from unet_core.models.flops import Shape, work_of
from unet_core.models.stages import Stage, stages_of

# All in pixels of the unscaled picture. Boxes of neighbouring columns overlap, and stand in
# different rows: an arrow between them is a vertical line.
_BOX_WIDTH, _BOX_HEIGHT = 140, 62
_COLUMN, _ROW = 100, 116
_LEFT, _TOP, _MARGIN = 74, 96, 24
_MOST_LETTERS = 18
_INK, _FAINT, _SKIP = "#1f2933", "#52606d", "#c2571a"
_LIGHT, _DARK = (240, 246, 252), (128, 178, 232)


@dataclasses.dataclass(frozen=True)
class _Box:
    column: int
    row: int
    lines: tuple[str, str, str]
    about: str  # Empty for the image and the logits, which are no stages.
    fill: str

    @property
    def left(self) -> int:
        return _LEFT + self.column * _COLUMN

    @property
    def top(self) -> int:
        return _TOP + self.row * _ROW


def draw_network(model: keras.Model, height: int, width: int) -> str:
    """Returns the SVG picture of a network for an image of this size.

    Args:
        model: A functional or sequential network from [B, H, W, C].
        height: Pixels of the image, for the sizes that are shown.
        width: Pixels of the image.

    Raises:
        ValueError: As `unet_core.models.flops.work_of`.
    """
    stages, of_outputs = stages_of(model, work_of(model, 1, height, width))
    boxes, arrows = _place(model, stages, of_outputs, height, width)
    columns = max(box.column for box in boxes) + 1
    rows = max(box.row for box in boxes) + 1
    total_width = _LEFT + (columns - 1) * _COLUMN + _BOX_WIDTH + _MARGIN
    total_height = _TOP + (rows - 1) * _ROW + _BOX_HEIGHT + _MARGIN
    root = ElementTree.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {total_width} {total_height}",
        width=str(total_width),
        height=str(total_height),
        attrib={"font-family": "Helvetica, Arial, sans-serif"},
    )
    _add_arrowheads(root)
    _add(root, "rect", width=total_width, height=total_height, fill="white")
    _add_title(root, model, stages)
    least = min(stage.level for stage in stages)
    for row in range(rows):
        level = row + min(least, 0)
        text = f"1/{2**level}" if level > 0 else f"{2**-level}/1"
        middle = _TOP + row * _ROW + _BOX_HEIGHT // 2
        _add_text(root, _MARGIN, middle + 4, text, size=12, fill=_FAINT)
    for source, target in arrows:
        _add_arrow(root, boxes, source, target)
    for box in boxes:
        _add_box(root, box)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _place(
    model: keras.Model, stages: list[Stage], of_outputs: list[int], height: int, width: int
) -> tuple[list[_Box], list[tuple[int, int]]]:
    """Returns the boxes, the image first, and from which to which arrows lead."""
    lowest = min(0, *(stage.level for stage in stages)) if stages else 0
    taken: set[tuple[int, int]] = set()

    def column_in(row: int, first: int) -> int:
        while any((row, near) in taken for near in (first - 1, first, first + 1)):
            first += 1
        taken.add((row, first))
        return first

    total = sum(stage.flops for stage in stages)
    channels = model.inputs[0].shape[-1]
    image = ("image", f"{channels} × {height}×{width}", "")  # noqa: RUF001
    boxes = [_Box(column_in(-lowest, 0), -lowest, image, "", "white")]
    arrows = []
    for number, stage in enumerate(stages):
        sources = [source + 1 for source in stage.sources]
        first = 1 + max((boxes[source].column for source in sources), default=0)
        row = stage.level - lowest
        share = stage.flops / total if total else 0
        boxes.append(
            _Box(column_in(row, first), row, _lines(stage, share), _about(stage), _shade(share))
        )
        arrows += [(source, number + 1) for source in sources]
    for output, number in zip(model.outputs, of_outputs, strict=True):
        source, stage = boxes[number + 1], stages[number]
        lines = ("logits", f"{output.shape[-1]} × {_size(stage.shape)}", "")  # noqa: RUF001
        column = column_in(source.row, source.column + 1)
        boxes.append(_Box(column, source.row, lines, "", "white"))
        arrows.append((number + 1, len(boxes) - 1))
    return boxes, arrows


def _lines(stage: Stage, share: float) -> tuple[str, str, str]:
    count = len(stage.layers_with_weights)
    layers = f"{count} layer{'s' * (count != 1)}" if count else "no weights"
    shape = f"{stage.shape[-1]} × {_size(stage.shape)}"  # noqa: RUF001
    return stage.name, shape, f"{layers} · {share:.0%}" if share else layers


def _size(shape: Shape) -> str:
    return "×".join(map(str, shape[1:-1])) or "1"  # noqa: RUF001


def _about(stage: Stage) -> str:
    """Returns one line for each layer that has weights."""
    lines = [
        f"{layer.name} ({type(layer).__name__}, {layer.count_params():,} parameters)"
        for layer in stage.layers_with_weights
    ]
    return "\n".join(lines) or "no layer has weights"


def _shade(share: float) -> str:
    # The square root, so that small shares differ too.
    parts = (
        round(light + (dark - light) * share**0.5)
        for light, dark in zip(_LIGHT, _DARK, strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in parts)


def _add_title(root: ElementTree.Element, model: keras.Model, stages: list[Stage]) -> None:
    flops = sum(stage.flops for stage in stages)
    text = f"{model.count_params():,} parameters, {flops / 1e9:,.3g} GFLOP for one image"
    _add_text(root, _MARGIN, 32, model.name, size=17, weight="bold")
    _add_text(root, _MARGIN, 52, text, size=12, fill=_FAINT)


def _add_box(root: ElementTree.Element, box: _Box) -> None:
    group = _add(root, "g")
    _add(group, "title").text = _printable(f"{box.lines[0]}\n{box.about}".strip())
    _add(
        group,
        "rect",
        x=box.left,
        y=box.top,
        width=_BOX_WIDTH,
        height=_BOX_HEIGHT,
        rx=6,
        fill=box.fill,
        stroke=_INK,
    )
    lines = [line for line in box.lines if line]
    first = box.top + _BOX_HEIGHT // 2 + 4 - 9 * (len(lines) - 1)
    looks = (("bold", _INK), ("normal", _INK), ("normal", _FAINT))
    for number, (line, (weight, fill)) in enumerate(zip(lines, looks, strict=False)):
        _add_text(
            group,
            box.left + _BOX_WIDTH // 2,
            first + 18 * number,
            _shortened(line),
            weight=weight,
            anchor="middle",
            fill=fill,
        )


def _add_arrow(root: ElementTree.Element, boxes: list[_Box], source: int, target: int) -> None:
    """Draws a line between two boxes: straight if it meets no other box, else a curve."""
    a, b = boxes[source], boxes[target]
    distance = b.column - a.column
    right, left = a.left + _BOX_WIDTH, b.left
    middles = [box.top + _BOX_HEIGHT // 2 for box in (a, b)]
    between = any(box.row == a.row == b.row and a.column < box.column < b.column for box in boxes)
    if a.row != b.row and distance == 1:
        x = (right + left) // 2
        ends = (a.top + _BOX_HEIGHT, b.top) if b.row > a.row else (a.top, b.top + _BOX_HEIGHT)
        path = f"M{x} {ends[0]} V{ends[1]}"
    elif a.row == b.row and not between:
        path = f"M{right} {middles[0]} H{left}"
    elif a.row == b.row:
        start, end = a.left + 2 * _BOX_WIDTH // 3, b.left + _BOX_WIDTH // 3
        height = a.top - 20 - 4 * distance
        path = f"M{start} {a.top} C{start} {height} {end} {height} {end} {b.top}"
    else:
        bend = (right + left) // 2
        path = f"M{right} {middles[0]} C{bend} {middles[0]} {bend} {middles[1]} {left} {middles[1]}"
    skips = bool(a.about and b.about) and (a.row == b.row or distance > 1)
    kind = ("skip", _SKIP) if skips else ("next", _INK)
    style = {"marker-end": f"url(#{kind[0]})", "stroke-width": "1.5"}
    _add(root, "path", d=path, fill="none", stroke=kind[1], **style)


def _add_arrowheads(root: ElementTree.Element) -> None:
    definitions = _add(root, "defs")
    for name, colour in (("next", _INK), ("skip", _SKIP)):
        marker = _add(
            definitions,
            "marker",
            id=name,
            viewBox="0 0 8 8",
            refX=8,
            refY=4,
            markerWidth=8,
            markerHeight=8,
            markerUnits="userSpaceOnUse",
            orient="auto",
        )
        _add(marker, "path", d="M0 0 L8 4 L0 8 z", fill=colour)


def _add(parent: ElementTree.Element, tag: str, **attributes: object) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, {key: str(v) for key, v in attributes.items()})


def _add_text(
    parent: ElementTree.Element,
    x: int,
    y: int,
    text: str,
    *,
    size: int = 13,
    weight: str = "normal",
    anchor: str = "start",
    fill: str = _INK,
) -> None:
    style = {"font-size": size, "font-weight": weight, "text-anchor": anchor, "fill": fill}
    _add(parent, "text", x=x, y=y, **style).text = _printable(text)


def _shortened(text: str) -> str:
    if len(text) <= _MOST_LETTERS:
        return text
    half = _MOST_LETTERS // 2
    return f"{text[:half]}…{text[-half + 1 :]}"


def _printable(text: str) -> str:
    """Returns `text` without the characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
