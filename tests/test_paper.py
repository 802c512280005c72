import pytest

from lnlsr_lib.paper import Published, published, tables
from lnlsr_lib.protocol import METHODS


def test_all_values_of_all_tables_are_there():
    counts = tables().table.value_counts().to_dict()
    assert counts == {1: 135, 2: 81, 3: 6, 4: 32, 5: 16, 6: 108}


def test_values_are_percentages_with_small_deviations():
    rows = tables()
    assert rows["mean"].between(5, 100).all()
    assert rows["std"].dropna().between(0, 3).all()


def test_tables_that_repeat_each_other_agree():
    """Table 6 is table 2 with one more rate, and table 4 repeats CE and CE+SR of 1 and 2."""
    key = ["dataset", "method", "noise", "noise_rate"]
    rows = tables()
    again = rows[rows.table.isin([2, 4])].merge(rows[rows.table.isin([1, 6])], on=key)
    assert len(again) == 81 + 16
    assert (again.mean_x == again.mean_y).all()


@pytest.mark.parametrize(
    ("method", "said"),
    [("ce", "22.66 ± 0.61"), ("gce", "33.95 ± 0.82"), ("ce_sr", "98.06 ± 0.86")],
)
def test_figure_3s_condition_reads_as_table_1_prints_it(method, said):
    value = published("mnist", method, "symmetric", 0.8)
    assert value is not None
    assert value.table == 1
    assert str(value) == said


def test_the_first_table_that_has_a_value_counts():
    assert published("cifar10", "ce", "symmetric", 0.6).table == 1  # and in 4
    assert published("cifar10", "ce", "asymmetric", 0.2).table == 2  # and in 6


def test_a_value_without_deviation_and_one_that_is_not_there():
    assert published("webvision", "ce_sr", "web", 0.0).table == 3
    assert published("webvision", "ce_sr", "web", float("nan")) is None
    assert str(published("cifar10", "ce", "lt", 0.01)) == "64.16"
    assert published("mnist", "ce", "symmetric", 0.5) is None


def test_every_method_of_the_protocol_is_in_the_paper():
    assert set(METHODS) <= set(tables().method)


def test_published_prints_its_deviation_only_if_it_has_one():
    assert str(Published(3, 69.12, None)) == "69.12"
