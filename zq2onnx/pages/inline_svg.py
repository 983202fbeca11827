"""Figures as inline SVG whose colours follow the page's theme, and whose text stays text."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure

from zq2onnx.pages.figure import TIP, VARIABLES


def to_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg>` element to be put into a page.

    Args:
        figure: drawn in `house_style`, and saved in it.
        name: distinct in the page; the element's id, and the beginning of every id in it.
        label: what the figure shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ET.fromstring(
        re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\N{REPLACEMENT CHARACTER}", buffer.getvalue())
    )
    _strip_namespaces(root)
    for unused in [*root.findall("metadata"), *root.findall("defs[style]")]:  # the page has its own style
        root.remove(unused)
    _tidy(root, name)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "class": "plot",
        "id": name,
        "role": "img",
        "aria-label": label,
    }
    return ET.tostring(root, encoding="unicode")


def _strip_namespaces(root: ET.Element) -> None:
    """HTML knows `<svg>` and what is in it by their plain names."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}


def _tidy(root: ET.Element, name: str) -> None:
    """Theme the colours, show tips, round numbers, and keep only the ids that are referred to."""
    text = ET.tostring(root, encoding="unicode")
    used = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([\w.-]+)', text))
    ids = {identity: f"{name}-{index}" for index, identity in enumerate(used)}
    for element in root.iter():
        element.text, element.tail = (element.text or "").strip(), ""
        for key, value in element.attrib.items():
            element.attrib[key] = _tidy_attribute(key, value, ids)
        identity = element.attrib.pop("id", "")
        if identity.startswith(TIP):
            title = ET.Element("title")
            title.text = identity.removeprefix(TIP)
            element.insert(0, title)
        elif identity in ids:
            element.attrib["id"] = ids[identity]
    for element in root.iter("g"):
        _share_style(element)


def _share_style(group: ET.Element) -> None:
    """Say once what all the marks of a group look like: a page of many layers has thousands."""
    styles = {mark.get("style", "") if mark.tag == "use" else "" for mark in group}
    shared = styles.pop() if len(group) > 1 and len(styles) == 1 else ""
    if shared and not re.search(r"(^|; )opacity", shared):  # the one property here that is not inherited
        group.set("style", shared)
        for mark in group:
            del mark.attrib["style"]


def _tidy_attribute(key: str, value: str, ids: Mapping[str, str]) -> str:
    if key == "style":
        value = re.sub("|".join(VARIABLES), lambda match: VARIABLES[match[0]], value)
        return re.sub(r"font-family:[^;]*(; )?", "", value)  # the page's own
    if key in ("href", "clip-path"):
        return re.sub(r"(?<=#)[\w.-]+", lambda match: ids[match[0]], value)
    if key in ("d", "x", "y", "width", "height", "transform", "points"):
        return re.sub(r"-?\d+\.\d+", lambda match: _round(match[0]), value).strip()
    return value


def _round(number: str) -> str:
    """A coordinate to a hundredth.

    >>> _round("12.3456"), _round("7.0000001"), _round("-0.001")
    ('12.35', '7', '0')
    """
    return f"{round(float(number), 2) + 0.0:g}"  # negative zero plus zero is zero
