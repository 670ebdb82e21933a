import pytest

from builders import dense_policy
from chat_tokenizers import CHATML, SPECIAL, byte_tokenizer
from steadyrl.errors import UserError
from steadyrl.model.text import decode_response, encode_prompt, encode_response, end_tokens

# characters 0, 1, … are tokens 3, 4, … after padding (0), end (1) and unknown (2)
THINK = byte_tokenizer(special=(*SPECIAL, "<think>", "</think>"))


def test_a_prompt_is_the_bare_question_or_the_chat_template() -> None:
    tokenizer = dense_policy().tokenizer
    assert encode_prompt(tokenizer, "12=") == (4, 5, 15)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert encode_prompt(tokenizer, "12=") == (4, 5, 15, 17)


def test_the_clock_does_not_change_a_prompt() -> None:
    tokenizer = byte_tokenizer(template="{{ strftime_now('%H:%M:%S.%f') }}" + CHATML)
    first = encode_prompt(tokenizer, "x")
    assert encode_prompt(tokenizer, "x", date="2024-02-29") == first  # midnight, like the other
    assert str(tokenizer.decode(list(first))).startswith("00:00:00.000000<|im_start|>")


def test_a_response_is_closed_and_read_back_without_its_end() -> None:
    tokenizer = dense_policy().tokenizer
    assert encode_response(tokenizer, "3;") == (6, 16, 1)
    assert decode_response(tokenizer, (6, 16, 1)) == "3;"


def test_a_response_cannot_be_closed_without_an_end() -> None:
    tokenizer = dense_policy().tokenizer
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no eos_token"):
        encode_response(tokenizer, "3;")


# ---- what is read back


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("<think>three</think>\nThe answer is 3<|im_end|>", "<think>three</think>\nThe answer is 3"),
        ("<think>three</think>3", "<think>three</think>3"),
        ("3<|im_end|><|endoftext|><|endoftext|>", "3"),
        ("3 <|im_start|>", "3 <|im_start|>"),
        ("<|im_end|>", ""),
        ("", ""),
        ("a<|endoftext|>b<|im_end|>", "ab"),  # padding
        ("don ' t do this , ok ?<|im_end|>", "don ' t do this , ok ?"),
        ("  spaces  \n\n<|im_end|>", "  spaces  \n\n"),
        ("</think><think>", "</think><think>"),
    ],
)
def test_a_response_is_read_as_it_was_written(written: str, read: str) -> None:
    ids = THINK(written, add_special_tokens=False).input_ids
    assert decode_response(THINK, ids) == read


def test_all_ends_of_the_run_are_left_out_behind_a_response() -> None:
    ids = THINK("3</think>", add_special_tokens=False).input_ids
    assert decode_response(THINK, ids) == "3</think>"
    assert decode_response(THINK, ids, ends={ids[-1]}) == "3"


def test_special_tokens_are_stripped_where_that_is_asked_for() -> None:
    ids = THINK("<think>three</think>3<|im_end|>", add_special_tokens=False).input_ids
    assert decode_response(THINK, ids, strip_special=True) == "three3"


def test_what_stands_for_no_text_is_left_out() -> None:
    tokenizer = dense_policy().tokenizer
    assert decode_response(tokenizer, (0, 6, 2, 0, 16, 0, 1)) == "3;"


def test_half_a_character_is_shown_as_such() -> None:
    ids = THINK("é", add_special_tokens=False).input_ids
    assert decode_response(THINK, ids) == "é"
    assert decode_response(THINK, ids[:1]) == "\ufffd"


def test_spaces_are_not_cleaned_up() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    assert decode_response(tokenizer, tokenizer("1 , 2 .").input_ids) == "1 , 2 ."


# ---- what ends a response


def test_what_ends_a_response() -> None:
    tokenizer = dense_policy().tokenizer
    assert end_tokens(tokenizer, None, []) == {1}
    assert end_tokens(tokenizer, 7, [";"]) == {1, 7, 16}
    assert end_tokens(tokenizer, [7, 8], []) == {1, 7, 8}
    tokenizer.eos_token = None
    assert end_tokens(tokenizer, None, ["="]) == {15}


def test_what_the_template_closes_an_answer_with_ends_a_response() -> None:
    base = byte_tokenizer(template=CHATML, eos="<|endoftext|>")
    assert end_tokens(base, 0, ()) == {0, 2}


@pytest.mark.parametrize("text", ["12", "é", ""])
def test_only_a_known_token_can_stop(text: str) -> None:
    with pytest.raises(UserError, match=rf"rollout\.stop holds '{text}'"):
        end_tokens(dense_policy().tokenizer, None, [text])
