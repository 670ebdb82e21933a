"""Small models with random weights and a character tokenizer: everything needed to train without a download."""

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One token for each character of `alphabet`, after padding, end of sequence and unknown.

    Raises:
        ValueError: a character stands in the alphabet twice.
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


def tiny_config(family: str, fields: Mapping[str, Any], vocabulary: int) -> PreTrainedConfig:
    """The transformers config of a small model.

    Raises:
        ValueError: transformers does not know the family, or one of the fields.
    """
    base = AutoConfig.for_model(family)
    known = {
        *vars(base),
        *type(base).attribute_map,
        "head_dim",
    }  # models read head_dim, not every config declares it
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"model.config has {unknown}, which the configuration of {family} does not know")
    return AutoConfig.for_model(
        family,
        **{"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, **fields},
    )
