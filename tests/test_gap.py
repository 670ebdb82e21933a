"""`steadyrl gap`: its numbers against a computation response by response, by plain forwards of transformers."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from recipes_for_tests import coin_questions, command, train
from steadyrl import cli, gap
from steadyrl.routing import record, replay
from steadyrl.training.trainer import LocalTrainer
from steadyrl.types import Trajectory

MINIBATCHES, RESPONSES = 2, 4


def changes(folder: Path) -> dict[str, Any]:
    return {
        "task": coin_questions(folder),
        "steps": 2,
        "update": {"minibatches": MINIBATCHES},
        "rollout": {"temperature": 0.8},
        "optimizer": {"learning_rate": 1e-2, "schedule": "linear"},
        "evaluate": {"every": 0, "prompts": 4},
        "checkpoints": {"every": 1},
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home):
    """A finished run with FP8 rollouts under R3."""
    return train(home, **changes(home))


def told(run: Path, capfd, *flags: str) -> list[dict[str, str]]:
    """The printed table, a row for each mini-batch."""
    capfd.readouterr()
    assert command("gap", run, *flags) == 0
    _, head, *lines = capfd.readouterr().out.splitlines()
    starts = [head.index(name) for name in filter(None, (part.strip() for part in head.split("  ")))]
    names = [head[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return [
        {n: line[a:b].strip() for n, a, b in zip(names, starts, [*starts[1:], None], strict=True)} for line in lines
    ]


def numbers(cell: str) -> list[float]:
    """Value and interval, or value and margin, of a cell."""
    return [float(part) for part in cell.translate(str.maketrans("[],±", "    ")).split()]


@pytest.fixture
def seen(monkeypatch):
    """What `gap` worked on: the responses, and the weights before each update."""
    found: dict[str, Any] = {"weights": []}
    with_advantages, update = gap.with_advantages, LocalTrainer.update

    def note_responses(*args, **options):
        found["responses"] = with_advantages(*args, **options)
        found["weights"].clear()  # those of the run itself came before
        return found["responses"]

    def note_weights(trainer, *args):
        found["trainer"] = trainer
        found["weights"].append({k: v.clone() for k, v in trainer.policy.model.state_dict().items()})
        return update(trainer, *args)

    monkeypatch.setattr(gap, "with_advantages", note_responses)
    monkeypatch.setattr(LocalTrainer, "update", note_weights)
    return found


def forward(model, response: Trajectory, routes: Tensor | None) -> Tensor:
    """log π of the response's tokens at temperature 0.8, alone in its batch."""
    ids, prompt = torch.tensor([response.token_ids]), len(response.spans[0].token_ids)
    with nullcontext() if routes is None else replay(model, routes):
        logits = model(input_ids=ids[:, :-1]).logits[0, prompt - 1 :] / 0.8
    return logits.log_softmax(dim=-1).gather(1, ids[0, prompt:, None]).squeeze(1)


def fixed_routes(model, response: Trajectory, mode: str) -> Tensor | None:
    """What the updates must use, the model being at θ_old."""
    if mode != "R2":
        return response.routes if mode == "R3" else None
    with record(model) as recorder, torch.no_grad():
        forward(model, response, None)
    return recorder.routes()


def over_others(seen: dict[str, Any], response: Trajectory) -> float:
    """Its reward, which is 0 or 1 here, less the mean of the others of its group."""
    (group,) = [group for group in seen["responses"] if response in group]
    lowest = min(r.advantage for r in group)
    rewards = [float(r.advantage > lowest) for r in group]
    own = rewards[group.index(response)]
    return own - (sum(rewards) - own) / (len(group) - 1)


def plain(folder: Path, seen: dict[str, Any], number: int, mode: str) -> dict[str, Any]:
    """One mini-batch, by the formulas, in float64 where it matters."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    groups = seen["responses"]
    size = len(groups) // MINIBATCHES
    moving = [r for group in groups[number * size : (number + 1) * size] for r in group if r.advantage != 0.0]
    routes = [fixed_routes(model, r, mode) for r in moving]
    with torch.no_grad():
        old = [forward(model, r, way).double() for r, way in zip(moving, routes, strict=True)]
    model.load_state_dict(seen["weights"][number])
    token, sequence, mismatches, moves, differences, bounds = [], [], [], [], [], []
    for r, way, before in zip(moving, routes, old, strict=True):
        levels = []
        for level in (token, sequence):
            model.zero_grad()
            logprobs = forward(model, r, way)
            ratios = (logprobs.detach() - r.sampled[0].logprobs).double().exp()
            weight = ratios if level is token else ratios.prod()
            (weight * r.advantage * logprobs.double()).sum().backward()
            level.append(torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None]))
            levels.append(ratios)
        mismatches.append(before - r.sampled[0].logprobs.double())
        moves.append(logprobs.detach().double() - before)
        each = levels[0].tolist()
        excess = over_others(seen, r)
        differences.append(excess * (1 + sum(x - 1 for x in each) - math.prod(each)))
        bounds.append(abs(excess) * sum(abs(x - 1) * abs(1 - math.prod(each[t + 1 :])) for t, x in enumerate(each)))
    g, G = torch.stack(token), torch.stack(sequence)
    k3 = [(x.exp() - 1 - x).mean().item() for x in (torch.cat(mismatches), torch.cat(moves))]
    deltas = torch.tensor(differences + [0.0] * (size * RESPONSES - len(differences)))  # the others add nothing
    generator = torch.Generator().manual_seed(5)
    draws = torch.randint(len(g), (1000, len(g)), generator=generator)
    counts = torch.nn.functional.one_hot(draws, len(g)).sum(dim=1).double()
    errors = (counts @ (g - G)).norm(dim=1) / (counts @ G).norm(dim=1)
    return {
        "k3": k3,
        "delta": deltas.mean().item(),
        "margin": 1.96 * (deltas.var() / len(deltas)).sqrt().item(),
        "bound": sum(bounds) / (size * RESPONSES),
        "cosine": torch.cosine_similarity(g.sum(0), G.sum(0), dim=0).item(),
        "error": ((g.sum(0) - G.sum(0)).norm() / G.sum(0).norm()).item(),
        "error_interval": errors.quantile(torch.tensor([0.025, 0.975], dtype=errors.dtype)).tolist(),
        "responses": len(moving),
    }


@pytest.mark.parametrize("mode", ["none", "R2", "R3"])
def test_the_numbers_are_those_of_a_plain_computation(mode, home, tmp_path, seen, capfd):
    run = train(tmp_path, **(changes(home) | {"update": {"minibatches": MINIBATCHES, "replay": mode}}))
    rows = told(run, capfd)
    assert [(row["mini-batch"], row["lag"]) for row in rows] == [("1", "0"), ("2", "1")]
    for number, row in enumerate(rows):
        wanted = plain(run / "checkpoints" / "step-000002", seen, number, mode)
        assert int(row["responses"]) == wanted["responses"] >= 6  # fewer than PARTS: each is a part
        assert numbers(row["k3 mismatch"])[0] == pytest.approx(wanted["k3"][0], rel=0.06)
        assert numbers(row["k3 staleness"])[0] == pytest.approx(wanted["k3"][1], rel=0.06, abs=1e-12)
        value, low, high = numbers(row["Δ [95%]"])
        close = {"rel": 0.06, "abs": 1e-6}
        assert value == pytest.approx(wanted["delta"], **close)
        assert [low, high] == pytest.approx(
            [value - wanted["margin"], value + wanted["margin"]], abs=0.1 * abs(high - low)
        )
        assert numbers(row["|Δ| ≤"])[0] == pytest.approx(wanted["bound"], **close)
        assert numbers(row["cosine [95%]"])[0] == pytest.approx(wanted["cosine"], abs=2e-4)
        error, *interval = numbers(row["‖g−G‖/‖G‖ [95%]"])
        assert error == pytest.approx(wanted["error"], abs=2e-4 + 0.01 * wanted["error"])
        assert interval == pytest.approx(wanted["error_interval"], abs=2e-4 + 0.15 * wanted["error_interval"][1])
    assert numbers(rows[1]["k3 staleness"])[0] > 1e-5  # the second mini-batch is off-policy
    assert numbers(rows[1]["‖g−G‖/‖G‖ [95%]"])[0] > 1e-3


def test_equal_engines_on_policy_have_no_gap(home, tmp_path, capfd):
    run = train(tmp_path, **(changes(home) | {"engine": {"precision": "native"}, "update": {"minibatches": 1}}))
    (row,) = told(run, capfd)
    assert row["lag"] == "0"
    assert numbers(row["cosine [95%]"]) == [1.0, 1.0, 1.0]
    assert numbers(row["‖g−G‖/‖G‖ [95%]"])[0] <= 1e-4
    assert numbers(row["k3 staleness"])[0] == 0.0
    assert abs(numbers(row["Δ [95%]"])[0]) < 1e-6


def test_a_run_of_a_cold_start_alone(home, tmp_path, capfd):
    run = train(tmp_path, "cold", **changes(home) | {"steps": 0})
    (row,) = told(run, capfd)[:1]
    assert row["lag"] == "0"


def test_nothing_of_the_run_is_changed(run, capfd):
    before = {path: (path.is_dir() or path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*")}
    told(run, capfd)
    assert {p: (p.is_dir() or p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*")} == before


def test_a_step_is_repeated_as_the_run_made_it(run, seen):
    """From the first checkpoint, the updates lead to the weights of the second, to the last bit."""
    assert command("gap", run / "checkpoints" / "step-000001") == 0
    saved = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step-000002" / "model").state_dict()
    reached = seen["trainer"].policy.model.state_dict()
    assert all(torch.equal(reached[name], value) for name, value in saved.items())
    assert any(not torch.equal(seen["weights"][0][name], value) for name, value in saved.items())


def test_it_does_not_matter_how_many_tensors_are_held_at_a_time(run, capfd, monkeypatch):
    whole = told(run, capfd, "--responses", "2")
    monkeypatch.setattr(gap, "HELD", 1)
    assert told(run, capfd, "--responses", "2") == whole


@pytest.mark.parametrize("responses", [2, 5, 6])
def test_fewer_responses(responses, run, capfd):
    rows = told(run, capfd, "--responses", str(responses))
    assert [int(row["responses"]) for row in rows] == [responses] * MINIBATCHES


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_every_response_asked_for_is_compared_in_blocks_that_differ_by_one_at_most(parts, run, capfd, monkeypatch):
    seen, products = [], gap._products

    def note(trainer, blocks):
        seen.append([sum(len(s.micro.response.unique()) for s in block) for block in blocks])
        return products(trainer, blocks)

    monkeypatch.setattr(gap, "PARTS", parts)
    monkeypatch.setattr(gap, "_products", note)
    rows = told(run, capfd, "--responses", "5")
    assert [int(row["responses"]) for row in rows] == [5] * MINIBATCHES
    assert seen == [{2: [3, 2], 3: [2, 2, 1], 4: [2, 1, 1, 1]}[parts]] * MINIBATCHES


def test_an_overflow_is_called_an_overflow(run, capfd, monkeypatch):
    products = gap._products
    monkeypatch.setattr(gap, "_products", lambda trainer, blocks: products(trainer, blocks) * math.inf)
    capfd.readouterr()
    assert command("gap", run) == 0
    out = capfd.readouterr().out
    assert "mini-batch 1: a gradient is not finite" in out
    assert "a product of ratios" in out
    assert "advantages" not in out


def test_a_mini_batch_without_advantages_says_so(home, tmp_path, capfd):
    equal = coin_questions(tmp_path, reward="def reward(prompt, completion):\n    return 1.0\n")
    run = train(tmp_path, **(changes(home) | {"task": equal}))
    capfd.readouterr()
    assert command("gap", run) == 0
    out = capfd.readouterr().out
    assert "mini-batch 2: fewer than 2 responses have an advantage" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is neither a run directory nor a checkpoint of one"),
        (["{run}", "--responses", "1"], "--responses = 1: an interval needs at least 2 responses"),
        (["{run}", "--responses", "many"], "invalid int value: 'many'"),
        (["{run}/checkpoints/step-000009"], "has no step-000009; it has ['step-000001', 'step-000002']"),
        ([], "required: run"),
    ],
)
def test_mistakes(arguments, message, run, capfd):
    capfd.readouterr()
    try:
        status = cli.main(["gap", *(a.format(run=run) for a in arguments)])
    except SystemExit as end:
        status = int(str(end.code))
    assert status == 2
    out, err = capfd.readouterr()
    assert message in err
    assert "Traceback" not in out + err
