"""A small SVG canvas: shapes in, one well-formed document out, with no package beyond the standard library.

Coordinates are in pixels, y grows downwards. Text never overflows its box: `fit` cuts it by an estimate of glyph widths that errs on
the wide side, because the viewer's fonts are not known here.
"""

from __future__ import annotations

from xml.etree import ElementTree

SANS = "Inter, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
MONO = "'JetBrains Mono', 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"

INK = "#18212d"
MUTED = "#66748a"
FAINT = "#a7b2c0"
LINE = "#d7dee7"
PANEL = "#f6f8fb"
WHITE = "#ffffff"
REPLICATED = "#93a7bd"
SHARDED = "#2f6fde"
PARTIAL = "#e08a2c"
CLUSTER = "#7a4fd0"
GRID = "#0d9484"
STREAMS = ("#2f6fde", "#5b8def", "#8fb2f6", "#d9586b", "#f09a4f", "#3a9d6e", "#7cc29b", "#a06bd6", "#c9a227", "#4aa3b8")


def text_width(text: str, size: float, mono: bool = False) -> float:
    """Estimated width in pixels of `text` set at `size` pixels."""
    if mono:
        return len(text) * size * 0.605
    wide = sum(1.0 if ch in "MWmw@%—" else 0.36 if ch in "iljt.,:;'|!()[] " else 0.64 for ch in text)
    return wide * size


def fit(text: str, width: float, size: float, mono: bool = False) -> str:
    """`text`, cut with an ellipsis where it would be wider than `width` pixels; empty where not even two letters fit."""
    if text_width(text, size, mono) <= width:
        return text
    while len(text) > 1 and text_width(text + "…", size, mono) > width:
        text = text[:-1]
    return text.rstrip() + "…" if len(text) > 1 else ""


class Canvas:
    """An SVG document under construction."""

    def __init__(self, width: float) -> None:
        self.width = width
        self.root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "font-family": SANS})
        self._define()

    def _define(self) -> None:
        defs = ElementTree.SubElement(self.root, "defs")
        for name, color in (("partial", PARTIAL), ("ghost", FAINT)):
            hatch = ElementTree.SubElement(
                defs,
                "pattern",
                {"id": name, "width": "6", "height": "6", "patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"},
            )
            ElementTree.SubElement(hatch, "rect", {"width": "6", "height": "6", "fill": color, "fill-opacity": "0.22"})
            ElementTree.SubElement(hatch, "rect", {"width": "2.6", "height": "6", "fill": color})
        for name, color in (("cluster", CLUSTER), ("grid", GRID), ("muted", MUTED)):
            marker = ElementTree.SubElement(
                defs,
                "marker",
                {
                    "id": f"arrow-{name}",
                    "viewBox": "0 0 8 8",
                    "refX": "7",
                    "refY": "4",
                    "markerWidth": "7",
                    "markerHeight": "7",
                    "markerUnits": "userSpaceOnUse",
                    "orient": "auto",
                },
            )
            ElementTree.SubElement(marker, "path", {"d": "M0,0.6 L7.4,4 L0,7.4 Z", "fill": color})

    def _add(self, tag: str, attrs: dict[str, object], title: str | None = None) -> ElementTree.Element:
        clean = {name.replace("_", "-"): _number(value) for name, value in attrs.items() if value is not None}
        element = ElementTree.SubElement(self.root, tag, clean)
        if title:
            ElementTree.SubElement(element, "title").text = title
        return element

    def rect(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        fill: str = "none",
        stroke: str | None = None,
        rx: float = 0,
        title: str | None = None,
        **attrs: object,
    ) -> None:
        """A rectangle; `title` is what a browser shows on hover; further SVG attributes with `_` for `-`."""
        self._add(
            "rect",
            {"x": x, "y": y, "width": max(w, 0), "height": max(h, 0), "fill": fill, "stroke": stroke, "rx": rx or None, **attrs},
            title,
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        fill: str = INK,
        weight: int | None = None,
        anchor: str | None = None,
        mono: bool = False,
        width: float | None = None,
        **attrs: object,
    ) -> None:
        """A line of text with its baseline at y, cut to `width` pixels when given."""
        if width is not None:
            text = fit(text, width, size, mono)
        if not text:
            return
        family = MONO if mono else None
        element = self._add(
            "text",
            {"x": x, "y": y, "font_size": size, "fill": fill, "font_weight": weight, "text_anchor": anchor, "font_family": family, **attrs},
        )
        element.text = text

    def path(self, d: str, stroke: str = LINE, width: float = 1, fill: str = "none", title: str | None = None, **attrs: object) -> None:
        """A path in SVG's own notation."""
        self._add("path", {"d": d, "stroke": stroke, "stroke_width": width, "fill": fill, **attrs}, title)

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str = LINE, width: float = 1, **attrs: object) -> None:
        """A straight line."""
        self._add("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "stroke": stroke, "stroke_width": width, **attrs})

    def circle(self, x: float, y: float, r: float, fill: str = INK, stroke: str | None = None, **attrs: object) -> None:
        """A disc."""
        self._add("circle", {"cx": x, "cy": y, "r": r, "fill": fill, "stroke": stroke, **attrs})

    def pill(self, x: float, y: float, text: str, color: str, size: float = 10.5, mono: bool = True) -> float:
        """A rounded label with its left edge at x and its middle at y; returns its width."""
        w = text_width(text, size, mono) + 12
        self.rect(x, y - size * 0.8, w, size * 1.6, fill=color, rx=size * 0.8, fill_opacity=0.13)
        self.text(x + w / 2, y + size * 0.36, text, size, color, 600, "middle", mono)
        return w

    def heading(self, x: float, y: float, text: str, detail: str = "") -> None:
        """A section's title and, in grey after it, one line that says how to read the section."""
        self.text(x, y, text, 17, INK, 700)
        self.text(x + text_width(text, 17) + 22, y, detail, 12, MUTED, width=self.width - x * 2 - text_width(text, 17) - 22)

    def document(self, height: float) -> str:
        """The finished document, `height` pixels high."""
        self.root.set("width", _number(self.width))
        self.root.set("height", _number(height))
        self.root.set("viewBox", f"0 0 {_number(self.width)} {_number(height)}")
        paper = ElementTree.Element("rect", {"width": _number(self.width), "height": _number(height), "fill": WHITE})
        self.root.insert(1, paper)
        ElementTree.indent(self.root, " ")
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(self.root, encoding="unicode") + "\n"


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
