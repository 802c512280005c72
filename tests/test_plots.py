import matplotlib as mpl
import pandas as pd
import pytest

mpl.use("agg")

from matplotlib.figure import Figure

from lnlsr_lib import plots
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.store import StoredRun


def stored(method, seed=1, profile="smoke", accuracy=(10.0, 20.0, 30.0)):
    spec = make_spec("mnist", method, 0.8, profile=profile, seed=seed)
    return StoredRun(spec, {"test_accuracy": list(accuracy), "sparse_rate": [0.1, 0.2, 0.3]}, {})


def test_curves_are_one_long_table():
    table = plots.curves([stored("ce"), stored("ce_sr", seed=2)])
    assert list(table.columns) == ["method", "seed", "epoch", "test_accuracy", "sparse_rate"]
    assert list(table.epoch) == [1, 2, 3, 1, 2, 3]
    assert list(table.method.unique()) == ["ce", "ce_sr"]
    assert set(table[table.method == "ce_sr"].seed) == {2}


def test_two_conditions_are_not_drawn_as_one_line():
    with pytest.raises(ValueError, match="must differ in method or seed"):
        plots.curves([stored("ce"), stored("ce", accuracy=(1.0, 2.0, 3.0))])


def test_a_line_is_the_mean_over_seeds_and_a_band_their_range():
    runs = [stored("ce", 1, accuracy=(10, 20, 30)), stored("ce", 2, accuracy=(20, 40, 50))]
    axes = Figure().subplots()
    plots.draw_curves(axes, plots.curves(runs), "test_accuracy")
    (line,) = axes.get_lines()
    assert list(line.get_ydata()) == [15, 30, 40]
    assert line.get_label() == "CE"
    assert len(axes.collections) == 1


def test_a_loss_keeps_its_colour_with_sr_and_changes_its_dashes():
    axes = Figure().subplots()
    plots.draw_curves(axes, plots.curves([stored("ce"), stored("ce_sr")]), "test_accuracy")
    base, regularised = axes.get_lines()
    assert base.get_color() == regularised.get_color()
    assert (base.get_linestyle(), regularised.get_linestyle()) == ("--", "-")
    assert not axes.collections


def test_a_reduced_run_is_named_in_the_title():
    assert plots.title("MNIST", [stored("ce", profile="paper")]) == "MNIST"
    assert "reduced run: profile smoke, digits" in plots.title("MNIST", [stored("ce")])


@pytest.mark.parametrize(("profile", "name"), [("paper", "fig3"), ("lite", "fig3-lite")])
def test_a_figure_is_saved_with_its_data_and_the_same_bytes_each_time(tmp_path, profile, name):
    plots.use_style()
    table = pd.DataFrame({"epoch": [1, 2], "test_accuracy": [10.5, 20.25]})
    contents = []
    for folder in ("a", "b"):
        figure = Figure()
        figure.subplots().plot(table.epoch, table.test_accuracy)
        stem = plots.save_figure(figure, table, "fig3", tmp_path / folder, profile)
        assert stem == tmp_path / folder / "fig3" / name
        files = sorted(stem.parent.iterdir())
        assert [file.name for file in files] == [
            f"{name}.{e}" for e in ("csv", "pdf", "png", "svg")
        ]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    pd.testing.assert_frame_equal(pd.read_csv(stem.with_suffix(".csv")), table)
