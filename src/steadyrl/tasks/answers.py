"""Where the final answer of a response stands."""

from typing import Literal

Place = Literal["auto", "boxed", "tag", "last_number"]
"""Where an answer must stand: anywhere usual, in `\\boxed{}`, in `<answer>` tags, or as the last number."""
