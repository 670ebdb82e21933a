"""Text at the two ends; token ids everywhere between."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from steadyrl.errors import UserError


def encode_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[int, ...]:
    """Tokens of a question, through the chat template where the tokenizer has one."""
    if tokenizer.chat_template is None:
        return tuple(tokenizer(question).input_ids)
    conversation = [{"role": "user", "content": question}]
    text = str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
    return _plain(tokenizer, text)


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokens of a worked solution, closed by the end of sequence.

    Raises:
        UserError: the tokenizer has no end of sequence.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise UserError("the tokenizer has no eos_token, which a worked solution must end with; give it one")
    return (*_plain(tokenizer, text), end)


def decode_response(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text of a response, without special tokens."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def end_tokens(
    tokenizer: PreTrainedTokenizerBase, model_ends: int | Iterable[int] | None, stop: Iterable[str]
) -> set[int]:
    """Ids that end a response: the tokenizer's, the model's, and each string of `stop`.

    Raises:
        UserError: a stop string is not a single token.
    """
    ends = {model_ends} if isinstance(model_ends, int) else set(model_ends or ())
    if isinstance(tokenizer.eos_token_id, int):
        ends.add(tokenizer.eos_token_id)
    for text in stop:
        ids = _plain(tokenizer, text)
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise UserError(
                f"rollout.stop holds {text!r}, which is {len(ids)} tokens; only a single known token can stop"
            )
        ends.add(ids[0])
    return ends


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)
