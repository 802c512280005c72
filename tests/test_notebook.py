import math

import pytest

from lnlsr_lib import notebook
from lnlsr_lib.experiments import experiment_specs
from lnlsr_lib.store import Store

DECLARED = {"profile": str, "seeds": list[int], "epochs": int, "rate": float, "loud": bool}
GOOD = {"profile": "auto", "seeds": [1, 2], "epochs": 3, "rate": 0.5, "loud": False}


def namespace(**changes):
    """What a notebook's globals look like behind its parameters and imports."""
    ipython = {"In": [""], "Out": {}, "_": "", "_i1": "x", "exit": object(), "quit": object()}
    code = {"math": math, "Store": Store, "choose": notebook.choose_profile}
    return {"__annotations__": DECLARED, **ipython, **code, **GOOD, **changes}


def test_declared_parameters_of_the_right_type_pass():
    notebook.check_parameters(namespace())
    notebook.check_parameters(namespace(rate=1, seeds=[]))


@pytest.mark.parametrize("value", [1, "smoke", [1], None, {"a": 1}])
def test_an_unknown_parameter_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"unknown parameter 'profil'; there are: profile, seeds"):
        notebook.check_parameters(namespace(profil=value))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("profile", 3, "must be str, got int: 3"),
        ("seeds", 1, r"must be list\[int\], got int: 1"),
        ("seeds", ["1"], r"must be list\[int\], got list"),
        ("seeds", [True], r"must be list\[int\]"),
        ("epochs", 2.5, "must be int, got float"),
        ("epochs", True, "must be int, got bool"),
        ("rate", "0.5", "must be float, got str"),
        ("loud", 1, "must be bool, got int"),
    ],
)
def test_a_parameter_of_the_wrong_type_is_refused(name, value, wanted):
    with pytest.raises(TypeError, match=wanted):
        notebook.check_parameters(namespace(**{name: value}))


def occupy(store, specs, precision="float32"):
    """Put a file where each run's result would lie."""
    for spec in specs:
        path = store.path(spec, precision)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_auto_takes_the_best_profile_that_is_stored_whole(tmp_path, capsys):
    store = Store(tmp_path)
    assert notebook.choose_profile("fig3", "auto", [1], store) == "smoke"
    assert "NOTHING STORED" in capsys.readouterr().out
    occupy(store, experiment_specs("fig3", "lite"))
    assert notebook.choose_profile("fig3", "auto", [1], store) == "lite"
    occupy(store, experiment_specs("fig3", "paper")[:-1])
    assert notebook.choose_profile("fig3", "auto", [1], store) == "lite"
    occupy(store, experiment_specs("fig3", "paper"))
    assert notebook.choose_profile("fig3", "auto", [1], store) == "paper"
    assert notebook.choose_profile("fig3", "auto", [1, 2], store) == "smoke"


def test_auto_can_ask_for_both_precisions(tmp_path):
    store, both = Store(tmp_path), ("float32", "bf16")
    occupy(store, experiment_specs("precision", "lite"))
    assert notebook.choose_profile("precision", "auto", [1], store, both) == "smoke"
    occupy(store, experiment_specs("precision", "lite"), "bf16")
    assert notebook.choose_profile("precision", "auto", [1], store, both) == "lite"


def test_a_named_profile_is_taken_and_says_what_it_will_train(tmp_path, capsys):
    assert notebook.choose_profile("fig3", "lite", [1, 2], Store(tmp_path)) == "lite"
    assert "12 runs of profile lite are not stored" in capsys.readouterr().out


def test_an_unknown_profile_is_refused(tmp_path):
    with pytest.raises(ValueError, match="profile must be auto, paper, lite, smoke, got 'full'"):
        notebook.choose_profile("fig3", "full", [1], Store(tmp_path))
