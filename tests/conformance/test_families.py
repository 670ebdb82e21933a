from pathlib import Path

import pytest
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from steadyrl.conformance.checks import CHECKS
from steadyrl.conformance.families import FAMILIES
from steadyrl.conformance.report import examine, lines, listed_subject, row

PAGE = Path(__file__).parents[2] / "docs" / "routing-families.md"
REQUIRED = [
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "mixtral",
    "olmoe",
    "deepseek_v2",
    "deepseek_v2 (group-limited)",
    "deepseek_v3",
    "glm4_moe",
    "gpt_oss",
    "minimax_m2",
    "granitemoe",
    "ernie4_5_moe",
    "llama4_text",
    "phimoe",
]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name not in REQUIRED]


@pytest.mark.parametrize("name", [*REQUIRED, *OTHERS])
def test_a_family_conforms_or_is_refused_by_name(name: str) -> None:
    verdict = examine(name, listed_subject(name))
    assert verdict.as_expected, lines(verdict)
    assert row(verdict) in PAGE.read_text(), "the page is out of date: run `make docs`"
    if verdict.refused is None:
        assert [outcome.check for outcome in verdict.outcomes] == list(CHECKS)
        held = {outcome.check for outcome in verdict.outcomes if outcome.found == "held"}
        assert held >= CHECKS.keys() - {"order", "kernels", "packed"}  # what a family may lack
    else:
        assert "ForCausalLM" in verdict.refused


def test_the_page_says_what_is_checked() -> None:
    text = PAGE.read_text()
    assert f"| family | {' | '.join(CHECKS)} |" in text
    assert all(f"* **{name}**: {check.__doc__}" in text for name, check in CHECKS.items())
    assert text.count("\n| `") == len(FAMILIES)


def test_no_family_that_must_conform_is_listed_as_refused() -> None:
    assert all(FAMILIES[name].refused is None for name in REQUIRED)


def names_of_experts(config: PreTrainedConfig) -> set[str]:
    """Fields of a config, or of its parts, that speak of experts."""
    fields = {*vars(config), *type(config).attribute_map}
    parts = [vars(config).get(key) for key in config.sub_configs]
    inner = [names_of_experts(part) for part in parts if isinstance(part, PreTrainedConfig)]
    return {f for f in fields if ("expert" in f or "moe" in f) and not f.startswith("_")}.union(*inner)


def test_every_family_of_transformers_with_experts_is_listed() -> None:
    listed = {family.model_type or name for name, family in FAMILIES.items()}
    composed = {"musicgen", "musicgen_melody"}  # decoders of sound, dense, whose config needs those of their parts
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        if kind.model_type in composed:
            continue
        config = AutoConfig.for_model(kind.model_type).get_text_config()
        assert config.model_type in listed or not names_of_experts(config), config.model_type
