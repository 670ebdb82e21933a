import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from builders import dense_policy, family_policy, random_ids, tiny_policy
from steadyrl.engine.base import generate
from steadyrl.engine.local import LocalEngine
from steadyrl.engine.precision import FORMATS, quantised_weights, round_e4m3, round_e5m2, round_fp4, round_int4
from steadyrl.errors import UserError
from steadyrl.model.loading import Policy
from steadyrl.types import Completion, Sampling

# Every finite e4m3 value: exponent bias 7, three bits of mantissa, subnormals below 2^-6, 1111.111 is NaN. The index
# is the bit pattern, so an even index is an even mantissa.
POSITIVE = [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
POSITIVE.pop()


def nearest(x: float) -> float:
    """To nearest, ties to even; beyond 448 to 448."""
    best = min(range(len(POSITIVE)), key=lambda i: (abs(abs(x) - POSITIVE[i]), i % 2))
    return POSITIVE[best] if x >= 0 else -POSITIVE[best]


def on_grid(x: Tensor) -> Tensor:
    return torch.tensor([nearest(v) for v in x.flatten().tolist()]).view(x.shape).to(x.dtype)


def rounded(x: Tensor, dim: int = -1) -> Tensor:
    """What `round_e4m3` must do, slowly."""
    scale = x.abs().amax(dim=dim, keepdim=True) / 448.0
    scale = torch.where(scale > 0, scale, 1.0)
    return on_grid(x / scale) * scale


def test_the_grid_of_e4m3() -> None:
    assert len(POSITIVE) == 127
    assert sorted(POSITIVE) == POSITIVE
    assert (POSITIVE[1], POSITIVE[8], POSITIVE[-1]) == (2.0**-9, 2.0**-6, 448.0)


def test_rounding_is_to_nearest_and_ties_go_to_even() -> None:
    ties = [(a + b) / 2 for a, b in pairwise(POSITIVE)]
    near = [t * (1 + s * 1e-6) for t in ties for s in (1, -1)]
    tiny = [2.0**-11, 1e-8, 0.0]
    x = torch.tensor([448.0, *POSITIVE, *ties, *near, *tiny])  # 448 makes the scale 1
    x = torch.cat([x, -x])
    assert torch.equal(round_e4m3(x), on_grid(x))
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)).exp()
    x = torch.cat([torch.tensor([448.0]), values.clamp(max=448.0)])
    assert torch.equal(round_e4m3(x), on_grid(x))


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_each_slice_has_its_own_scale(dim: int) -> None:
    x = (
        torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1, 7, 1e4])[:, None, None]
    )
    torch.testing.assert_close(round_e4m3(x, dim=dim), rounded(x, dim), atol=0, rtol=1e-6)
    largest = x.abs().amax(dim=dim, keepdim=True)
    torch.testing.assert_close(round_e4m3(x, dim=dim).abs().amax(dim=dim, keepdim=True), largest)


def test_a_row_of_zeros_stays_zero_and_the_input_is_left_alone() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.3]])
    before = x.clone()
    assert round_e4m3(x)[0].tolist() == [0.0, 0.0]
    assert torch.equal(x, before)


def test_e5m2_has_two_bits_of_mantissa() -> None:
    # the scale is 1; between 1 and 2 the grid is 1, 1¼, 1½, 1¾
    x = torch.tensor([57344.0, 1.1, 1.2, 1.6, 1.9, -3.1])
    assert round_e5m2(x).tolist() == [57344.0, 1.0, 1.25, 1.5, 2.0, -3.0]


def test_int4_by_hand() -> None:
    # the largest is 7: the scale is 1
    assert round_int4(torch.tensor([7.0, -6.6, 3.4, 0.5, 1.5, 0.0])).tolist() == [7.0, -7.0, 3.0, 0.0, 2.0, 0.0]
    # each group of 32 has its own scale: 0.7/7 = 0.1
    x = torch.cat([torch.full((32,), 7.0), torch.tensor([0.7, 0.24])])
    torch.testing.assert_close(round_int4(x)[32:], torch.tensor([0.7, 0.2]))


def test_mxfp4_by_hand() -> None:
    # the largest is 6: its power is 2², less 2 is 1. Ties go to even: ¼, ¾, 1¼, 1¾, 2½, 3½, 5
    x = torch.tensor([6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 0.3, -2.6, 5.1, 0.0])
    assert round_fp4(x).tolist() == [6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.5, -3.0, 6.0, 0.0]
    # 7.9 has the same power, and is cut to 6; 8 has the next, and the grid is twice as wide
    assert round_fp4(torch.tensor([7.9, 1.3])).tolist() == [6.0, 1.5]
    assert round_fp4(torch.tensor([8.0, 1.3])).tolist() == [8.0, 1.0]


@pytest.mark.parametrize("rounding", [round_int4, round_fp4, round_e5m2])
def test_coarse_formats_round_along_their_dimension(rounding) -> None:
    x = torch.randn(3, 70, 5, generator=torch.Generator().manual_seed(0))
    x[:, 40] *= 100.0
    along = rounding(x, dim=1)
    torch.testing.assert_close(along, rounding(x.transpose(1, 2).contiguous()).transpose(1, 2), atol=0, rtol=0)
    torch.testing.assert_close(rounding(along, dim=1), along, atol=0, rtol=1e-6)  # what is rounded stays
    assert rounding(torch.zeros(2, 40)).eq(0).all()
    if rounding is not round_e5m2:  # the large row spoils its own group of 32, and no other
        torch.testing.assert_close(along[:, :32], rounding(x[:, :32].contiguous(), dim=1), atol=0, rtol=0)


ATTENTION = {f"self_attn.{p}_proj.weight": -1 for p in "qkvo"}
EXPERTS = ("gate_up_proj", "down_proj")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (tiny_policy(), ATTENTION | {f"mlp.experts.{p}": 2 for p in EXPERTS}),
        (dense_policy(), ATTENTION | {f"mlp.{p}_proj.weight": -1 for p in ("gate", "up", "down")}),
        (
            dense_policy(tie_word_embeddings=True),
            ATTENTION | {f"mlp.{p}_proj.weight": -1 for p in ("gate", "up", "down")},
        ),
        (
            family_policy("qwen2_moe"),  # its shared expert is quantised, the gate of that one is not
            ATTENTION
            | {f"mlp.experts.{p}": 2 for p in EXPERTS}
            | {f"mlp.shared_expert.{p}_proj.weight": -1 for p in ("gate", "up", "down")},
        ),
        (family_policy("gpt_oss"), ATTENTION | {f"mlp.experts.{p}": 1 for p in EXPERTS}),  # stored transposed
    ],
    ids=["qwen3_moe", "qwen3", "tied", "qwen2_moe", "gpt_oss"],
)
def test_linears_and_experts_are_quantised_and_nothing_else(policy: Policy, expected: dict[str, int]) -> None:
    names = {f"model.layers.{layer}.{name}": dim for layer in range(2) for name, dim in expected.items()}
    assert quantised_weights(policy.model) == names


PROMPTS = [random_ids(9, seed=1), random_ids(4, seed=2)]
WARM = Sampling(temperature=0.7, max_new_tokens=12)


def sampled(policy: Policy, **options) -> list[list[Completion]]:
    engine = LocalEngine(policy.model, end_tokens=set(), **options)
    return generate(engine, PROMPTS, responses=2, sampling=WARM, seed=0)


def furthest(model: PreTrainedModel, answers: list[list[Completion]], cache: type[DynamicCache] | None = None) -> float:
    """Largest difference of the engine's log-probabilities from a full forward of `model`."""
    differences = []
    for prompt, group in zip(PROMPTS, answers, strict=True):
        for completion in group:
            ids = torch.tensor([[*prompt, *completion.token_ids]])
            with torch.no_grad():
                logits = model(input_ids=ids, past_key_values=cache() if cache else None, use_cache=bool(cache)).logits
            logprobs = torch.log_softmax(logits[0, len(prompt) - 1 : -1] / 0.7, dim=-1)
            chosen = logprobs.gather(1, ids[0, len(prompt) :, None]).squeeze(1)
            differences.append((chosen - completion.logprobs).abs().max().item())
    return max(differences)


def experts_by_hand(experts: nn.Module, x: Tensor, chosen: Tensor, weights: Tensor, *, rounding) -> Tensor:
    """Each token through each of its experts, everything that enters a product rounded."""
    out = torch.zeros_like(x)
    for token, (ids, shares) in enumerate(zip(chosen.tolist(), weights, strict=True)):
        for expert, share in zip(ids, shares, strict=True):
            gate, up = (experts.gate_up_proj[expert] @ rounding(x[token])).chunk(2)
            out[token] += share * (experts.down_proj[expert] @ rounding(nn.functional.silu(gate) * up))
    return out


def quantised_by_hand(model: PreTrainedModel, weights=rounded, activations=rounded) -> PreTrainedModel:
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.weight.data = weights(module.weight.data)
            module.register_forward_pre_hook(lambda _, args: (activations(args[0]),))
        elif name.endswith(".experts"):
            for weight in module.parameters():
                weight.data = weights(weight.data)
            module.forward = lambda *args, experts=module: experts_by_hand(experts, *args, rounding=activations)
    return model


@pytest.mark.parametrize("build", [tiny_policy, dense_policy])
def test_fp8_is_the_model_with_weights_and_activations_rounded(build) -> None:
    policy = build()
    answers = sampled(policy, precision="fp8")
    assert furthest(quantised_by_hand(policy.model), answers) < 1e-4
    assert furthest(policy.model, answers) > 1e-2  # and so it is not the trainer's


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_each_format_rounds_weights_and_activations_in_its_own_way(name: str) -> None:
    policy, form = tiny_policy(), FORMATS[name]
    answers = sampled(policy, precision=name)
    assert furthest(quantised_by_hand(policy.model, form.weights, form.activations), answers) < 1e-4
    others = [other for other in FORMATS.values() if other is not form]
    apart = [furthest(quantised_by_hand(policy.model, other.weights, other.activations), answers) for other in others]
    assert min(apart) > 3e-3


def test_fp8_rounds_every_new_weight() -> None:
    engine = LocalEngine(tiny_policy(0).model, end_tokens=set(), precision="fp8")
    other = tiny_policy(1)
    engine.update_weights(other.model.named_parameters(), version=1)
    answers = generate(engine, PROMPTS, responses=2, sampling=WARM, seed=0)
    assert furthest(quantised_by_hand(other.model), answers) < 1e-4


def test_fp8_leaves_the_trainer_alone() -> None:
    policy, untouched = tiny_policy(), tiny_policy()
    sampled(policy, precision="fp8", kv_precision="fp8")
    assert torch.equal(
        policy.model(torch.tensor([PROMPTS[0]])).logits, untouched.model(torch.tensor([PROMPTS[0]])).logits
    )


class OnGrid(DynamicCache):
    """Keys and values rounded to e4m3, at unit scale."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return super().update(on_grid(key_states), on_grid(value_states), *args, **kwargs)


@pytest.mark.parametrize("build", [tiny_policy, dense_policy])
def test_an_fp8_cache_holds_keys_and_values_of_the_grid(build) -> None:
    policy = build()
    answers = sampled(policy, kv_precision="fp8")
    assert furthest(policy.model, answers, OnGrid) < 1e-4
    assert furthest(policy.model, answers) > 1e-2


def test_an_fp8_cache_is_for_full_attention() -> None:
    sliding = dense_policy(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(UserError, match=r'engine\.kv_precision = "fp8" is for full attention.*Use "native"'):
        LocalEngine(sliding.model, end_tokens=set(), kv_precision="fp8")
