"""The training loop: same bits again, same bits when resumed, and the same as a plain loop."""

import copy
import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lnlsr_lib import objective, trainer
from lnlsr_lib.feed import given_labels
from lnlsr_lib.label_issues import margins
from lnlsr_lib.losses import build_loss
from lnlsr_lib.models import build_model
from lnlsr_lib.noise import corrupt_labels, symmetric_transition
from lnlsr_lib.protocol import METHODS, make_spec
from lnlsr_lib.regularization import sparse_rates
from lnlsr_lib.trainer import HISTORY, DivergedError, StateError, train

CPU = {"device": "cpu", "precision": "float32"}
gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def shown(spec, data):
    """The labels that the network is shown, of all training images."""
    return given_labels(spec, data, torch.arange(len(data.train_labels)))


def numbers(history):
    """All of a history but the wall-clock time."""
    return {name: values for name, values in history.items() if name != "seconds"}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# --- same bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ce", "gce_sr"])
def test_same_spec_same_bits(few, small_spec, method):
    spec = small_spec(method)
    torch.manual_seed(1)
    first = train(spec, few, **CPU, details=True)
    torch.manual_seed(2)  # nothing hangs on the global generator
    before = torch.get_rng_state()
    second = train(spec, few, **CPU, details=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert numbers(first.history) == numbers(second.history)
    assert same(first.details, second.details)
    other = train(small_spec(method, seed=2), few, **CPU)
    assert numbers(other.history) != numbers(first.history)


@pytest.mark.parametrize("method", ["ce", "ce_sr"])
def test_resumed_from_any_epoch_same_bits(few, small_spec, method):
    spec = small_spec(method, epochs=4)
    states = []
    whole = train(
        spec, few, **CPU, details=True, on_epoch=lambda state: states.append(through_a_file(state))
    )
    assert [state["epoch"] for state in states] == [1, 2, 3, 4]
    for state in states:
        resumed = train(spec, few, **CPU, details=True, state=state)
        assert numbers(resumed.history) == numbers(whole.history)
        assert same(resumed.details, whole.details)
        assert resumed.confusion == whole.confusion


def test_resuming_leaves_the_given_history_as_it_was(few, small_spec):
    states = []
    train(small_spec(), few, **CPU, on_epoch=lambda state: states.append(copy.deepcopy(state)))
    train(small_spec(), few, **CPU, state=states[0])
    assert len(states[0]["history"]["train_loss"]) == 1


# --- against a plain loop ------------------------------------------------------------------------


def plain_loop(spec, data, criterion_at, **changed):
    """The protocol in straight PyTorch: float32, NCHW, no tricks; ``changed`` in the optimiser."""
    clean = data.train_labels
    labels = corrupt_labels(
        clean, symmetric_transition(10, spec.noise_rate), spec.generator("noise")
    )
    images = (data.train_images.float() / 255 - data.mean[0]) / data.std[0]
    test_images = (data.test_images.float() / 255 - data.mean[0]) / data.std[0]
    model = build_model("cnn4", 10, spec.draw_seed("weights"))
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3} | changed
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.epochs)
    losses, accuracies, rates = [], [], []
    for epoch in range(spec.epochs):
        criterion = criterion_at(epoch)
        model.train()
        order = torch.randperm(len(labels), generator=spec.generator(f"order/{epoch}"))
        total = 0.0
        for start in range(0, len(order), 128):
            batch = order[start : start + 128]
            loss = criterion(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            total += loss.item() * len(batch)
        scheduler.step()
        model.eval()
        with torch.no_grad():
            logits = model(test_images)
        losses.append(total / len(labels))
        accuracies.append(100 * (logits.argmax(1) == data.test_labels).float().mean().item())
        rates.append(sparse_rates(logits)[0].item())
    return losses, accuracies, rates


def written_out_sr(weight):
    """CE + SR at tau = 0.1, p = 0.1, as in equation 9."""

    def criterion(logits, labels):
        u = (logits / 0.1).softmax(dim=1)
        norm = u.clamp(1e-7, 1).pow(0.1).sum(dim=1).mean()
        return nn.functional.cross_entropy(logits / 0.1, labels) + weight * norm

    return criterion


@pytest.mark.parametrize(
    ("method", "criterion_at"),
    [
        ("ce", lambda epoch: nn.CrossEntropyLoss()),
        ("gce", lambda epoch: build_loss("gce", q=0.7)),
        ("ce_sr", lambda epoch: written_out_sr([4.0, 4.0 * 2**5][epoch])),  # 25 of 50 epochs on
    ],
)
def test_agrees_with_a_plain_loop(few, small_spec, method, criterion_at):
    spec = small_spec(method)
    history = train(spec, few, **CPU).history
    losses, accuracies, rates = plain_loop(spec, few, criterion_at)
    assert history["train_loss"] == pytest.approx(losses, rel=2e-3)
    one_image = 100 / len(few.test_labels)
    assert history["test_accuracy"] == pytest.approx(accuracies, abs=2.01 * one_image)
    assert history["sparse_rate"] == pytest.approx(rates, abs=0.0201 * one_image)


@pytest.mark.parametrize("changed", [{"weight_decay": 1.0}, {"nesterov": True}], ids=repr)
def test_the_optimiser_is_that_of_the_spec(few, small_spec, changed):
    losses, *_ = plain_loop(small_spec("ce"), few, lambda epoch: nn.CrossEntropyLoss(), **changed)
    ours = train(small_spec("ce", **changed), few, **CPU).history["train_loss"]
    assert ours == pytest.approx(losses, rel=5e-4)
    without = train(small_spec("ce"), few, **CPU).history["train_loss"]
    assert without != pytest.approx(losses, rel=4 * 5e-4)


# --- what is recorded ----------------------------------------------------------------------------


def test_learning_rate_is_the_cosine(few, small_spec):
    spec = small_spec("ce", epochs=5)
    rates = train(spec, few, **CPU).history["learning_rate"]
    expected = [0.01 * (1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("epochs", "paper_epochs", "exponents"),
    [(4, 50, [0, 2, 5, 7]), (3, 3, [0, 0, 0]), (3, 15, [0, 1, 2]), (2, 1, [0, 0])],
)
def test_lambda_is_recorded_along_its_stretched_path(
    few, small_spec, epochs, paper_epochs, exponents
):
    spec = small_spec("ce_sr", epochs=epochs, paper_epochs=paper_epochs)
    weights = train(spec, few, **CPU).history["weight"]
    assert weights == [4.0 * 2.0**exponent for exponent in exponents]


def test_history_is_whole(few, small_spec):
    result = train(small_spec("ce"), few, **CPU)
    assert tuple(result.history) == HISTORY
    assert all(len(values) == 2 for values in result.history.values())
    assert result.history["weight"] == [0.0, 0.0]
    assert result.seconds == sum(result.history["seconds"])
    assert 0 <= result.history["test_accuracy"][-1] <= 100
    assert result.precision == "float32"
    assert result.device.startswith("cpu (")
    assert result.threads == torch.get_num_threads()
    assert result.origin == few.origin
    assert result.details is None


def test_it_learns(digits, small_spec):
    """All of the digits, clean, three epochs: far above the 10% of chance."""
    spec = small_spec("ce", noise="clean", noise_rate=0.0, epochs=3)
    result = train(spec, digits, **CPU)
    assert result.history["test_accuracy"][-1] > 90
    assert result.history["train_loss"][0] > result.history["train_loss"][-1]
    assert result.realised_noise_rate == 0


def test_realised_noise_rate_is_that_of_the_labels_shown(few, small_spec):
    spec = small_spec("ce", epochs=1)
    labels = shown(spec, few)
    wrong = (labels != few.train_labels).double().mean().item()
    assert train(spec, few, **CPU).realised_noise_rate == wrong
    assert abs(wrong - 0.4) < 5 * (0.4 * 0.6 / 192) ** 0.5
    assert torch.equal(shown(small_spec("gce_sr"), few), labels)  # shared by the methods
    assert not torch.equal(shown(small_spec("ce", seed=2), few), labels)


def test_the_last_short_batch_is_kept(few, small_spec, monkeypatch):
    sizes, seen = [], []
    real = objective.build_criterion

    def watched(spec, reduction):
        criterion = real(spec, reduction)
        criterion.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        criterion.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].clone()))
        return criterion

    monkeypatch.setattr(objective, "build_criterion", watched)
    steps = []
    spec = small_spec("ce")
    train(spec, few, **CPU, on_batch=lambda: steps.append(1))
    assert sizes == [128, 64, 128, 64]
    assert len(steps) == 4
    counts = torch.cat(seen[:2]).bincount(minlength=10)
    assert torch.equal(counts, shown(spec, few).bincount(minlength=10))


def test_a_last_batch_of_one_image_is_left_out(few, small_spec):
    """BatchNorm cannot train on it."""
    odd = replace(few, train_images=few.train_images[:129], train_labels=few.train_labels[:129])
    steps = []
    result = train(small_spec("ce"), odd, **CPU, on_batch=lambda: steps.append(1))
    assert len(steps) == 2
    assert result.history["train_loss"][0] > 1


def test_given_mean_and_std_take_the_place_of_the_data_sets(few, small_spec):
    plain = train(small_spec("ce", epochs=1), few, **CPU).history
    same = train(small_spec("ce", epochs=1, mean=few.mean, std=few.std), few, **CPU).history
    other = train(small_spec("ce", epochs=1, mean=(0.5,), std=(0.1,)), few, **CPU).history
    assert numbers(plain) == numbers(same)
    assert numbers(plain) != numbers(other)


def test_webvision_is_trained_from_its_files(tmp_path, monkeypatch):
    """Twelve images on disk, one of them broken: streamed, trained, tested, and recorded."""
    root = tmp_path / "webvision"
    generator = torch.Generator().manual_seed(0)
    for folder, names in (("google", range(12)), ("val_images_256", range(4))):
        (root / folder).mkdir(parents=True)
        for name in names:
            pixels = torch.randint(256, (40, 48, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(root / folder / f"{name}.jpg")
    (root / "google" / "5.jpg").write_bytes(b"no image")
    (root / "info").mkdir()
    lines = [f"google/{name}.jpg {name % 3}" for name in range(12)]
    (root / "info" / "train_filelist_google.txt").write_text("\n".join(lines) + "\n")
    lines = [f"{name}.jpg {name % 3}" for name in range(4)]
    (root / "info" / "val_filelist.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("LNLSR_DATA", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", lambda: 0)  # workers cost more time than they save here
    spec = make_spec("webvision", "ce_sr").model_copy(
        update={"batch_size": 6, "epochs": 1, "learning_rate": 0.01}
    )

    def small(name, classes, seed, side):
        """CNN-8 on images shrunk to 32x32: ResNet-50 would take a minute here."""
        return nn.Sequential(nn.AvgPool2d(7), build_model("cnn8", classes, seed))

    monkeypatch.setattr(trainer, "build_model", small)
    steps = []
    with pytest.warns(UserWarning, match="1 files skipped"):
        result = train(spec, **CPU, on_batch=lambda: steps.append(1))
    assert len(steps) == 2
    assert math.isfinite(result.history["train_loss"][0])
    assert result.realised_noise_rate is None
    for share in ("memorised", "corrected", "fitted"):
        assert result.history[share] == [None]  # nobody knows, and that is no zero
    assert result.origin.endswith("files skipped: 1 train, 0 test")


@pytest.mark.parametrize("method", ["ce", "ce_sr"])
def test_shares_of_memorised_and_corrected_labels_are_those_of_a_direct_count(
    few, small_spec, method, monkeypatch
):
    """The outputs of every step, kept by a hook and counted with numpy's plain comparisons."""
    spec = small_spec(method, epochs=2)
    logits, built = [], trainer.build_model

    def watched(*arguments):
        model = built(*arguments)
        model.register_forward_hook(
            lambda module, inputs, output: logits.append(output) if module.training else None
        )
        return model

    monkeypatch.setattr(trainer, "build_model", watched)
    result = train(spec, few, **CPU, details=True)
    given, truth = shown(spec, few).numpy(), few.train_labels.numpy()
    margin = np.zeros(192)
    for epoch in range(2):
        order = torch.randperm(192, generator=spec.generator(f"order/{epoch}")).numpy()
        z = torch.cat(logits[2 * epoch : 2 * epoch + 2]).detach().numpy()
        guess, y, true = z.argmax(axis=1), given[order], truth[order]
        wrong = y != true
        for name, share in (
            ("memorised", (guess == y)[wrong].mean()),
            ("corrected", (guess == true)[wrong].mean()),
            ("fitted", (guess == y)[~wrong].mean()),
        ):
            assert result.history[name][epoch] == pytest.approx(share)
        for i, row in enumerate(z):
            margin[order[i]] += (row[y[i]] - np.delete(row, y[i]).max()) / 2
    np.testing.assert_allclose(result.details["train_mean_margin"], margin, rtol=1e-4, atol=1e-5)


def test_clean_labels_have_none_to_memorise(few, small_spec):
    history = train(small_spec("ce", noise="clean", noise_rate=0.0), few, **CPU).history
    assert history["memorised"] == history["corrected"] == [None, None]
    assert all(0 < share <= 1 for share in history["fitted"])


def test_the_confusion_matrix_is_that_of_the_last_epoch(few, small_spec):
    result = train(small_spec("ce"), few, **CPU, details=True)
    matrix = torch.tensor(result.confusion)
    assert matrix.sum(dim=1).tolist() == few.test_labels.bincount(minlength=10).tolist()
    assert 100 * matrix.trace() / matrix.sum() == pytest.approx(result.history["test_accuracy"][-1])
    guess = result.details["test_prediction"]
    assert matrix.sum(dim=0).tolist() == guess.bincount(minlength=10).tolist()
    assert result.history["classes_predicted"][-1] == len(guess.unique())
    recall = (matrix.diagonal() / matrix.sum(dim=1)).min().item()
    assert result.history["lowest_recall"][-1] == pytest.approx(100 * recall)
    right = result.details["test_margin"] > 0
    assert torch.equal(right, guess == few.test_labels)


def test_clipped_is_the_share_of_steps_over_the_bound(few, small_spec):
    for bound, share in ((1e9, 0.0), (1e-9, 1.0), (None, 0.0)):
        history = train(small_spec("ce", clip_norm=bound), few, **CPU).history
        assert history["clipped"] == [share, share]


def test_smaller_images_are_averaged_and_the_network_fits_them(few, small_spec):
    spec = small_spec("ce", side=None).model_copy(update={"side": 8, "epochs": 1})
    square = replace(
        few,
        train_images=few.train_images[..., 2:26, 2:26],
        test_images=few.test_images[..., 2:26, 2:26],
    )
    assert train(spec, square, **CPU).history["test_accuracy"][0] > 0


def test_cosine_may_end_above_zero(few, small_spec):
    spec = small_spec("ce", epochs=4, final_learning_rate=0.001)
    rates = train(spec, few, **CPU).history["learning_rate"]
    expected = [0.001 + 0.009 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert rates == pytest.approx(expected)


# --- every method --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "mae", "nce_rce", "nfl_rce_sr", "nlnl_sr"])
def test_every_method_trains_to_finite_numbers(few, small_spec, method):
    history = train(small_spec(method), few, **CPU).history
    assert all(
        math.isfinite(value) for values in history.values() for value in values if value is not None
    )
    assert len(set(history["train_loss"])) == 2


@pytest.mark.parametrize("method", ["nlnl", "co_teaching"])
def test_methods_with_more_state_resume_to_the_same_bits(few, small_spec, method):
    spec = small_spec(method, epochs=3, padding=2, flip=True)
    states = []
    whole = train(spec, few, **CPU, on_epoch=lambda state: states.append(through_a_file(state)))
    for state in states[:-1]:
        resumed = train(spec, few, **CPU, state=state)
        assert numbers(resumed.history) == numbers(whole.history)


def test_co_teaching_trains_two_networks_and_reports_their_mean(few, small_spec):
    states = []
    spec = small_spec("co_teaching", epochs=1)
    result = train(spec, few, **CPU, on_epoch=lambda state: states.append(through_a_file(state)))
    accuracies = []
    for weights in states[0]["models"]:
        model = build_model("cnn4", 10, 0)
        model.load_state_dict(weights)
        model.eval()
        with torch.no_grad():
            logits = model((few.test_images.float() / 255 - few.mean[0]) / few.std[0])
        accuracies.append(100 * (logits.argmax(1) == few.test_labels).float().mean().item())
    assert len(accuracies) == 2
    one_image = 100 / len(few.test_labels)
    assert result.history["test_accuracy"][-1] == pytest.approx(
        sum(accuracies) / 2, abs=1.01 * one_image
    )
    first, second = (weights["fc2.weight"] for weights in states[0]["models"])
    assert not torch.equal(first, second)


def test_of_two_networks_the_details_and_the_confusion_are_the_firsts(few, small_spec):
    states = []
    spec = small_spec("co_teaching", epochs=1)
    result = train(
        spec, few, **CPU, details=True, on_epoch=lambda state: states.append(through_a_file(state))
    )
    model = build_model("cnn4", 10, 0)
    margins = []
    for weights in states[0]["models"]:
        model.load_state_dict(weights)
        with torch.no_grad():
            logits = model.eval()((few.test_images.float() / 255 - few.mean[0]) / few.std[0])
        label = logits.gather(1, few.test_labels[:, None])
        others = logits.scatter(1, few.test_labels[:, None], -math.inf).amax(dim=1, keepdim=True)
        margins.append((label - others).flatten())
    first, second = margins
    torch.testing.assert_close(result.details["test_margin"].float(), first, rtol=1e-2, atol=1e-2)
    assert (first - second).abs().max() > 0.1
    rights = sum(row[k] for k, row in enumerate(result.confusion))
    assert rights == (result.details["test_margin"] > 0).sum()


def test_co_teaching_with_nothing_left_out_is_two_plain_runs(few, small_spec):
    """Each network then has the gradients of its own CE on every sample."""
    states = []
    for spec in (small_spec("co_teaching", forget_rate=0.0, epochs=1), small_spec("ce", epochs=1)):
        train(spec, few, **CPU, on_epoch=lambda state: states.append(through_a_file(state)))
    (first, second), (alone,) = (state["models"] for state in states)
    for name, weights in alone.items():
        torch.testing.assert_close(first[name], weights, rtol=1e-3, atol=1e-4)
    assert not torch.equal(second["fc2.weight"], alone["fc2.weight"])


def test_exponential_decay_is_stretched_to_the_budget(few, small_spec):
    spec = small_spec("ce", epochs=2, paper_epochs=4, decay=0.9, nesterov=True, clip_norm=None)
    rates = train(spec, few, **CPU).history["learning_rate"]
    assert rates == pytest.approx([0.01, 0.01 * 0.9**2])


def test_features_are_the_last_hidden_layer_of_the_test_set(few, small_spec):
    result = train(small_spec("ce", epochs=1), few, **CPU, details=True)
    features = result.details["features"]
    assert features.shape == (60, 128)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert (features >= 0).all()
    assert features.std() > 0


def test_a_training_margin_is_that_of_the_given_label(few, small_spec):
    states = []
    spec = small_spec("ce", epochs=1)
    details = train(
        spec, few, **CPU, details=True, on_epoch=lambda state: states.append(through_a_file(state))
    ).details
    model = build_model("cnn4", 10, 0)
    model.load_state_dict(states[0]["models"][0])
    with torch.no_grad():
        logits = model.eval()((few.train_images.float() / 255 - few.mean[0]) / few.std[0])
    noise = symmetric_transition(10, spec.noise_rate)
    given = corrupt_labels(few.train_labels, noise, spec.generator("noise"))
    expected = margins(logits, given)
    torch.testing.assert_close(details["train_margin"].float(), expected, rtol=1e-2, atol=1e-2)
    assert (given != few.train_labels).any()
    assert torch.equal(details["train_prediction"].long(), logits.argmax(dim=1))


def test_bf16_runs_and_stays_near_float32(few, small_spec):
    tiny = replace(few, train_images=few.train_images[:64], train_labels=few.train_labels[:64])
    spec = small_spec("ce_sr", epochs=1)
    result = train(spec, tiny, device="cpu", precision="bf16", details=True)
    exact = train(spec, tiny, **CPU)
    assert result.precision == "bf16"
    assert result.details["features"].dtype == torch.float32
    assert result.history["train_loss"] == pytest.approx(exact.history["train_loss"], rel=1e-2)
    assert all(
        math.isfinite(value)
        for values in result.history.values()
        for value in values
        if value is not None
    )


def test_in_bf16_the_loss_is_still_given_float32(few, small_spec, monkeypatch):
    seen = []

    class Seeing(nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            seen.append(logits.dtype)
            return super().forward(logits, labels)

    monkeypatch.setattr(objective, "build_criterion", lambda spec, reduction: Seeing())
    train(small_spec("ce", epochs=1), few, device="cpu", precision="bf16")
    assert seen == [torch.float32] * 2


def test_each_place_is_named_where_a_run_goes_on_with_other_threads(few, small_spec, monkeypatch):
    states = []
    spec = small_spec("ce", epochs=3)
    whole = train(spec, few, **CPU, on_epoch=lambda state: states.append(through_a_file(state)))
    assert whole.places == [f"{whole.device}, 1 thread"]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 2)
        elsewhere = []
        keep = {"on_epoch": lambda state: elsewhere.append(through_a_file(state))}
        second = train(spec, few, **CPU, state=states[0], **keep)
    assert second.places == [f"{whole.device}, 1 thread", f"{whole.device}, 2 threads"]
    assert [state["places"] for state in elsewhere] == [second.places] * 2
    back = train(spec, few, **CPU, state=elsewhere[0])
    assert back.places == [*second.places, f"{whole.device}, 1 thread"]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ce", "ce_sr"])
def test_a_huge_learning_rate_diverges_with_a_clear_error(few, small_spec, method):
    spec = small_spec(method, learning_rate=1e30, clip_norm=None, epochs=3)
    with pytest.raises(DivergedError, match=rf"{spec.id}: .*epoch"):
        train(spec, few, **CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_diverges(few, small_spec, monkeypatch, value):
    class Broken(nn.Module):
        def forward(self, logits, labels):
            return logits.sum() * 0 + value

    monkeypatch.setattr(objective, "build_criterion", lambda spec, reduction: Broken())
    stored = []
    with pytest.raises(DivergedError, match=rf"epoch 1 is {value}"):
        train(small_spec("ce"), few, **CPU, on_epoch=stored.append)
    assert stored == []


def test_weights_broken_by_the_last_step_diverge(few, small_spec):
    """Every loss was finite; the outputs that the record would be made of are not."""
    whole = replace(few, train_images=few.train_images[:128], train_labels=few.train_labels[:128])
    spec = small_spec("ce", learning_rate=1e38, clip_norm=1e38, epochs=1)
    with pytest.raises(DivergedError, match="test outputs of epoch 1 are not finite"):
        train(spec, whole, **CPU)


def test_the_state_of_another_run_is_refused(few, small_spec):
    states = []
    train(small_spec(epochs=1), few, **CPU, on_epoch=states.append)
    with pytest.raises(ValueError, match=rf"of another run, {small_spec(epochs=1).id} in float32"):
        train(small_spec(epochs=2), few, **CPU, state=states[0])
    with pytest.raises(ValueError, match=r"of another run, .* in float32"):
        train(small_spec(epochs=1), few, device="cpu", precision="bf16", state=states[0])


def test_the_state_of_other_data_is_refused(few, small_spec):
    states = []
    train(small_spec(), few, **CPU, on_epoch=lambda state: states.append(copy.deepcopy(state)))
    with pytest.raises(StateError, match=r"the state was made with lnlsr .*, and this is lnlsr"):
        train(small_spec(), replace(few, origin="a JPEG copy"), **CPU, state=states[0])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: state.update(epoch=0), r"epoch is 0, and should be in \[1, 2\]"),
        (lambda state: state.update(epoch=3), r"epoch is 3, and should be in \[1, 2\]"),
        (lambda state: state.update(epoch=True), "epoch is True"),
        (lambda state: state.pop("models"), "a state is a dict of"),
        (lambda state: state["history"]["fitted"].append(0.5), "fitted is not a list of 1 numbers"),
        (
            lambda state: state["history"].update(zero_rate=[1.5]),
            r"(?s)zero_rate.*less than or equal to 1",
        ),
        (
            lambda state: state["history"].update(memorised=[-0.5]),
            r"(?s)memorised.*greater than or equal to 0",
        ),
        (
            lambda state: state["history"].update(lowest_recall=[-1.0]),
            r"(?s)lowest_recall.*greater than or equal to 0",
        ),
        (lambda state: state["scheduler"].update(last_epoch=2), "not that of epoch 1"),
        (lambda state: state["confusion"].pop(), "confusion is not K rows of K counts"),
        (lambda state: state.update(places=[]), "places are no list of names"),
        (lambda state: state.update(places=[1]), "places are no list of names"),
        (lambda state: state["models"].append(state["models"][0]), "does not fit"),
        (lambda state: state["models"][0].pop("fc2.weight"), "does not fit"),
        (lambda state: state["objective"].update(extra=1), "does not fit"),
    ],
)
def test_a_state_that_cannot_be_is_refused(few, small_spec, change, why):
    states = []
    train(small_spec(), few, **CPU, on_epoch=lambda state: states.append(copy.deepcopy(state)))
    change(states[0])
    with pytest.raises(StateError, match=why):
        train(small_spec(), few, **CPU, state=states[0])


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cpu:x", "", "meta"])
def test_unknown_devices_are_refused(few, small_spec, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here"):
        train(small_spec("ce"), few, device=device)


@pytest.mark.parametrize("precision", ["fp8", "float64", ""])
def test_unknown_precisions_are_refused(few, small_spec, precision):
    with pytest.raises(ValueError, match="precision must be auto, float32 or bf16, got"):
        train(small_spec("ce"), few, device="cpu", precision=precision)


# --- compiled ------------------------------------------------------------------------------------


def test_compiled_is_the_same_training(monkeypatch, few, small_spec):
    """Traced, with the compiler itself left out; the last short batch and Co-teaching included."""
    traced = []

    def compile(model, **options):
        traced.append(model)
        return torch_compile(model, backend="aot_eager", **options)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    for method, networks in (("ce_sr", 1), ("co_teaching", 2)):
        spec = small_spec(method, epochs=2)
        states = []
        usual = train(spec, few, **CPU)
        assert not traced
        ours = train(
            spec,
            few,
            **CPU,
            compiled=True,
            on_epoch=lambda state, states=states: states.append(through_a_file(state)),
        )
        assert len(traced) == networks
        assert ours.device == usual.device + ", compiled"
        assert ours.history["train_loss"] == pytest.approx(usual.history["train_loss"], rel=1e-3)
        with pytest.raises(ValueError, match=r"cpu, compiled, and this is .*cpu; delete it"):
            train(spec, few, **CPU, state=states[0])
        traced.clear()
    assert len(few.train_labels) % spec.batch_size


# --- with a GPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [pytest.param(m, marks=gpu) for m in ("ce", "gce", "ce_sr")])
def test_cuda_agrees_with_the_cpu_in_the_first_epoch(few, small_spec, method):
    spec = small_spec(method, epochs=1)
    on_cpu = train(spec, few, **CPU).history["train_loss"]
    on_cuda = train(spec, few, device="cuda", precision="float32").history["train_loss"]
    assert on_cuda == pytest.approx(on_cpu, rel=5e-3)


@pytest.mark.parametrize("precision", [pytest.param(p, marks=gpu) for p in ("float32", "bf16")])
def test_cuda_trains_resumes_and_returns_features(few, small_spec, precision):
    states = []
    where = {"device": "cuda", "precision": precision, "details": True}
    whole = train(
        small_spec(), few, **where, on_epoch=lambda state: states.append(through_a_file(state))
    )
    resumed = train(small_spec(), few, **where, state=states[0])
    assert whole.details["features"].device.type == "cpu"
    assert whole.device.startswith("cuda (")
    assert resumed.history["train_loss"] == pytest.approx(whole.history["train_loss"], rel=2e-2)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=gpu) for m in ("ce", "gce_sr", "nlnl", "co_teaching", "apl")]
)
def test_cuda_is_asked_nothing_inside_an_epoch(few, small_spec, method):
    """A question to the device would stall its queue at every step."""
    spec = small_spec(method, batch_size=16, epochs=1, padding=4, flip=True, degrees=20.0)
    steps = 0

    def watch():
        nonlocal steps
        steps += 1
        if steps == 1:
            torch.cuda.set_sync_debug_mode("error")
        elif steps == 12:
            torch.cuda.set_sync_debug_mode("default")

    try:
        train(spec, few, device="cuda", precision="bf16", on_batch=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == 12


@pytest.mark.parametrize("precision", [pytest.param(p, marks=gpu) for p in ("float32", "bf16")])
def test_cuda_compiled_agrees_with_the_same_uncompiled(few, small_spec, precision):
    where = {"device": "cuda", "precision": precision}
    spec = small_spec(epochs=1)
    usual = train(spec, few, **where).history["train_loss"]
    assert train(spec, few, **where, compiled=True).history["train_loss"] == pytest.approx(
        usual, rel=2e-2
    )
