"""Write `arithmetic.jsonl.gz`: small sums and differences for a tiny model. The same file every time.

python src/steadyrl/recipes/make_arithmetic.py
"""

import gzip
import json
import random
from pathlib import Path

PAIRS = 4000
TARGET = Path(__file__).with_name("arithmetic.jsonl.gz")


def make_pair(left: int, sign: str, right: int) -> dict[str, str]:
    """One problem; its solution first adds or takes away the tens, then the ones: `37+25=57+5=62`."""
    result = left + right if sign == "+" else left - right
    tens, ones = right - right % 10, right % 10
    between = left + tens if sign == "+" else left - tens
    steps = f"{between}{sign}{ones}=" if tens and ones else ""
    return {"question": f"{left}{sign}{right}=", "answer": str(result), "solution": f"{steps}{result}"}


def main() -> None:
    """Draw different problems whose result is not negative, and write them."""
    problems = [(a, s, b) for a in range(100) for b in range(100) for s in "+-" if s == "+" or a >= b]
    chosen = random.Random(0).sample(problems, PAIRS)
    lines = [json.dumps(make_pair(*problem)) + "\n" for problem in chosen]
    TARGET.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


if __name__ == "__main__":
    main()
