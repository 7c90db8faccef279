"""Every picture is a PNG of sensible size, holds what its function returns, and leaves nothing behind."""

import itertools
import math

import flax.linen as nn
import jax.numpy as jnp
import matplotlib
import matplotlib.image
import numpy as np
import pytest

from deeplearn import pictures
from deeplearn.errors import UserError
from deeplearn.pictures import graph, images, style
from deeplearn.pictures.fold import Box

CLASSES = ["airplane", "automobile", "bird"]
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (20, 8, 8, 3))
LABELS = np.arange(20) % 3
LOGITS = RNG.normal(size=(20, 3))
MATRIX = np.array([[8, 1, 0], [2, 6, 2], [0, 0, 0]])
RECORDS = [{"step": s, "loss": 1 / s, "learning_rate": 0.1, "seconds": s, "validation/loss": 2 / s} for s in (1, 2, 3)]
SERIES = np.sin(np.arange(10) + np.arange(5)[:, None])


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x) + x


DRAWN = {
    "samples": lambda path: pictures.samples(path, IMAGES, LABELS, CLASSES),
    "samples, grey": lambda path: pictures.samples(path, IMAGES[..., :1], LABELS, CLASSES),
    "samples, one": lambda path: pictures.samples(path, IMAGES[:1, :, :, 0], LABELS[:1], CLASSES),
    "samples, flat": lambda path: pictures.samples(path, np.zeros((3, 8, 8), np.uint8), LABELS[:3], CLASSES),
    "wrong predictions": lambda path: pictures.wrong_predictions(path, IMAGES, LABELS, LOGITS, CLASSES),
    "no mistakes": lambda path: pictures.wrong_predictions(path, IMAGES, LABELS, np.eye(3)[LABELS], CLASSES),
    "confusion matrix": lambda path: pictures.confusion_matrix(path, MATRIX, CLASSES),
    "confusion matrix, 100": lambda path: pictures.confusion_matrix(path, np.eye(100), range(100)),
    "confusion matrix, nothing": lambda path: pictures.confusion_matrix(path, np.zeros((2, 2)), "ab"),
    "curves": lambda path: pictures.curves(path, RECORDS),
    "curves, nothing": lambda path: pictures.curves(path, []),
    "sequences": lambda path: pictures.sequences(path, SERIES, SERIES[:, -1], SERIES[:, -1]),
    "sequences, all": lambda path: pictures.sequences(path, SERIES[..., None], SERIES, SERIES),
    "network": lambda path: pictures.network(path, Residual(), jnp.zeros((1, 4))),
}


@pytest.mark.parametrize("name", DRAWN)
def test_is_a_png_and_leaves_nothing_behind(tmp_path, name):
    before = dict(matplotlib.rcParams)
    DRAWN[name](tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(tmp_path / "a.png")
    assert pixels.ndim == 3 and 150 < pixels.shape[0] < 2500 and 150 < pixels.shape[1] < 2500
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 3
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", DRAWN)
def test_a_missing_directory_is_one_line(tmp_path, name):
    with pytest.raises(UserError, match="cannot write .*a.png: No such file or directory"):
        DRAWN[name](tmp_path / "none" / "a.png")


def test_a_full_disk(tmp_path):
    (tmp_path / ".a.new.png").symlink_to("/dev/full")
    with pytest.raises(UserError, match="a.png: No space left on device"):
        DRAWN["curves"](tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_samples_shows_the_images(tmp_path):
    """The colour of each tile's middle is the image's, stretched to all of black to white."""
    shades = np.linspace(-2, 3, 4)
    tiles = np.broadcast_to(shades[:, None, None], (4, 8, 8))
    assert pictures.samples(tmp_path / "a.png", tiles, [2, 1, 0, 0], CLASSES, columns=2) == [
        "bird", "automobile", "airplane", "airplane",
    ]  # fmt: skip
    pixels = matplotlib.image.imread(tmp_path / "a.png")[..., 0]
    height, width = pixels.shape
    middles = [pixels[int(y * height), int(x * width)] for y in (0.35, 0.85) for x in (0.25, 0.75)]
    np.testing.assert_allclose(middles, (shades + 2) / 5, atol=0.01)


def test_wrong_predictions_are_the_surest_mistakes(tmp_path):
    mistakes = pictures.wrong_predictions(tmp_path / "a.png", IMAGES, LABELS, LOGITS, CLASSES, columns=2, rows=3)
    odds = np.exp(LOGITS)
    probabilities = odds / odds.sum(1, keepdims=True)
    wrong = [i for i in range(20) if probabilities[i].argmax() != LABELS[i]]
    wrong = sorted(wrong, key=lambda i: -probabilities[i].max())[:6]
    assert [m.index for m in mistakes] == wrong
    for m in mistakes:
        assert (m.true, m.predicted) == (LABELS[m.index], probabilities[m.index].argmax())
        assert m.probability == pytest.approx(probabilities[m.index].max())


def test_huge_logits_do_not_overflow(tmp_path):
    (mistake,) = pictures.wrong_predictions(tmp_path / "a.png", IMAGES[:1], [0], [[0, 1e5, 0]], CLASSES)
    assert mistake == images.Mistake(0, 0, 1, 1.0)


def test_a_label_that_is_no_class_is_not_called_one(tmp_path):
    """An ignored label: -1 would be the last class, -100 an error."""
    names = pictures.samples(tmp_path / "a.png", IMAGES[:4], [0, -1, -100, 3], CLASSES)
    assert names == ["airplane", "-1", "-100", "3"]
    logits = np.eye(3)[[1, 0, 0, 0]]
    mistakes = pictures.wrong_predictions(tmp_path / "a.png", IMAGES[:4], [0, -1, -100, 3], logits, CLASSES)
    assert [m.index for m in mistakes] == [0]


def test_confusion_matrix_shares(tmp_path):
    shares = pictures.confusion_matrix(tmp_path / "a.png", MATRIX, CLASSES)
    np.testing.assert_allclose(shares, [[8 / 9, 1 / 9, 0], [0.2, 0.6, 0.2], [0, 0, 0]])


def test_curves_has_a_panel_for_each_metric(tmp_path):
    records = [
        {"step": 1, "gradient_norm": 3.0, "learning_rate": 0.1, "loss": 2.0, "seconds": 1.0},
        {"step": 2, "gradient_norm": 2.0, "learning_rate": 0.1, "loss": math.nan, "validation/loss": 1.0},
        {"step": 3, "learning_rate": 0.2, "loss": 1.0, "validation/accuracy": 0.5},
    ]
    panels = pictures.curves(tmp_path / "a.png", records)
    assert list(panels) == ["loss", "accuracy", "gradient_norm", "learning_rate"]
    assert list(panels["loss"]) == ["training", "validation"]
    np.testing.assert_equal(panels["loss"]["training"], ([1, 2, 3], [2, math.nan, 1]))
    assert panels["loss"]["validation"] == ([2], [1.0])
    assert panels["accuracy"] == {"validation": ([3], [0.5])}
    assert panels["learning_rate"] == {"training": ([1, 2, 3], [0.1, 0.1, 0.2])}


def test_layer_table():
    text = pictures.layer_table(Residual(), jnp.zeros((1, 4)))
    assert "Dense_0" in text and "float32[4,4]" in text and "Total Parameters: 20" in text
    assert "\x1b" not in text


# The layout of the network.


def chain(*kinds, skips=(), repeat=None):
    """Boxes one after another, with skips (from, to), and a repeated stretch."""
    boxes = []
    for i, kind in enumerate(kinds):
        inputs = tuple(j for j, k in skips if k == i) + ((i - 1,) if i else ())
        folded = {"repeat": 3, "group": 1} if repeat and i in range(*repeat) else {}
        size = 1000 if kind == "layer" else 0
        boxes.append(Box(kind, kind, "", f"block_0/{kind}_{i}", (8, 8, 4), size, inputs, **folded))
    return boxes


LAYOUTS = {
    "short": chain("input", "layer", "function", "layer"),
    "residual": chain("input", *["layer"] * 6, skips=[(1, 3), (3, 5), (1, 5)]),
    "long": chain("input", *["layer", "function"] * 40),
    "framed": chain("input", *["layer"] * 30, skips=[(3, 6), (6, 9)], repeat=(4, 10)),
    "u-net": chain("input", *["layer"] * 40, skips=[(i, 40 - i) for i in range(1, 15)]),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    boxes = LAYOUTS[request.param]
    columns, lanes = graph._columns(boxes), graph._lanes(boxes)
    return boxes, columns, lanes, graph._places(boxes, columns, pitch=5.0)


def test_boxes_stand_below_one_another(layout):
    _, columns, _, places = layout
    assert columns == sorted(columns) and set(columns) == set(range(max(columns) + 1))
    for above, below in itertools.pairwise(places):
        assert below.column > above.column or below.y >= above.y + above.height + 0.9 * graph.GAP
    assert max(place.y for place in places) < 1.5 * graph.COLUMN


def test_long_networks_have_columns():
    assert max(graph._columns(LAYOUTS["short"])) == 0
    assert max(graph._columns(LAYOUTS["long"])) >= 1


def test_frames_are_not_cut(layout):
    boxes, columns, _, _ = layout
    assert len({column for box, column in zip(boxes, columns, strict=True) if box.group}) <= 1


def test_arrows_in_one_lane_do_not_touch(layout):
    _, _, lanes, _ = layout
    for (a, b), (c, d) in itertools.combinations(lanes, 2):
        assert lanes[a, b] != lanes[c, d] or b < c or d < a


def test_arrows_go_from_box_to_box(layout):
    boxes, _, lanes, places = layout
    pairs = [(j, i) for i, box in enumerate(boxes) for j in box.inputs]
    ways = list(graph._ways(boxes, places, lanes))
    assert len(ways) == len(pairs)
    for (j, i), (corners, passes) in zip(pairs, ways, strict=True):
        assert passes == (j != i - 1)
        for (x, y), k in ((corners[0], j), (corners[-1], i)):
            left, right = graph._side(boxes[k], places[k])
            top, bottom = places[k].y, places[k].y + places[k].height
            on_edge = x in (left, right) or y in (top, bottom)
            assert on_edge and left <= x <= right and top <= y <= bottom


def test_no_arrow_runs_through_a_box(layout):
    boxes, _, lanes, places = layout
    for corners, _ in graph._ways(boxes, places, lanes):
        for (x0, y0), (x1, y1) in itertools.pairwise(corners):
            for box, place in zip(boxes, places, strict=True):
                left, right = graph._side(box, place)
                top, bottom = place.y, place.y + place.height
                assert not (max(x0, x1) > left + 1e-6 and min(x0, x1) < right - 1e-6
                            and max(y0, y1) > top + 1e-6 and min(y0, y1) < bottom - 1e-6)  # fmt: skip


def test_names_are_cut_by_whole_parts():
    name = "encoder/block_11/attention/query"
    for width, expected in ((9, name), (1.3, "…/attention/query"), (0.5, "…/query"), (0.1, "")):
        assert graph._shorten(name, width) == expected
        assert style.text_width(expected, 7) <= width


def test_a_text_is_as_wide_as_it_is_drawn(tmp_path):
    """Measured on the picture: what decides whether a text fits its box."""
    for text, weight in (("MultiHeadDotProductAttention", "bold"), ("1,234,567 parameters", "normal")):
        with style.picture(tmp_path / "a.png", 5, 1, layout=None) as figure:
            figure.text(0.1, 0.5, text, fontsize=9, weight=weight)
        dark = matplotlib.image.imread(tmp_path / "a.png")[..., 0].min(axis=0) < 0.8
        (drawn,) = np.ptp(np.flatnonzero(dark), keepdims=True) / style.DOTS
        assert drawn <= style.text_width(text, 9, weight) <= 1.1 * drawn
