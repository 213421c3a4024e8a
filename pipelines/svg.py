"""A figure as SVG for the inside of a page: its colours follow the page's theme, its text stays text."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from tsde.plot import BLUE, FAINT, GRID, INK, PALETTE, on_white

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TINTS = (20, 35, 50)  # per cent of blue in the bands of a fan chart with up to three levels
VARIABLES = {"ink": INK, "faint": FAINT, "grid": GRID, "paper": "#ffffff"} | {
    f"series-{number}": colour for number, colour in enumerate(PALETTE, start=1)
}
"""CSS custom properties that a page defines, and the colour of `tsde.plot` that each stands for; beside them the tints
`band-20`, `band-35` and `band-50`."""
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # in XML, or by taste
_FONT = re.compile(r"font-family:[^;]*;?\s*")
_HEX = re.compile(r"#[0-9a-f]{6}\b")


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element without a namespace, as HTML wants it; equal figures give equal text.

    Matplotlib's settings are changed while it draws.

    Args:
        name: starts the ids inside; each figure of a page has its own.
        title, description: what a person hears who cannot see it.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of matplotlib's font; the reader's will have it
        figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(printable(buffer.getvalue()))
    _tidy(root, name)
    head = {"title": title, "desc": description}
    for place, (tag, text) in enumerate(head.items()):
        element = ElementTree.Element(tag, id=f"{name}-{tag}")
        element.text = text
        root.insert(place, element)
    size = {key: root.attrib[key] for key in ("viewBox", "width", "height")}
    root.attrib = {**size, "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    return ElementTree.tostring(root, encoding="unicode")


def printable(text: str) -> str:
    """The text with a mark in place of every control character, which neither SVG nor a reader can use."""
    return _FORBIDDEN.sub("\ufffd", text)


def _tidy(root: ElementTree.Element, name: str) -> None:
    """Drop namespaces, metadata, styles of the whole document, fonts, and ids that nothing refers to."""
    colours = {colour.lower(): f"var(--{variable})" for variable, colour in VARIABLES.items()}
    colours |= {_as_hex(on_white(BLUE, share / 100)): f"var(--band-{share})" for share in _TINTS}
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        if element.tag == "g":
            element.attrib.pop("id", None)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if key == "id":
                value = f"{name}-{value}"
            elif key == "style":
                value = _HEX.sub(lambda found: colours.get(found[0], found[0]), _FONT.sub("", value))
            elif key.endswith("href") or value.startswith("url(#"):
                value = value.replace("#", f"#{name}-")
            element.set(key.partition("}")[2] or key, value)


def _as_hex(colour: tuple[float, float, float]) -> str:
    from matplotlib.colors import to_hex

    return to_hex(colour)
