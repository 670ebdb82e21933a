"""Byte tokenizers with chat templates, as small as they can be, and models that go with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from builders import SMALL

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = CHATML.replace(
    "{{ m['content'] }}",
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}",
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""As Mistral and Llama 2 write it: answers have no header."""
HANGS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(
    *,
    template: Any = None,
    special: Sequence[str] = SPECIAL,
    eos: str | None = "<|im_end|>",
    bos: str | None = None,
    pad: str | None = "<|endoftext|>",
    around: str | None = None,
) -> PreTrainedTokenizerFast:
    """One token for each byte, after the special ones; `around` is what the tokenizer adds, such as `$A <|im_end|>`."""
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if around is not None:
        pairs = [(name, index) for index, name in enumerate(special)]
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=pairs)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, bos_token=bos)
    made.chat_template = template
    return made


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, **config: Any) -> Path:
    """A dense model of random weights with that tokenizer, saved."""
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    fields = SMALL | {"vocab_size": len(tokenizer)} | ids | config
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
