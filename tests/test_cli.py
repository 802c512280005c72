"""The command line: help, exit statuses, one line per error, and a smoke run."""

import subprocess
import sys

import pytest
import torch

from lnlsr_lib import __version__, cli, data, sweep
from lnlsr_lib.cli import main
from lnlsr_lib.experiments import experiment_specs
from lnlsr_lib.store import Store
from lnlsr_lib.trainer import DivergedError

SMOKE = ["run", "precision", "--profile", "smoke", "--device", "cpu", "--precision", "float32"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("LNLSR_RESULTS", str(tmp_path / "results"))
    return Store(tmp_path / "results")


@pytest.fixture
def on_few(few, monkeypatch):
    """Smoke runs take a few of the digits."""
    monkeypatch.setattr(sweep, "load_dataset", lambda name: few)


def failure(capsys, arguments):
    """The one line on standard error of a command that fails with status 1."""
    assert main(arguments) == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("lnlsr: ")
    return line


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["status", "--help"], ["data", "--help"]]
)
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['lnlsr', *arguments[:-1]])}")


def test_every_command_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("run", "status", "data", "--results"))


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


def test_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "lnlsr_lib.cli", "status", "fig99"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "invalid choice: 'fig99'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["train"], "invalid choice: 'train'"),
        (["run", "fig99", "--profile", "smoke"], "invalid choice: 'fig99'"),
        (["run", "fig3"], "--profile"),
        (["run", "fig3", "--profile", "full"], "invalid choice: 'full'"),
        (["run", "fig3", "--profile", "smoke", "--seeds", "one"], "must be like 1, 1,2,3 or 1-3"),
        (["run", "fig3", "--profile", "smoke", "--precision", "fp8"], "invalid choice: 'fp8'"),
        (["status", "fig99"], "invalid choice: 'fig99'"),
        (["data", "svhn"], "invalid choice: 'svhn'"),
    ],
)
def test_bad_usage_exits_2(capsys, results, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not results.folder.exists()


@pytest.mark.parametrize(
    ("text", "seeds"), [("1", [1]), ("3,1,2", [3, 1, 2]), ("1-3", [1, 2, 3]), ("0", [0])]
)
def test_seeds(text, seeds):
    assert cli._parser().parse_args(["status", "--seeds", text]).seeds == seeds


def test_smoke_run_then_status(capsys, results, on_few):
    assert main([*SMOKE, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    specs = experiment_specs("precision", "smoke")
    assert [line.split()[0] for line in shown.out.splitlines()] == [spec.id for spec in specs]
    assert results.missing(specs) == []

    assert main(["status"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "smoke  2 of 2 runs stored" in shown.out
    assert all(spec.id in shown.out for spec in specs)

    assert main(["status", "fig3", "--seeds", "2"]) == 0
    shown = capsys.readouterr().out
    assert all(f"missing: {s.id}" in shown for s in experiment_specs("fig3", "paper", (2,)))


def test_results_option_wins_over_the_environment(capsys, results, tmp_path, on_few):
    assert main(["--results", str(tmp_path / "other"), *SMOKE, "--quiet"]) == 0
    assert not results.folder.exists()
    assert len(Store(tmp_path / "other").runs()) == 2


def test_compile_reaches_the_trainer_and_the_record(results, on_few, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    assert main([*SMOKE, "--quiet", "--compile"]) == 0
    devices = {run.provenance["device"] for run in results.runs()}
    assert len(devices) == 1
    assert devices.pop().endswith(", compiled")


def test_progress_goes_to_standard_error(capsys, results, on_few):
    assert main(SMOKE) == 0
    shown = capsys.readouterr()
    assert "1/2 digits-sym0.8-ce-seed1-" in shown.err
    assert len(shown.out.splitlines()) == 2


def test_status_of_an_empty_folder(capsys, results):
    assert main(["status"]) == 0
    shown = capsys.readouterr()
    assert "0 of 6 runs stored" in shown.out
    assert shown.out.endswith(f"{results.folder}: 0 runs\n")
    assert not results.folder.exists()


def test_data_digits(capsys, results):
    assert main(["data", "digits"]) == 0
    assert capsys.readouterr().out.startswith(
        "digits: 1437 train and 360 test images of 1x28x28, 10 classes; scikit-learn"
    )


def test_unreachable_data_fail_with_the_ways_out(capsys, results, tmp_path, monkeypatch):
    def unreachable(target):
        raise OSError("no route to host")

    monkeypatch.setenv("LNLSR_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(data, "MNIST_SOURCES", {"a mirror": unreachable})
    line = failure(capsys, ["data"])
    assert "Three ways out" in line
    assert "a mirror: no route to host" in line


def test_estimate_counts_times_and_stores_nothing(capsys, results):
    command = ["estimate", "precision", "--profile", "smoke", "--precision", "float32"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 runs are missing" in shown
    assert "2 x digits, cnn4, 1437 images, 3 epochs: " in shown
    assert "one after another, here: " in shown
    assert not results.folder.exists()


def test_estimate_for_another_device_and_for_nothing_missing(capsys, results, on_few):
    assert main(["estimate", "table1", "--profile", "paper", "--tflops", "100"]) == 0
    shown = capsys.readouterr().out
    assert "135 of 135 runs are missing" in shown
    for line in ("45 x mnist, cnn4, 60000", "45 x cifar10, cnn8, 50000", "45 x cifar100, resnet34"):
        assert line in shown
    assert "at 100 TFLOP/s, roughly: " in shown
    main([*SMOKE, "--quiet"])
    capsys.readouterr()
    assert main(["estimate", *SMOKE[1:]]) == 0
    assert capsys.readouterr().out == "0 of 2 runs are missing\n"


def test_a_damaged_result_fails_with_its_name(capsys, results, on_few):
    path = results.path(experiment_specs("precision", "smoke")[0], "float32")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    for arguments in (["status"], SMOKE):
        assert str(path) in failure(capsys, arguments)


def test_a_folder_that_cannot_be_written_fails_with_its_name(capsys, tmp_path, on_few):
    (tmp_path / "file").write_text("in the way")
    line = failure(capsys, ["--results", str(tmp_path / "file"), *SMOKE, "--quiet"])
    assert str(tmp_path / "file") in line
    assert "cannot be written" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--seeds", "1,1"], "seeds must be one or more distinct integers"),
        (["--seeds", "3-1"], "seeds must be one or more distinct integers"),
    ],
)
def test_bad_values_fail_in_one_line(capsys, results, on_few, changes, message):
    assert message in failure(capsys, [*SMOKE, "--quiet", *changes])


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DivergedError("the loss is nan"), 1, "lnlsr: the loss is nan"),
        (KeyboardInterrupt(), 130, "lnlsr: stopped; what is finished is stored"),
    ],
)
def test_a_sweep_that_stops(capsys, results, monkeypatch, error, status, message):
    def stops(*arguments, **more):
        raise error

    monkeypatch.setattr(cli, "run_all", stops)
    assert main(SMOKE) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(message)
    assert len(shown.err.splitlines()) == 1
