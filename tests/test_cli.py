"""The command line: help, exit statuses, one line per error, and a smoke run."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lnlsr_lib import __version__, cli, cluster, cost, data, feed, sweep
from lnlsr_lib import store as store_module
from lnlsr_lib.cli import main
from lnlsr_lib.data import load_dataset
from lnlsr_lib.experiments import experiment_specs
from lnlsr_lib.store import Store
from lnlsr_lib.trainer import DivergedError, RunResult

SMOKE = ["run", "precision", "--profile", "smoke", "--device", "cpu", "--precision", "float32"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("LNLSR_RESULTS", str(tmp_path / "results"))
    return Store(tmp_path / "results")


@pytest.fixture
def on_few(few, monkeypatch):
    """Smoke runs take a few of the digits."""
    for module in (sweep, feed):  # a sweep loads the data set; a run on its own leaves that to feed
        monkeypatch.setattr(module, "load_dataset", lambda name: few)


def failure(capsys, arguments):
    """The one line on standard error of a command that fails with status 1."""
    assert main(arguments) == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("lnlsr: ")
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([command, "--help"] for command in ("run", "status", "show", "estimate", "data")),
    ],
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
        [sys.executable, "-m", "lnlsr_lib", "status", "fig99"], capture_output=True, text=True
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
        (["run", "fig3", "--profile", "smoke", "--seeds", "1-1000000000"], "1000 at most"),
        (["run", "fig3", "--profile", "smoke", "--seeds", f"1-{'9' * 30}"], "1000 at most"),
        (
            ["run", "fig3", "--profile", "smoke", "--seeds", "9" * 5000],
            "must be auto, 1, 1,2 or 1-3",
        ),
        (["show"], "ID"),
        (["run", "fig3", "--profile", "full"], "invalid choice: 'full'"),
        (["run", "fig3", "--profile", "smoke", "--seeds", "one"], "must be auto, 1, 1,2 or 1-3"),
        (["run", "fig3", "--profile", "smoke", "--seeds", "1,1"], "distinct integers"),
        (["run", "fig3", "--profile", "smoke", "--seeds", "3-1"], "must be auto, 1, 1,2 or 1-3"),
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


def test_smoke_run_then_status(capsys, results, on_few):
    assert main([*SMOKE, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    specs = experiment_specs("precision", "smoke")
    assert results.missing(specs) == []
    for line, run in zip(shown.out.splitlines(), map(results.load, specs), strict=True):
        best, seconds = f"{run.best_accuracy:.2f}%", f"{run.provenance['seconds']:.0f}"
        numbers = ["final", f"{run.final_accuracy:.2f}%", "best", best]
        assert line.split() == [run.spec.id, *numbers, "smoke", "float32", seconds, "s"]

    assert main(["status"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "smoke  2 of 2 runs stored" in shown.out
    assert all(f"{spec.id}  final " in shown.out for spec in specs)
    spent = cost.duration(sum(run.provenance["seconds"] for run in results.runs()))
    assert f"2 runs, {spent} of training" in shown.out

    assert main(["run", "precision", "--profile", "smoke", "--seeds", "2", "--quiet"]) == 0
    capsys.readouterr()
    for seeds, stored in ((), 2), (("--seeds", "2"), 2), (("--seeds", "3"), 0):
        assert main(["status", "precision", *seeds]) == 0
        shown = capsys.readouterr().out
        assert f"smoke  {stored} of 2 runs stored" in shown
        assert f"{4 if not seeds else stored} runs of precision" in shown

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


@pytest.mark.parametrize(
    ("words", "where", "options"),
    [
        (["precision"], "here", {}),
        (["fig3", "--quiet"], "here", {"progress": False, "details": True}),
        (["precision", "--compile", "--details"], "here", {"compiled": True, "details": True}),
        (
            ["precision", "--device", "cpu", "--precision", "bf16"],
            "here",
            {"device": "cpu", "precision": "bf16"},
        ),
        (["precision", "--ray"], "on Ray", {"address": None}),
        (
            ["precision", "--ray", "auto", "--gpus-per-run", "0", "--cpus-per-run", "2"],
            "on Ray",
            {"address": "auto", "gpus_per_run": 0.0, "cpus_per_run": 2},
        ),
    ],
)
def test_what_is_asked_for_reaches_the_sweep(results, monkeypatch, words, where, options):
    seen = []
    for module, name in ((cli, "here"), (cluster, "on Ray")):
        run_all = partial(lambda name, specs, store, **more: seen.append((name, more)) or [], name)
        monkeypatch.setattr(module, "run_all", run_all)
    assert main(["run", *words, "--profile", "smoke"]) == 0
    assert seen == [(where, {"compiled": False, "progress": True, "details": False} | options)]


def test_what_is_asked_for_reaches_the_estimate(capsys, results, monkeypatch):
    seen, specs = [], experiment_specs("precision", "smoke")
    costs = [cost.Cost(specs[0], 2, 30.0)]
    monkeypatch.setattr(cli, "estimate", lambda specs, **more: seen.append(more) or costs)
    monkeypatch.setattr(
        cluster, "estimate_on", lambda specs, **more: seen.append(more) or (costs, 2)
    )
    command = ["estimate", *SMOKE[1:-1], "bf16"]
    where = {"device": "cpu", "precision": "bf16"}
    assert main([*command, "--tflops", "5", "--again"]) == 0
    assert "all of them, one after another, at 5 TFLOP/s, roughly: 60 s" in capsys.readouterr().out
    assert main([*command, "--ray", "auto", "--cpus-per-run", "2"]) == 0
    assert "all of them, 2 at once: 30 s" in capsys.readouterr().out
    assert seen == [
        where | {"tflops": 5.0, "again": True, "progress": True},
        where | {"address": "auto", "cpus_per_run": 2},
    ]
    line = failure(capsys, [*command, "--tflops", "5", "--ray"])
    assert "--tflops is for a device that is not here, and does not go with --ray" in line


def test_progress_goes_to_standard_error(capsys, results, on_few):
    assert main(SMOKE) == 0
    shown = capsys.readouterr()
    assert "1/2 digits-sym0.8-ce-seed1-" in shown.err
    assert len(shown.out.splitlines()) == 2


def test_status_of_an_empty_folder(capsys, results):
    assert main(["status"]) == 0
    shown = capsys.readouterr()
    assert "0 of 6 runs stored" in shown.out
    assert shown.out.endswith(f"{results.folder}: 0 runs, 0 s of training\n")
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
    assert main([*command, "--again"]) == 0
    whole = capsys.readouterr()
    assert "timing: 100%" in whole.err
    shown = whole.out
    assert main(command) == 0
    assert capsys.readouterr() == (shown, "")  # timed before
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
    assert main(["estimate", *SMOKE[1:-1], "bf16", "--tflops", "1"]) == 0
    assert "2 of 2 runs are missing" in capsys.readouterr().out


def test_a_damaged_result_fails_with_its_name(capsys, results, on_few):
    path = results.path(experiment_specs("precision", "smoke")[0], "float32")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    for arguments in (["status"], SMOKE):
        assert str(path) in failure(capsys, arguments)


def test_a_folder_that_cannot_be_written_fails_with_its_name(capsys, results, on_few):
    results.folder.mkdir()
    (results.folder / ".partial").write_text("in the way")
    line = failure(capsys, [*SMOKE, "--quiet"])
    assert str(results.folder / ".partial") in line
    assert "cannot be written" in line


def test_a_file_for_a_results_folder_fails_with_its_name(capsys, tmp_path, on_few):
    (tmp_path / "file").write_text("in the way")
    for command in (["status"], SMOKE):
        line = failure(capsys, ["--results", str(tmp_path / "file"), *command])
        assert f"cannot be '{tmp_path / 'file'}'" in line


@pytest.mark.parametrize("folder", ["x" * 300, "~nobody-has-this-name/x", "", "a\0b"])
def test_a_results_folder_that_cannot_be_fails_in_one_line(capsys, folder):
    assert "the results folder cannot be" in failure(capsys, ["--results", folder, "status"])


def test_a_tilde_in_the_results_folder_is_the_home(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--results", "~/mine", "status", "fig3"]) == 0
    assert f"{tmp_path / 'mine'}: 0 runs" in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["LNLSR_DATA", "LNLSR_RESULTS"])
def test_a_variable_that_names_no_folder_fails_in_one_line(capsys, monkeypatch, variable):
    monkeypatch.setenv(variable, "~nobody-has-this-name/x")
    assert f"{variable} cannot be" in failure(
        capsys, ["data"] if "DATA" in variable else ["status"]
    )


@pytest.mark.parametrize("command", ["run", "estimate"])
def test_a_profile_or_a_run_is_asked_for(capsys, results, command):
    assert "--profile is needed" in failure(capsys, [command, "fig3"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--device", "meta"], "device 'meta' cannot be used here"),
    ],
)
def test_bad_values_fail_in_one_line(capsys, results, on_few, changes, message):
    assert message in failure(capsys, [*SMOKE, "--quiet", *changes])


def result_of(run, **facts):
    """What the stored run came from, with other facts."""
    facts = run.provenance | facts
    device = (facts[fact] for fact in ("device", "precision", "threads", "data"))
    return RunResult(run.spec, run.history, *device, 0.4, run.confusion)


# --- one run -------------------------------------------------------------------------------------


@pytest.fixture
def stored(results, on_few, capsys):
    """The ids of the two smoke runs of "precision", stored."""
    main([*SMOKE, "--quiet"])
    capsys.readouterr()
    return [spec.id for spec in experiment_specs("precision", "smoke")]


def test_show_is_a_runs_card(capsys, results, stored):
    assert main(["show", stored[1]]) == 0
    whole = capsys.readouterr().out
    (run,) = [run for run in results.runs() if run.spec.id == stored[1]]
    lines = whole.splitlines()
    assert lines[0] == stored[1]
    recall, seconds = run.history["lowest_recall"][-1], run.provenance["seconds"]
    assert lines[1] == (
        f"final {run.final_accuracy:.2f}%, best {run.best_accuracy:.2f}%, "
        f"lowest recall {recall:.2f}%, in {cost.duration(seconds)}"
    )
    for text in (
        *("'temperature': 0.1", "learning_rate", "sparse_rate", "memorised"),
        *(str(run.provenance["commit"]), run.provenance["device"], run.provenance["finished"]),
        f"file: {results.path(run.spec, 'float32')}",
    ):
        assert text in whole
    matrix = whole[whole.index("confusion") : whole.index("provenance")].splitlines()[2:-1]
    assert [[int(n) for n in line.split()[1:]] for line in matrix] == run.confusion
    (last,) = [line for line in lines if line.split()[:1] == ["3"] and "0." in line]
    assert f"{run.history['train_loss'][-1]:.4g}" in last
    assert main(["show", stored[1][:-3]]) == 0
    assert capsys.readouterr().out == whole


def test_a_card_of_many_epochs_shows_some_the_first_and_the_last(results, on_few, small_spec, few):
    spec = small_spec("ce", epochs=30, batch_size=192)
    run = sweep.run_one(spec, results, data=few, device="cpu", details=True, progress=False)
    card = cli._card(run)
    table = card[card.index("history") : card.index("confusion")].splitlines()[2:-1]
    epochs = [int(line.split()[0]) for line in table]
    assert (epochs[0], epochs[-1], len(epochs)) == (1, 30, cli.SHOWN_EPOCHS)
    assert "knn_accuracy" in card


def test_show_has_a_card_for_each_precision(capsys, results, stored):
    spec = experiment_specs("precision", "smoke")[0]
    run = results.load(spec)
    run.history.update(test_accuracy=[10.0, 60.0, 50.0], lowest_recall=[1.0, 3.0, 2.0])
    other = results.save(result_of(run, precision="bf16"))
    assert main(["show", spec.id]) == 0
    shown = capsys.readouterr().out
    assert all(f"\nfile: {path}\n" in shown for path in (other, results.path(spec, "float32")))
    assert "\nfinal 50.00%, best 60.00%, lowest recall 2.00%, in " in shown
    assert main(["status", "precision"]) == 0
    assert f"{spec.id}  final  50.00%  best  60.00%  smoke  bf16  " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "digits", "nothing", "../x", "*"])
def test_show_names_what_it_could_mean(capsys, stored, name):
    line = failure(capsys, ["show", name])
    assert "stored runs have an id that starts with" in line
    assert all(run in line for run in stored) == (name == "digits")


def test_status_of_one_experiment_lists_its_runs_alone(capsys, results, stored, on_few):
    other = ["run", "gce_floor", "--profile", "smoke", "--seeds", "4", *SMOKE[4:]]
    assert main([*other, "--quiet"]) == 0
    capsys.readouterr()
    main(["status", "precision"])
    shown = capsys.readouterr().out
    assert "2 runs of precision" in shown
    assert all(run in shown for run in stored)
    assert "gce_sr" not in shown
    main(["status", "gce_floor"])
    shown = capsys.readouterr().out
    assert "2 runs of gce_floor" in shown  # of seed 4: any counts
    assert "smoke  2 of 2 runs stored" in shown


def test_a_run_without_the_details_that_a_figure_needs_is_missing_there(capsys, results, on_few):
    spec = experiment_specs("fig1", "smoke")[0]
    only = ["--only", spec.id]
    assert main(["run", "fig7", *only, "--quiet", *SMOKE[4:]]) == 0
    assert spec in experiment_specs("fig7", "smoke")
    capsys.readouterr()
    main(["status", "fig1"])
    shown = capsys.readouterr().out
    assert f"missing: {spec.id}, its details" in shown
    assert "smoke  0 of 4 runs stored" in shown
    main(["estimate", "fig1", *only])
    assert "1 of 1 runs are missing" in capsys.readouterr().out
    main(["estimate", "fig7", *only])
    assert "0 of 1 runs are missing" in capsys.readouterr().out
    assert main(["run", "fig1", *only, "--quiet", *SMOKE[4:]]) == 0
    capsys.readouterr()
    main(["status", "fig1"])
    assert "smoke  1 of 4 runs stored" in capsys.readouterr().out


def test_only_finds_a_run_by_its_id_in_every_profile_and_seed(capsys, results, on_few):
    spec = experiment_specs("precision", "smoke", (7,))[0]
    assert main(["run", "precision", "--only", spec.id, "--quiet", *SMOKE[4:]]) == 0
    assert capsys.readouterr().out.split()[0] == spec.id
    assert [run.spec for run in results.runs()] == [spec]
    for name in ("digits", f"{spec.id}x", "mnist-seed99999999999999999999-"):
        line = failure(capsys, ["run", "precision", "--only", name])
        assert f"precision has no run {name}" in line
    line = failure(capsys, ["run", "precision", "--only", spec.id, "--profile", "paper"])
    assert f"precision has no run {spec.id} in profile paper" in line


def test_only_keeps_the_order_and_takes_a_run_once(results, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run_all", lambda specs, store, **more: seen.extend(specs) or [])
    ids = [spec.id for spec in experiment_specs("precision", "smoke", (7, 3))]
    assert main(["run", "precision", "--only", *ids, ids[0]]) == 0
    assert [spec.id for spec in seen] == ids


def test_again_trains_anew_and_says_that_the_history_is_the_same(capsys, results, stored):
    before = {path: path.read_bytes() for path in results.folder.rglob("*") if path.is_file()}
    command = ["run", "precision", "--only", stored[0], "--again", "--quiet"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{stored[0]}  same history, all 3 epochs\n"
    after = {path: path.read_bytes() for path in results.folder.rglob("*") if path.is_file()}
    assert after == before


def test_again_that_goes_on_under_other_code_says_so(capsys, results, stored, monkeypatch):
    command = ["run", "precision", "--only", stored[0], "--again", "--quiet"]
    code, save = {"lnlsr": "0", "modified": False}, Store.save_checkpoint

    def save_and_stop(*given):
        save(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "code_version", lambda: code | {"commit": "a" * 40})
        patch.setattr(Store, "save_checkpoint", save_and_stop)
        assert main(command) == 130
    monkeypatch.setattr(store_module, "code_version", lambda: code | {"commit": None})
    capsys.readouterr()
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert shown == f"{stored[0]}  same history, all 3 epochs, made at aaaaaaaa and None\n"


def test_again_trains_in_the_precision_of_what_is_stored(capsys, results, on_few):
    only = ["--only", experiment_specs("precision", "smoke")[0].id, "--quiet"]
    assert main([*SMOKE[:-1], "bf16", *only]) == 0
    assert main(["run", "precision", "--again", *only]) == 0
    assert "same history, all 3 epochs" in capsys.readouterr().out


def test_again_says_where_the_history_differs(capsys, results, stored):
    run = next(run for run in results.runs() if run.spec.id == stored[0])
    run.history["test_accuracy"][1] += 0.5
    results.save(result_of(run))
    command = ["run", "precision", "--only", stored[0], "--again", "--quiet"]
    assert main(command) == 1
    shown = capsys.readouterr()
    now, then = run.history["test_accuracy"][1] - 0.5, run.history["test_accuracy"][1]
    assert f"{stored[0]}  differs from epoch 2 on: test_accuracy is {now} (" in shown.out
    assert shown.out.count(", 1 thread; torch 2.") == 2  # threads decide how sums are rounded
    assert f"stored {then} (" in shown.out
    assert shown.err == "lnlsr: 1 of 1 histories differ\n"
    assert results.load(run.spec).history == run.history


def test_again_needs_something_to_compare_with(capsys, results):
    spec = experiment_specs("precision", "smoke")[0]
    line = failure(capsys, ["run", "precision", "--only", spec.id, "--again"])
    assert f"not stored, nothing to compare with: {spec.id}" in line
    for more, said in (
        ("--details", "nor with --details"),
        ("--ray", "not with --ray"),
        ("--seeds=1", "not go with --seeds"),
    ):
        line = failure(capsys, ["run", "precision", "--only", spec.id, "--again", more])
        assert said in line


# --- stopped -------------------------------------------------------------------------------------


def program(*arguments, **more):
    """``lnlsr`` as a program, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "lnlsr_lib", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_usual_signal_says_what_is_kept(results, name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.default_int_handler)  # a child inherits what is ignored
    with program(*SMOKE, "--seeds", "1-50") as done:
        signal.signal(number, before)
        while not list(results.folder.rglob("*.pt")):
            assert done.poll() is None
            time.sleep(0.05)
        done.send_signal(number)
        _, err = done.communicate(timeout=120)
    assert done.returncode == 128 + number
    assert err.endswith("lnlsr: stopped; what is finished is stored, call again to go on\n")
    assert "Traceback" not in err
    assert list(results.folder.rglob("*.tmp")) == []


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_signal_that_is_ignored_stays_ignored(results, on_few, monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(
            cli, "run_all", lambda *a, **k: os.kill(os.getpid(), signal.SIGHUP) or []
        )
        assert main(SMOKE) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_reader_that_has_seen_enough_gets_no_traceback(results):
    with program("status", "table6") as done:  # more than a pipe holds
        assert done.stdout.readline()
        done.stdout.close()
        assert done.stderr.read() == ""
    assert done.returncode == 128 + signal.SIGPIPE


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_a_closed_output_is_no_error(results):
    command = [sys.executable, "-m", "lnlsr_lib", "status", "table6"]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --- anything ------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.sampled_from(
        [
            *("run", "status", "show", "estimate", "data", "fig3", "precision", "mnist", "digits"),
            *("--profile", "--seeds", "--device", "--precision", "--only", "--again", "--quiet"),
            *(
                "--tflops",
                "--results",
                "--compile",
                "smoke",
                "paper",
                "lite",
                "auto",
                "meta",
                "cpu",
            ),
            *(
                "1-3",
                "1-1000000000",
                "9" * 5000,
                "-1",
                "1e-320",
                "nan",
                "~x/y",
                "",
                "a\0b",
                "x" * 300,
            ),
        ]
    ),
    st.text(max_size=8),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, max_size=8))
@example(words=["run", "fig3", "--profile", "smoke", "--seeds", "1-1000000000"])
@example(words=["estimate", "fig3", "--profile", "smoke", "--tflops", "1e-320"])
@example(words=["run", "fig3", "--only", "x-seed999999999999999999-"])
@example(words=["--results", "\ud800", "status"])
def test_whatever_the_arguments_there_is_no_traceback(words, tmp_path, monkeypatch, capsys):
    """With training, fetching and timing left out, every command line ends with a status."""
    monkeypatch.setenv("LNLSR_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "run_all", lambda specs, store, **options: [])
    monkeypatch.setattr(cli, "load_dataset", lambda name: load_dataset("digits"))
    monkeypatch.setattr(cost, "_measure", lambda spec, device, precision: (1.0, 0.0))
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as stopped:
        status = stopped.code
    shown = capsys.readouterr()
    assert status in (0, 1, 2)
    assert "Traceback" not in shown.err
    if status == 1:
        assert shown.err.splitlines()[-1].startswith("lnlsr: ")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (DivergedError("the loss is nan"), 1, "lnlsr: the loss is nan"),
        (OSError("no space is left"), 1, "lnlsr: no space is left"),
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
