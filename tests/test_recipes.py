"""The scripts of the pages, run as they stand: with each framework here, on a folder of images."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from snippets import ROOT, blocks

FRAMEWORKS = blocks("book/frameworks.md")
# What each script needs besides PyTorch, and how many epochs its criterion has counted at its end:
# the Trainer and Lightning say how many were done before the last one.
RECIPES = {"amp": (None, 3), "ddp": (None, 3), "lightning": ("lightning", 2)}
RECIPES |= {"trainer": ("transformers", 2), "accelerate": ("accelerate", 3)}
CHECK = """
assert epochs == 3, epochs
assert int(criterion.epochs_done) == {done}, criterion.epochs_done
assert criterion.state_dict()["epochs_done"] == {done}
assert criterion.weight == 1.2 * 1.03 ** {done}, criterion.weight
"""
LEARNT = """
import torch
inputs, labels = data.tensors
with torch.no_grad():
    better = criterion(model(inputs), labels) < criterion(torch.zeros(len(labels), 4), labels)
assert better, "no better than chance"
"""


def test_every_script_of_the_page_is_run_here():
    assert len(FRAMEWORKS) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_as_it_stands_and_lambda_follows(name, tmp_path):
    package, done = RECIPES[name]
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    script = FRAMEWORKS[list(RECIPES).index(name)] + CHECK.format(done=done)
    if name == "amp":
        script += LEARNT
    (tmp_path / "train.py").write_text(script + 'print("fine")\n')
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [sys.executable, *(launcher if name == "ddp" else []), "train.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("fine") == (2 if name == "ddp" else 1)


def photos(folder, each=40):
    """Three classes of images: a bright bar at the left, in the middle, at the right; noise."""
    generator = torch.Generator().manual_seed(0)
    for k, name in enumerate(["left", "middle", "right"]):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = torch.randint(0, 90, (40, 48, 3), generator=generator, dtype=torch.uint8)
            pixels[:, 16 * k : 16 * k + 16] += 150
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i:03}.png")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """What a new user has after the scripts of ``use.md``, one after another."""
    folder = tmp_path_factory.mktemp("user")
    photos(folder / "photos")
    space = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        for block in blocks("book/use.md"):
            exec(compile(block, "use.md", "exec"), space)
    return space


def test_the_folder_is_learnt_in_spite_of_its_wrong_labels(followed):
    truth = torch.tensor(followed["images"].targets)
    given = followed["given"]
    wrong = given != truth
    assert 0.1 < wrong.float().mean() < 0.5  # 0.3, of few images
    right = (followed["logits"].argmax(dim=1) == truth).float().mean()
    assert right > 0.9


def test_the_labels_that_it_doubts_are_the_wrong_ones(followed):
    wrong = followed["given"] != torch.tensor(followed["images"].targets)
    issues = followed["issues"]
    assert wrong[issues].float().mean() > 0.9
    assert wrong[issues].sum() > 0.9 * wrong.sum()


def test_the_state_that_was_saved_is_the_one_that_is_loaded(followed):
    assert followed["criterion"].epochs_done == followed["epochs"]
