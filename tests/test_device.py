"""Which device, and which precision on it."""

import pytest
import torch

from lnlsr_lib.device import device_name, keep_freed_memory, resolve_device, resolve_precision


def test_auto_resolves():
    device = resolve_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else device.type)
    assert resolve_precision("auto", device) in ("float32", "bf16")
    assert resolve_precision("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, "float32"),
        ({"avx512_f": True, "amx_bf16": False}, "float32"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        # Sapphire Rapids whose AMX a virtual machine hides, and as it is
        ({"avx512_bf16": True, "avx512_fp16": True, "cpu_name": "Intel Xeon"}, "float32"),
        (
            {
                "amx_bf16": True,
                "avx512_bf16": True,
                "avx512_fp16": True,
                "cpu_name": "Intel Xeon",
            },
            "bf16",
        ),
        ({"avx512_bf16": True, "avx512_fp16": True, "cpu_name": "AMD EPYC"}, "bf16"),
    ],
)
def test_auto_precision_on_a_cpu_is_bf16_only_where_that_is_faster(
    monkeypatch, capabilities, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("used", "ending"), [("AVX2", ", AVX2)"), ("DEFAULT", ")")])
def test_the_name_says_the_kind_the_model_and_the_instructions(monkeypatch, used, ending):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: used)
    name = device_name(torch.device("cpu"))
    assert name.startswith("cpu (")
    assert name.endswith(ending)
    assert "DEFAULT" not in name


def test_keeping_memory_may_be_asked_twice():
    assert keep_freed_memory() == keep_freed_memory()
