"""Shared fixtures: a few digits to train on, small specs, a results folder of the tests' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import settings

from lnlsr_lib import cost
from lnlsr_lib.data import Dataset, load_dataset
from lnlsr_lib.protocol import make_spec
from lnlsr_lib.spec import RunSpec

# One thread: the networks' inputs are tiny, and other work may share the machine.
torch.set_num_threads(1)
# For the same reason no example has a deadline.
settings.register_profile("lnlsr", deadline=None)
settings.load_profile("lnlsr")


def pytest_configure(config: pytest.Config) -> None:
    """Tests train every loss with SR, some far from where anyone would; warnings have their own."""
    config.addinivalue_line("filterwarnings", "ignore:weight .lambda. = .* is far above")


@pytest.fixture(scope="session", autouse=True)
def own_results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test may touch the results of real runs or kept timings, not even by its defaults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LNLSR_RESULTS", str(tmp_path_factory.mktemp("results")))
        timings = tmp_path_factory.mktemp("cache") / "timings.json"
        patch.setattr(cost, "timings_file", lambda: timings)
        yield


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def few(digits: Dataset) -> Dataset:
    """192 train and 60 test digits: two batches an epoch, the second one short."""
    return replace(
        digits,
        train_images=digits.train_images[:192],
        train_labels=digits.train_labels[:192],
        test_images=digits.test_images[:60],
        test_labels=digits.test_labels[:60],
    )


@pytest.fixture
def small_spec() -> Callable[..., RunSpec]:
    """A smoke run of two epochs, with any field changed: ``small_spec("ce", epochs=1)``."""

    def build(method: str = "ce_sr", **changes: Any) -> RunSpec:
        fields = make_spec("mnist", method, 0.4, profile="smoke").model_dump()
        return RunSpec(**fields | {"epochs": 2} | changes)

    return build
