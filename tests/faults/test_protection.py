from __future__ import annotations

import copy
import math

import pandas as pd
import pytest
import torch

from torch import nn

from pystack_nb import faults
from pystack_nb.errors import CampaignError, FaultDetectedError, FaultError
from pystack_nb.faults import protection
from pystack_nb.faults.protection import compare


BIG = faults.BitFlip(bit=30)
LOW = faults.BitFlip(bit=0)


@pytest.fixture(autouse=True)
def one_thread():
    # Threads that wait for each other take seconds for these tiny tensors on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convs = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, stride=2)]
        net = nn.Sequential(*convs, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 3 * 3, 10))
    return net.eval()


def images(count=5):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def run(model, *inputs):
    with torch.no_grad():
        return model(*inputs)


def hooked(model):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return hooks + sum("forward" in m.__dict__ for m in model.modules())


def counts(protecting, layer, defence):
    table = protecting.report().set_index(["layer", "defence"])
    return tuple(table.loc[(layer, defence), ["checks", "detections", "corrections"]])


def inputs_of(module):
    seen = []
    module.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    return seen


def every_defence(model):
    ranger = faults.Ranger.profile(model, images())
    return [ranger, faults.NanDetector(), faults.Duplicate(), faults.Checksum()]


def test_protections_change_no_bit_without_faults_and_leave_nothing_behind():
    model, x = network(), images()
    right, state = run(model, x), copy.deepcopy(model.state_dict())
    with faults.protect(model, *every_defence(model)) as protecting:
        assert torch.equal(run(model, x), right)
        assert torch.equal(run(model, x[:1]), run(model, x[:1].clone()))
    report = protecting.report()
    assert set(report["defence"]) == {"Ranger", "NanDetector", "Duplicate", "Checksum"}
    assert (report["checks"] == 3).all()
    assert not report[["detections", "corrections"]].to_numpy().any()
    assert hooked(model) == 0
    assert torch.equal(run(model, x), right)
    assert all(
        torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("first", ["inject", "protect"])
@pytest.mark.parametrize("role", ["output", "input"])
def test_defences_look_after_faults_whichever_context_was_entered_first(first, role):
    model, x = network(), images()
    model[0].weight.data.clamp_(-1, 1)
    fault = faults.Fault("3", role, (0, 2, 1, 1), error=faults.Replace(1e6))
    ranger = faults.Ranger.profile(model, x)
    contexts = [lambda: faults.inject(model, fault), lambda: faults.protect(model, ranger)]
    contexts = contexts if first == "inject" else contexts[::-1]
    with contexts[0]() as outer, contexts[1]() as inner:
        for _ in range(2):
            output = run(model, x)
        protecting = inner if first == "inject" else outer
    assert counts(protecting, "3", "Ranger") == (2, 2, 2)
    assert output.abs().max() < 1e3


def test_ranger_bounds_are_the_extremes_of_the_activations():
    model, x = network(), images()
    ranger = faults.Ranger.profile(model, x, batch_size=2, margin=0)
    assert list(ranger.bounds) == ["1", "3"]
    hidden = model[:2](x)
    assert ranger.bounds["1"] == (hidden.min().item(), hidden.max().item())
    assert hooked(model) == 0
    named = faults.Ranger.profile(model, (x, torch.zeros(5)), layers=["5"])
    assert named.bounds["5"][1] == pytest.approx(run(model, x).max().item(), rel=1e-4)
    assert named.bounds["5"][1] > run(model, x).max()


def test_ranger_clamps_infinity_and_replaces_nan():
    model, x = network(), images()
    ranger = faults.Ranger.profile(model, x)
    low, high = (float(torch.tensor(bound)) for bound in ranger.bounds["3"])
    for value, expected in [(math.inf, high), (-math.inf, low), (math.nan, 0.0)]:
        seen = inputs_of(model[4])
        fault = faults.Fault("3", "output", (1, 2, 0, 0), error=faults.Replace(value))
        with faults.inject(model, fault), faults.protect(model, ranger) as protecting:
            assert run(model, x).isfinite().all()
        assert seen[0][1, 2, 0, 0].item() == expected
        assert counts(protecting, "3", "Ranger") == (1, 1, 1)
    keeping = faults.Ranger(ranger.bounds, nan=None)
    with faults.inject(model, fault), faults.protect(model, keeping):
        assert run(model, x).isnan().any()


def test_gradients_pass_a_restricted_range():
    model, x = network(), images()
    with faults.protect(model, faults.Ranger({"3": (0.0, 0.1)})):
        model(x).sum().backward()
    assert model[5].weight.grad.abs().max() > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_detected_where_they_appear(value):
    model, x = network(), images()
    fault = faults.Fault("2", "output", (0, 1, 1, 1), error=faults.Replace(value))
    with faults.protect(model, faults.NanDetector()) as protecting:
        with faults.inject(model, fault), pytest.raises(FaultDetectedError, match="layer '2'"):
            run(model, x)
        run(model, x)
    assert counts(protecting, "2", "NanDetector") == (2, 1, 0)
    with faults.protect(model, faults.NanDetector(action="record")) as protecting:
        with faults.inject(model, fault):
            run(model, x)
        assert counts(protecting, "2", "NanDetector") == (1, 1, 0)
    assert hooked(model) == 0


@pytest.mark.parametrize("layer", ["0", "1", "2", "5"])
def test_duplicated_execution_detects_any_flipped_bit(layer):
    model, x = network(), images()
    right = run(model, x)
    fault = faults.Fault(layer, error=LOW)
    with faults.inject(model, fault, seed=0) as log, faults.protect(model, faults.Duplicate()):
        with pytest.raises(FaultDetectedError, match="two runs differ"):
            run(model, x)
        assert len(log.to_frame()) == 1
    correcting = faults.Duplicate(action="correct")
    with faults.protect(model, correcting) as protecting, faults.inject(model, fault, seed=0):
        assert torch.equal(run(model, x), right)
    assert counts(protecting, layer, "Duplicate") == (1, 1, 1)
    recording = faults.Duplicate(action="record")
    with faults.protect(model, recording) as protecting, faults.inject(model, fault, seed=0):
        run(model, x)
    assert counts(protecting, layer, "Duplicate") == (1, 1, 0)


def test_duplicated_execution_sees_no_wrong_weight_and_refuses_training_mode():
    model, x = network(), images()
    with faults.protect(model, faults.Duplicate()) as protecting:
        with faults.inject(model, faults.Fault("0", "weight", (0, 0, 0, 0), error=BIG)):
            run(model, x)
        assert not protecting.report()["detections"].any()
        model.train()
        with pytest.raises(FaultError, match=r"model\.eval"):
            run(model, x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(7, 5), (4, 7)),
        (nn.Linear(7, 5, bias=False), (2, 3, 7)),
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
        (nn.Conv2d(3, 6, 3, stride=2, padding=1, padding_mode="circular"), (2, 3, 8, 8)),
        (nn.Conv2d(4, 4, 3, groups=4, dilation=2), (2, 4, 9, 9)),
        (nn.Conv2d(3, 6, 3, padding="same"), (3, 8, 8)),
        (nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_checksums_find_wrong_outputs_and_weights_of_every_kind_of_layer(layer, shape):
    model = nn.Sequential(copy.deepcopy(layer)).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    right = run(model, x)
    for role in ("output", "weight"):
        fault = faults.Fault("0", role, error=faults.Replace(1e3))
        with faults.protect(model, faults.Checksum()) as protecting:
            run(model, x)
            with faults.inject(model, fault, seed=0), pytest.raises(FaultDetectedError):
                run(model, x)
        assert counts(protecting, "0", "Checksum") == (2, 1, 0)
        recording = faults.Checksum(action="record")
        with faults.protect(model, recording) as protecting, faults.inject(model, fault, seed=0):
            run(model, x)
        assert counts(protecting, "0", "Checksum") == (1, 1, 0)
    correcting = faults.Checksum(action="correct")
    with faults.protect(model, correcting) as protecting:
        with faults.inject(model, faults.Fault("0", error=faults.Replace(1e3)), seed=0):
            assert torch.equal(run(model, x), right)
        with faults.inject(model, fault, seed=0), pytest.raises(FaultDetectedError):
            run(model, x)
    assert counts(protecting, "0", "Checksum") == (2, 2, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e3])
def test_checksums_give_no_false_alarm(dtype, spread):
    generator = torch.Generator().manual_seed(5)
    layers = [nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32 * 36, 64)]
    model = nn.Sequential(*layers).to(dtype).eval()
    # Numbers of very different sizes that cancel: sums lose what they can lose.
    x = torch.randn(4, 16, 8, 8, generator=generator) * spread
    x *= 10 ** torch.randn(x.shape, generator=generator).clamp(-2, 1)
    x = x.to(dtype)
    with faults.protect(model, faults.Checksum()) as protecting:
        for _ in range(3):
            run(model, x)
    assert (protecting.report()["checks"] == 3).all()


def test_a_checksum_finds_a_fault_just_above_its_bound_and_lets_pass_one_far_below():
    model = nn.Sequential(nn.Linear(64, 32)).double().eval()
    x = torch.rand(1, 64, dtype=torch.float64)
    terms = model[0].weight.abs().sum(0) @ x[0] + model[0].bias.abs().sum()
    unit = 2.0**-53
    bound = ((64 + 32) + (64 + 2)) * unit * terms.item()
    for shift, found in [(4 * bound, 1), (0.01 * bound, 0)]:
        add = faults.Custom(lambda values, _, shift=shift: values + shift)
        fault = faults.Fault("0", "output", (0, 3), error=add)
        with (
            faults.protect(model, faults.Checksum(action="record")) as protecting,
            faults.inject(model, fault),
        ):
            run(model, x)
        assert counts(protecting, "0", "Checksum") == (1, found, 0)


def test_recurrent_attention_and_normalising_layers_run_under_protection():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.rand(2, 3, 8)
    defences = [faults.NanDetector(), faults.Duplicate(), faults.Checksum()]
    with faults.protect(model, *defences) as protecting:
        protected = run(model, x)
    assert torch.allclose(protected, run(model, x), atol=1e-5)
    assert counts(protecting, "self_attn", "Duplicate") == (1, 0, 0)
    memory = nn.Sequential(nn.LSTM(4, 3)).eval()
    with faults.protect(memory, faults.NanDetector(), faults.Duplicate()) as protecting:
        output, _ = run(memory, torch.rand(2, 1, 4))
        fault = faults.Fault("0", "output.1.0", error=faults.Replace(math.nan))
        with faults.inject(memory, fault, seed=0), pytest.raises(FaultDetectedError):
            run(memory, torch.rand(2, 1, 4))
    assert output.shape == (2, 1, 3)


def test_an_exception_within_the_model_leaves_no_trace():
    model = network()
    with pytest.raises(RuntimeError, match="channels"), faults.protect(model, faults.Duplicate()):
        run(model, torch.rand(1, 3, 8, 8))
    assert hooked(model) == 0
    with faults.protect(model, *every_defence(model)):
        with pytest.raises(RuntimeError, match="channels"):
            run(model, torch.rand(1, 3, 8, 8))
        run(model, images())


def test_protections_nest():
    model, x = network(), images()
    ranger = faults.Ranger.profile(model, x)
    fault = faults.Fault("3", "output", (0, 0, 0, 0), error=faults.Replace(math.nan))
    with faults.protect(model, faults.Duplicate(action="record")) as outer:
        with faults.protect(model, ranger) as inner, faults.inject(model, fault):
            assert run(model, x).isfinite().all()
        run(model, x)
    assert counts(inner, "3", "Ranger") == (1, 1, 1)
    assert counts(outer, "3", "Duplicate")[0] == 2
    assert hooked(model) == 0


class Idle(nn.Module):
    """Has activations that it does not run."""

    def __init__(self, inner, count):
        super().__init__()
        self.inner, self.idle = inner, nn.ModuleList(nn.ReLU() for _ in range(count))

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (faults.protect, "nothing to protect by"),
        (lambda model: faults.protect(model, "Ranger"), "nothing to protect by"),
        (lambda model: faults.protect(model, faults.NanDetector(layers=["6"])), "no layer '6'"),
        (lambda model: faults.protect(model, faults.Checksum(layers=["1"])), "is a ReLU"),
        (
            lambda model: faults.protect(model[1], faults.Checksum()),
            r"^Checksum finds .*\(Linear, Conv1d, Conv2d, Conv3d\).*layers=\[...\]",
        ),
        (lambda _: faults.Checksum(action="clamp"), "choose among raise, record, correct"),
        (lambda _: faults.NanDetector(action="correct"), "choose among raise, record"),
        (lambda _: faults.Checksum(scale=0), "more than 0"),
        (lambda _: faults.Ranger({"1": (1.0, 0.0)}), "swap them"),
        (
            lambda model: faults.Ranger.profile(model[0], images()),
            r"^Ranger finds .*\(ReLU, ReLU6, .*, Hardshrink\).*=\[...\]",
        ),
        (
            lambda model: faults.Ranger.profile(Idle(model, 2), images(), layers=["idle.0"]),
            r"none of the layers 'idle\.0' runs",
        ),
        (
            lambda model: faults.Ranger.profile(Idle(model[0], 10), images()),
            r"none of the layers 'idle\.0', .*'idle\.7' and 2 more runs .*layers=\[...\]",
        ),
        (lambda model: faults.Ranger.profile(model, images() * math.nan), "gives NaN"),
    ],
)
def test_senseless_protections_are_refused(make, message):
    def enter():
        with make(network()):
            pass

    with pytest.raises(FaultError, match=message):
        enter()


def planned(rows):
    columns = {"stratum": 0, "call": 0, "kind": "neuron", "sample": 0, "value": math.nan}
    full, none = 2**64 - 1, 0
    masks = {"and_mask": full, "or_mask": none, "xor_mask": none, "bit": -1, "role": "output"}
    table = pd.DataFrame([columns | masks | row for row in rows])
    return table.assign(fault=range(len(table))).astype(
        dict.fromkeys(["and_mask", "or_mask", "xor_mask"], "uint64")
    )


def test_compare_says_what_each_protection_leaves_and_costs():
    model, x = network(), images()
    with torch.no_grad():
        model[5].weight[7] = 3.0
    rows = [
        {"layer": "3", "element": i, "sample": i % 5, "and_mask": 0, "or_mask": 0x60000000}
        for i in range(6)
    ]
    rows += [{"layer": "5", "element": 1, "or_mask": 0x7FC00000, "and_mask": 0, "bit": 22}]
    rows += [{"layer": "0", "element": 1, "xor_mask": 1, "bit": 0}]
    rows += [
        {"layer": "0", "role": "weight", "kind": "weight", "call": -1, "element": 3, "xor_mask": 0}
    ]
    before = copy.deepcopy(model.state_dict())
    table = compare(
        model,
        x,
        planned(rows),
        {
            "ranger": faults.Ranger.profile(model, x),
            "twice": faults.Duplicate(),
            "all": [faults.NanDetector(), faults.Checksum(action="correct")],
        },
        metric=faults.Tolerance(atol=1.0),
        repeats=2,
    ).set_index("protection")
    assert list(table.index) == ["none", "ranger", "twice", "all"]
    assert (table[["masked", "SDC", "DUE", "detected"]].sum(axis=1) == len(rows)).all()
    assert (table["false_alarms"] == 0).all()
    assert table.loc["none", ["SDC", "DUE", "detected", "noticed"]].tolist() == [6, 1, 0, 0]
    assert table.loc["ranger", "noticed"] == 6
    assert table.loc["ranger", "DUE"] == 1
    assert table.loc["twice", "detected"] == 8
    assert table.loc["all", "detected"] == 1
    assert table.loc["none", "relative_failures"] == 1
    assert (table["relative_failures_high"] > table["relative_failures"]).all()
    assert table.loc["none", "SDC_low"] < 6 / 9 < table.loc["none", "SDC_high"]
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )
    assert hooked(model) == 0


@pytest.mark.parametrize("kind", ["neurons", "weights"])
def test_a_campaign_under_protection_ends_as_compare_says(kind):
    model, x = network(), images()
    ranger = faults.Ranger.profile(model, x)
    chosen = {"seed": 0, "faults": 80, "metric": faults.Tolerance(atol=0.1)}
    field = faults.BitFlip(field="exponent")
    planned = faults.Campaign(model, x, field, kind, **chosen).plan().faults
    table = compare(model, x, planned, {"ranger": ranger}, metric=chosen["metric"], repeats=1)
    for protection_of, row in zip(["none", "ranger"], table.itertuples(), strict=True):
        campaign = faults.Campaign(model, x, field, kind, **chosen)
        if protection_of == "none":
            outcomes = campaign.run(progress=False)["outcome"]
        else:
            with faults.protect(model, ranger):
                outcomes = campaign.run(progress=False)["outcome"]
        for outcome in ("masked", "SDC", "DUE"):
            assert (outcomes == outcome).sum() == getattr(row, outcome)


class Masking(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        x.sub_(0.5)
        masked = torch.full_like(x[:, :1], -torch.inf)
        return torch.cat([self.linear(x), masked], 1)


def test_infinity_that_the_model_gives_itself_is_no_due_as_in_a_campaign():
    model, x = Masking().eval(), torch.rand(6, 4)
    before = x.clone()
    campaign = faults.Campaign(model, x, faults.BitFlip(), faults=60, seed=0)
    outcomes = campaign.run(progress=False)["outcome"]
    table = compare(model, x, campaign.plan().faults, {}, repeats=1)
    for outcome in ("masked", "SDC", "DUE"):
        assert (outcomes == outcome).sum() == table[outcome].item()
    assert (outcomes == "masked").any()
    assert torch.equal(x, before)


def test_data_that_the_model_overwrites_stay_as_they_are():
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)).eval(), torch.randn(6, 4)
    before = x.clone()
    ranger = faults.Ranger.profile(model, x)
    rows = planned([{"layer": "1", "element": 0, "xor_mask": 1}])
    compare(model, x, rows, {"ranger": ranger}, repeats=1)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("defence", "kind", "message"),
    [
        (faults.Checksum(layers=["1"]), FaultError, "is a ReLU"),
        ([], FaultError, "nothing to protect by"),
        (faults.Checksum(scale=1e-9), FaultDetectedError, "a checksum differs"),
    ],
    ids=["refused", "empty", "alarm"],
)
def test_compare_names_the_protection_that_is_refused(defence, kind, message):
    model, x = network(), images()
    rows, good = planned([{"layer": "0", "element": 0, "xor_mask": 1}]), faults.NanDetector()
    with pytest.raises(kind, match=f"^protection 'bad': .*{message}"):
        compare(model, x, rows, {"good": good, "bad": defence}, repeats=1)
    assert hooked(model) == 0


def test_compare_reserves_the_name_of_the_row_without_protection():
    rows = planned([{"layer": "0", "element": 0, "xor_mask": 1}])
    with pytest.raises(CampaignError, match=r"^'none' is the name of the row .* another name$"):
        compare(network(), images(), rows, {"none": faults.NanDetector()}, repeats=1)


def test_compare_needs_faults_and_labels():
    model, x = network(), images()
    with pytest.raises(CampaignError, match="no column 'sample': give a plan"):
        compare(model, x, planned([{"layer": "0", "element": 0}]).drop(columns="sample"), {})
    with pytest.raises(CampaignError, match="plan some faults"):
        compare(model, x, planned([{"layer": "0", "element": 0}]).iloc[:0], {})
    with pytest.raises(CampaignError, match="labels"):
        compare(
            model,
            x,
            planned([{"layer": "0", "element": 0}]),
            {},
            metric=faults.Top1(where_right=True),
        )


def test_every_public_name_is_there():
    assert all(hasattr(protection, name) for name in protection.__all__)
