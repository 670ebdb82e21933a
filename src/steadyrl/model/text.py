"""Text at the two ends; token ids everywhere between."""

from collections.abc import Collection, Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from steadyrl.errors import UserError
from steadyrl.model.chat import Chat, asked
from steadyrl.model.template import Renderer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, question: str, *, date: str | None = None) -> tuple[int, ...]:
    """Tokens of a question, through the chat template where the tokenizer has one.

    Args:
        tokenizer: of the model.
        question: what is asked.
        date: as `2026-01-31`, for templates that write it; None: a fixed one, `chat.DATE`.

    Raises:
        TemplateError: the template raises, never ends, or loses the question.
    """
    with Renderer() as renderer:
        (prompt,) = Chat(tokenizer, renderer, date=date).encode([asked(question)])
    return prompt.token_ids


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokens of a worked solution, closed by the end of sequence.

    Raises:
        UserError: the tokenizer has no end of sequence.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise UserError("the tokenizer has no eos_token, which a worked solution must end with; give it one")
    return (*_plain(tokenizer, text), end)


def decode_response(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    *,
    ends: Collection[int] = (),
    strip_special: bool = False,
) -> str:
    """Text of a response as it was written, special tokens such as `<think>` included.

    End tokens behind it are left out, and padding and the unknown token, which stand for no text, wherever they are.

    Args:
        tokenizer: of the model.
        token_ids: the response.
        ends: tokens that end a response; the tokenizer's end of sequence is added.
        strip_special: leave all special tokens out, such as `<think>`.
    """
    textless = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    behind = [*ends, tokenizer.eos_token_id, *textless]
    last = next((i for i in range(len(token_ids), 0, -1) if token_ids[i - 1] not in behind), 0)
    return str(
        tokenizer.decode(
            [token for token in token_ids[:last] if token not in textless],
            skip_special_tokens=strip_special,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        )
    )


def end_tokens(
    tokenizer: PreTrainedTokenizerBase,
    model_ends: int | Iterable[int] | None,
    stop: Iterable[str],
    *,
    chat: Chat | None = None,
) -> set[int]:
    """Ids that end a response: the tokenizer's, the model's, the chat template's, and each string of `stop`.

    Args:
        tokenizer: of the model.
        model_ends: what its generation config names.
        stop: strings of a single token.
        chat: the chat template, if it was already examined.

    Raises:
        UserError: a stop string is not a single token.
        TemplateError: the chat template raises, never ends, or loses the question.
    """
    ends = {model_ends} if isinstance(model_ends, int) else set(model_ends or ())
    if isinstance(tokenizer.eos_token_id, int):
        ends.add(tokenizer.eos_token_id)
    closing = _closing_token(tokenizer) if chat is None else chat.closing_token
    if closing is not None:
        ends.add(closing)
    for text in stop:
        ids = _plain(tokenizer, text)
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise UserError(
                f"rollout.stop holds {text!r}, which is {len(ids)} tokens; only a single known token can stop"
            )
        ends.add(ids[0])
    return ends


def _closing_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    with Renderer() as renderer:
        return Chat(tokenizer, renderer).closing_token


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)
