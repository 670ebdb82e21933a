import pytest

from builders import dense_policy
from steadyrl.errors import UserError
from steadyrl.model.text import decode_response, encode_prompt, encode_response, end_tokens

# characters 0, 1, … are tokens 3, 4, … after padding (0), end (1) and unknown (2)


def test_a_prompt_is_the_bare_question_or_the_chat_template() -> None:
    tokenizer = dense_policy().tokenizer
    assert encode_prompt(tokenizer, "12=") == (4, 5, 15)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert encode_prompt(tokenizer, "12=") == (4, 5, 15, 17)


def test_a_response_is_closed_and_read_back_without_its_end() -> None:
    tokenizer = dense_policy().tokenizer
    assert encode_response(tokenizer, "3;") == (6, 16, 1)
    assert decode_response(tokenizer, (6, 16, 1)) == "3;"


def test_a_response_cannot_be_closed_without_an_end() -> None:
    tokenizer = dense_policy().tokenizer
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no eos_token"):
        encode_response(tokenizer, "3;")


def test_what_ends_a_response() -> None:
    tokenizer = dense_policy().tokenizer
    assert end_tokens(tokenizer, None, []) == {1}
    assert end_tokens(tokenizer, 7, [";"]) == {1, 7, 16}
    assert end_tokens(tokenizer, [7, 8], []) == {1, 7, 8}
    tokenizer.eos_token = None
    assert end_tokens(tokenizer, None, ["="]) == {15}


@pytest.mark.parametrize("text", ["12", "é", ""])
def test_only_a_known_token_can_stop(text: str) -> None:
    with pytest.raises(UserError, match=rf"rollout\.stop holds '{text}'"):
        end_tokens(dense_policy().tokenizer, None, [text])
