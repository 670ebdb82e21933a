"""`steadyrl conformance --model FAMILY_OR_PATH`."""

import argparse

from steadyrl.start import import_torch


def main(argv: list[str]) -> int:
    """Check Routing Replay for a model, or for every family."""
    parser = argparse.ArgumentParser(
        "steadyrl conformance", description="Check whether Routing Replay is exact for a mixture-of-experts model."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--model", help="a family such as qwen3_moe, or a saved model, which is built small from its config"
    )
    which.add_argument(
        "--all", action="store_true", help="every family that is listed; prints docs/routing-families.md"
    )
    parser.add_argument(
        "--weights", action="store_true", help="check the saved model itself, weights and size included"
    )
    options = parser.parse_args(argv)
    if options.all and options.weights:
        parser.error("--weights needs --model with the path of a saved model")
    import_torch()
    from steadyrl.conformance.report import run

    return run(options.model, weights=options.weights)
