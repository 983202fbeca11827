"""Figures: their axes, labels and colours, and what is said where libraries are missing."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

import zq2onnx.pages
from zq2onnx.errors import UserError
from zq2onnx.pages import require_libraries
from zq2onnx.pages.figure import SERIES, house_style, new_figure
from zq2onnx.pages.inline_svg import to_svg
from zq2onnx.pages.labels import SIZE, Labels, text_width
from zq2onnx.pages.rows import short_names
from zq2onnx.pages.scales import linear_part, scale_axis

STYLE = (Path(zq2onnx.pages.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "linear_to", "scale"),
    [
        ([1.0, 2.0, 5.0], None, "linear"),
        ([0.001, 2.0], None, "log"),
        ([0.0, 0.001, 2.0], None, "symlog"),
        ([-0.02, 0.3], 0.1, "linear"),
        ([-0.02, 0.3, 80.0], 0.1, "symlog"),
        ([3.0, 800.0], 0.1, "log"),
        ([0.0, 0.0], None, "linear"),
        ([7.0], None, "linear"),
    ],
)
def test_an_axis_is_logarithmic_where_the_range_asks_for_it(
    values: list[float], linear_to: float | None, scale: str
) -> None:
    with house_style():
        _, axes = new_figure(200)
        assert scale_axis(axes, "y", values, linear_to) == (scale != "linear")
        assert axes.get_yscale() == scale
        assert axes.get_xscale() == "linear"


def test_an_axis_tells_up_to_where_it_is_linear() -> None:
    for values, linear_to, told in (
        ([-0.02, 0.3, 80.0], 0.1, 0.1),
        ([-1e-9, 0.001, 2.0], None, 2e-4),
        ([0.001, 2.0], None, None),
        ([1.0, 2.0], None, None),
    ):
        with house_style():
            _, axes = new_figure(200)
            scale_axis(axes, "y", values, linear_to)
            assert linear_part(axes) == told


def test_labels_keep_off_points_and_each_other() -> None:
    with house_style():
        figure, axes = new_figure(300)
        points = [(float(x), float(y)) for x in range(8) for y in range(8)]
        axes.plot(*zip(*points, strict=True), "o")
        figure.draw_without_rendering()
        labels = Labels(axes, points)
        written = [point for point in points if labels.beside(*point, f"a long label {point[0]:.0f}")]
        boxes = [text.get_window_extent() for text in axes.texts]
    assert 0 < len(written) < len(points)
    assert len(boxes) == len(written)
    for index, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:index]) == 0
        assert not any(box.contains(*axes.transData.transform(point)) for point in points)


def test_a_lone_label_is_written_beside_its_point_within_the_frame() -> None:
    with house_style():
        figure, axes = new_figure(300)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        figure.draw_without_rendering()
        assert Labels(axes, [(0.99, 0.5)]).beside(0.99, 0.5, "at the edge")
        box = axes.texts[0].get_window_extent()
        x, y = axes.transData.transform((0.99, 0.5))
        assert box.x1 < x < box.x1 + 12 and box.y0 < y < box.y1
        assert not Labels(axes, []).beside(0.5, 0.5, "wider than the whole figure " * 5)


def test_names_lose_what_they_share_and_are_never_too_wide() -> None:
    long = "layers." + "a_very_long_module_name" * 5
    names = short_names([f"{long}.q", f"{long}.k", "other.fc1"])
    assert names[0].startswith("…") and names[0].endswith(".q")
    assert all(text_width(name, SIZE) <= 130 for name in names)
    assert short_names(["a.b", "a.b"]) == ["b", "b"]
    assert short_names(["node_MatMul_98", "node_MatMul_99"]) == ["node_MatMul_98", "node_MatMul_99"]


def test_ids_of_two_figures_differ() -> None:
    drawings = []
    for name in ("one", "two"):
        with house_style():
            figure, axes = new_figure(200)
            axes.plot([1, 2, 3], "o")
            drawings.append(to_svg(figure, name, "three points"))
    first, second = (set(re.findall(r'id="([^"]+)"', drawing)) for drawing in drawings)
    assert len(first) > 1 and not first & second


def luminance(colour: str) -> float:
    """Of a colour as `#rrggbb`, as WCAG 2 defines it."""
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: str, second: str) -> float:
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def themes() -> list[dict[str, str]]:
    """The colours of the light theme and of the dark one."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, flags=re.S)[:2]
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def test_both_themes_have_contrast_enough() -> None:
    light, dark = themes()
    assert light.keys() == dark.keys()
    assert luminance(light["page"]) > 0.8 > 0.05 > luminance(dark["page"])
    for theme in (light, dark):
        for ground in ("page", "surface"):
            for text in ("ink", "muted", "link"):
                assert contrast(theme[text], theme[ground]) >= 4.5
        for tone in ("good", "fair", "poor"):
            assert contrast(theme[tone], theme[f"{tone}-tint"]) >= 4.5
            assert contrast(theme["ink"], theme[f"{tone}-tint"]) >= 4.5
        for index in range(SERIES):
            assert contrast(theme[f"series-{index + 1}"], theme["surface"]) >= 3  # of marks, not text


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_a_missing_library_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = importlib.import_module

    def absent(module: str) -> ModuleType:
        if module == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return genuine(module)

    require_libraries()
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=rf"needs {name}; pip install 'zq2onnx\[report\]'"):
        require_libraries()
