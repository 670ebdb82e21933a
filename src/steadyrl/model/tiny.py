"""Small models with random weights and a character tokenizer: everything needed to train without a download."""

import difflib
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One token for each character of `alphabet`, after padding, end of sequence and unknown.

    Raises:
        ValueError: the alphabet has a character twice.
    """
    twice = {c for c in alphabet if alphabet.count(c) > 1}
    if twice:
        raise ValueError(f"model.alphabet has {sorted(twice)} more than once")
    vocabulary = {token: index for index, token in enumerate((PAD, END, UNKNOWN, *alphabet))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, padding_side="left"
    )


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SLOTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")


def tiny_config(family: str, fields: Mapping[str, Any], vocabulary: int) -> PreTrainedConfig:
    """The transformers config of a small model.

    Raises:
        ValueError: transformers does not know the family, or one of the fields.
    """
    if family not in CONFIG_MAPPING:
        near = difflib.get_close_matches(family, CONFIG_MAPPING.keys(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "such as 'qwen3_moe' or 'qwen3'"
        raise ValueError(f"model.family = {family!r} is no model_type of transformers; {hint}")
    base = AutoConfig.for_model(family)
    known = {
        *vars(base),
        *type(base).attribute_map,
        "head_dim",
    }  # models read head_dim, not every config declares it
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"model.config has {unknown}, which the configuration of {family} does not know")
    own = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    try:
        made = AutoConfig.for_model(family, **{**own, **fields})
    except StrictDataclassError as error:
        raise ValueError(f"model.config of {family}: {error}") from error
    experts, slots = (next((getattr(made, n) for n in names if n in fields), None) for names in (_EXPERTS, _SLOTS))
    if experts and slots is not None and not 1 <= slots <= experts:
        raise ValueError(f"model.config takes {slots} of {experts} experts for a token; take 1 to {experts}")
    return made
