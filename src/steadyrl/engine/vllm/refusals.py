"""Why vLLM refuses: the last cause in one line, from what it raises and from what it only logs."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

REFUSALS = (AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What vLLM raises of a model or of options that it does not take."""
MEMORY_HINT = " The memory of the cache is engine.cache_gib, its share of sequences engine.max_sequences"


@contextmanager
def exceptions_logged(into: list[str]) -> Iterator[None]:
    """Collect the exceptions that vLLM only logs, such as those of the process in which it inspects a model."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info is not None and record.exc_info[1] is not None:
                into.append(str(record.exc_info[1]))

    handler, logger = Collector(level=logging.ERROR), logging.getLogger("vllm")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def last_cause(error: BaseException, logged: Sequence[str] = ()) -> str:
    """Return in one line why something of vLLM failed.

    That is the last line of an exception that vLLM logged on the way, where there is one: a traceback of another
    process ends with its cause. Else it is what the innermost exception says, without pydantic's decoration.

    Args:
        error: what was raised.
        logged: texts of the exceptions that were logged.
    """
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next(
        (line for line in lines if line.startswith("Value error, ")), lines[0] if lines else type(error).__name__
    )
    said = said.removeprefix("Value error, ").partition(" [type=")[0]
    ends = [text.strip().splitlines()[-1].strip() for text in logged if text.strip()]
    return " ".join([said.rstrip(".") + ":", ends[-1].rstrip(".")]) if ends else said.rstrip(".")
