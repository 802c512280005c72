import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("agg")

from matplotlib.figure import Figure

from lnlsr_book import plots, report
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.store import StoredRun

SENTENCES = {"caption": "Two lines that rise and fall.", "alt": "Two lines by epoch, both rising."}


def stored(method, seed=1, profile="smoke", accuracy=(10.0, 20.0, 30.0)):
    spec = make_spec("mnist", method, 0.8, profile=profile, seed=seed)
    history = {"test_accuracy": list(accuracy), "sparse_rate": [0.1, 0.2, 0.3]}
    return StoredRun(spec, history, {"precision": "float32"}, [[1]])


def axes():
    panel = Figure().subplots()
    panel.set_ylim(0, 100)
    return panel


def test_curves_are_one_long_table_that_names_each_run():
    table = plots.curves([stored("ce"), stored("ce_sr", seed=2)])
    assert list(table.epoch) == [1, 2, 3, 1, 2, 3]
    assert list(table.method.unique()) == ["ce", "ce_sr"]
    assert set(table[table.method == "ce_sr"].seed) == {2}
    assert set(table.id) == {stored("ce").spec.id, stored("ce_sr", seed=2).spec.id}
    assert {"precision", "profile", "test_accuracy", "sparse_rate"} <= set(table)
    assert plots.curves([]).empty


def test_a_tables_data_are_one_row_a_run():
    table = plots.finals([stored("ce"), stored("ce_sr", seed=2, accuracy=(10.0, 50.0, 30.0))])
    assert list(table.final_accuracy) == [30, 30]
    assert list(table.best_accuracy) == [30, 50]
    assert list(table.seed) == [1, 2]
    whose = [name for name in plots.curves([stored("ce")]) if name in table]
    assert whose == ["dataset", "condition", "method", "seed", "profile", "precision", "id"]
    assert plots.finals([]).empty


def test_a_line_is_the_mean_over_seeds_and_every_seed_is_a_dot():
    panel = axes()
    plots.draw_curves(panel, {"ce": [[10, 20, 30], [20, 40, 50]]})
    (line,) = [line for line in panel.get_lines() if line.get_label() == "CE"]
    assert list(line.get_ydata()) == [15, 30, 40]
    (dots,) = [line for line in panel.get_lines() if line.get_linestyle() == "None"]
    assert list(dots.get_ydata()) == [30, 50]
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(dots.get_xdata()) == [3, 3]


def test_a_loss_keeps_its_colour_and_marker_with_sr_and_is_told_apart_without_colour():
    panel = axes()
    plots.draw_curves(panel, {"ce": [[10, 20]], "ce_sr": [[10, 30]]})
    base, regularised = panel.get_lines()
    assert base.get_color() == regularised.get_color()
    assert base.get_marker() == regularised.get_marker()
    assert (base.get_linestyle(), regularised.get_linestyle()) == ("--", "-")
    assert base.get_markerfacecolor() == "none" != regularised.get_markerfacecolor()


def test_a_sweep_has_a_shade_and_a_marker_for_each_value():
    panel = axes()
    plots.draw_curves(panel, {f"λ {x}": [[x, x + 1.0]] for x in range(5)})
    assert len({line.get_color() for line in panel.get_lines()}) == 5
    assert len({line.get_marker() for line in panel.get_lines()}) == 5


def test_names_stand_at_the_ends_of_lines_and_none_over_another():
    panel = axes()
    plots.draw_curves(panel, {m: [[50, 99.0 + i / 10]] for i, m in enumerate(plots.STYLES)})
    places = sorted(text.xyann[1] for text in panel.texts)
    assert len(places) == len(plots.STYLES)
    assert max(places) <= 100
    assert min(np.diff(places)) > 8


def test_what_is_not_run_says_so_and_missing_numbers_are_left_out():
    panel = axes()
    plots.draw_curves(panel, {"ce": []})
    assert [text.get_text() for text in panel.texts] == ["not run"]
    panel = axes()
    plots.draw_curves(panel, {"ce": [[None, None]]})
    assert not panel.texts


def test_beside_the_paper_every_seed_is_a_dot():
    runs = [stored("ce", seed, "paper", (50.0, 22.0 + seed)) for seed in (1, 2)]
    runs.append(stored("fl", profile="lite", accuracy=(50.0, 30.0)))
    panel = axes()
    plots.draw_beside(panel, report.cells_of("fig3", runs))
    assert [label.get_text() for label in panel.get_yticklabels()][:2] == ["CE", "CE+SR"]
    drawn = [list(line.get_xdata()) for line in panel.get_lines()]
    assert [23.0, 24.0] in drawn
    assert [22.66] in drawn  # the paper's CE
    by_value = {tuple(line.get_xdata()): line for line in panel.get_lines()}
    assert by_value[23.0, 24.0].get_markerfacecolor() == by_value[23.0, 24.0].get_color()
    assert by_value[30.0,].get_markerfacecolor() == "none"  # of a reduced budget
    reach = panel.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert reach.tolist() == pytest.approx([22.66 - 2 * 0.61, 22.66 + 2 * 0.61])
    bottom, top = panel.get_ylim()
    assert bottom > 5 > 0 > top  # the first method is uppermost


def test_an_embedding_is_rasterised_and_names_each_class():
    rng = np.random.default_rng(0)
    labels = np.arange(1000) % 10
    panel = axes()
    points = rng.normal(size=(1000, 2)) + labels[:, None] * 10
    plots.draw_embedding(panel, points, labels)
    (scatter,) = panel.collections
    assert scatter.get_rasterized()
    assert len({tuple(colour) for colour in scatter.get_facecolors()[labels == 3]}) == 1
    assert len({tuple(colour) for colour in scatter.get_facecolors()}) == 10
    places = np.array([text.get_position() for text in panel.texts])
    assert places == pytest.approx(np.arange(10)[:, None] * np.full(2, 10.0), abs=0.5)
    assert [text.get_text() for text in panel.texts] == [str(i) for i in range(10)]
    empty = axes()
    plots.draw_embedding(empty, [], [])
    assert [text.get_text() for text in empty.texts] == ["not run"]


def test_panels_are_described_and_take_the_colours_of_the_page():
    figure, page = plots.panels(
        lambda panel, key: plots.draw_curves(panel, {key: [[1, 2]]}),
        {"a": "ce", "b": "fl", "c": "ce_sr"},
        columns=2,
        **SENTENCES,
    )
    assert len(figure.axes) == 3
    assert page.count("<svg") == 3
    assert re.findall('aria-label="([^"]*)"', page)[1] == "b: Two lines by epoch, both rising."
    assert plots.INK not in page
    assert "currentColor" in page
    assert 'width="' not in page[page.index("<svg") : page.index(">", page.index("<svg"))]
    boxes = [panel.get_window_extent() for panel in figure.axes]
    assert boxes[0].y0 == boxes[1].y0 > boxes[2].y0
    assert boxes[0].x1 < boxes[1].x0


@pytest.mark.parametrize("changes", [{"alt": ""}, {"caption": "Two lines"}, {"alt": "no point"}])
def test_panels_demand_a_caption_and_an_alt_text(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be a sentence"):
        plots.panels(print, {"a": 1}, **SENTENCES | changes)


def test_panels_must_be_one_or_more():
    with pytest.raises(ValueError, match="one or more"):
        plots.panels(print, {}, **SENTENCES)


@pytest.mark.parametrize(("profile", "name"), [("paper", "fig3"), ("lite", "fig3-lite")])
def test_a_figure_is_saved_with_its_data_and_the_same_bytes_each_time(tmp_path, profile, name):
    table = pd.DataFrame({"epoch": [1, 2], "test_accuracy": [10.5, 20.25]})
    contents = []
    for folder in ("a", "b"):
        figure, _ = plots.panels(
            lambda panel, key: panel.plot(table.epoch, table.test_accuracy), {"a": 1}, **SENTENCES
        )
        stem = plots.save_figure(figure, table, "fig3", tmp_path / folder, profile)
        assert stem == tmp_path / folder / "fig3" / name
        files = sorted(stem.parent.iterdir())
        assert [file.name for file in files] == [
            f"{name}.{e}" for e in ("csv", "pdf", "png", "svg")
        ]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    pd.testing.assert_frame_equal(pd.read_csv(stem.with_suffix(".csv")), table)
