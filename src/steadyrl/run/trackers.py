"""Optional copies of the numbers of a step: TensorBoard, trackio and W&B. None of them ever stops a training."""

import importlib
import json
import math
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from steadyrl.errors import UserError
from steadyrl.run.logs import Value, write_atomically


class Tracker(Protocol):
    """A further place for the numbers of a step."""

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Copy the finite numbers of a step."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class MissingTracker(UserError):
    """A tracker was asked for whose package is not installed. The message says how to install it."""


class TrackerError(UserError):
    """A tracker that cannot be opened, such as one without a login. The message has its words and the way out."""


class TensorBoard:
    """Event files in the run directory's `tensorboard` folder."""

    def __init__(self, module: ModuleType, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Open on the first `log`, whose step tells TensorBoard what a resumed run repeats."""
        self._open: Callable[..., Any] = module.SummaryWriter
        self._folder, self._config = run_dir / "tensorboard", config
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Add one scalar per number."""
        if self._writer is None:
            self._writer = self._open(log_dir=str(self._folder), purge_step=step)
            self._writer.add_text("recipe", f"```json\n{json.dumps(self._config, indent=2)}\n```", step)
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class ProjectTracker:
    """W&B or trackio, which share one interface; a resumed run continues its own curves.

    One that has gone back to an earlier checkpoint begins new ones (see `forget_curves`): W&B drops what is sent of a
    step that it has.
    """

    def __init__(self, module: ModuleType, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Start, or continue, the run in the project `steadyrl`.

        W&B gets the name of the run directory. The group is the name of its parent folder. The tags are the objective,
        the replay and the engine. trackio identifies a run by its name alone.
        """
        folder = run_dir.resolve()
        identity = f"{folder.name}-{_identity(run_dir)}"
        if module.__name__ == "wandb":
            named = {
                "name": folder.name,
                "id": identity,
                "dir": str(run_dir),
                "group": folder.parent.name or "steadyrl",
                "tags": _tags(config),
            }
        else:
            named = {"name": identity}
        self._run = module.init(project="steadyrl", config=dict(config), resume="allow", **named)

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Send one row."""
        self._run.log(_numbers(metrics), step=step)

    def close(self) -> None:
        """Wait until everything is stored."""
        self._run.finish()


class Guarded:
    """A tracker whose failures stop no training: the first is told, all are counted, and `close` says how many."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        """Guard a tracker, known by its name in the recipe."""
        self._name, self._tracker, self._failures = name, tracker, 0

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Copy the numbers of a step, if the tracker takes them."""
        try:
            self._tracker.log(step, metrics)
        except Exception as error:  # a tracker may raise anything, and the run must go on
            self._failures += 1
            if self._failures == 1:
                _say(f"{self._name} failed at step {step} ({_words(error)}); training continues without it")

    def close(self) -> None:
        """Flush and end, and say how often it failed."""
        try:
            self._tracker.close()
        except Exception as error:  # as above
            self._failures += 1
            _say(f"{self._name} failed as it was closed: {_words(error)}")
        if self._failures:
            _say(f"{self._name} failed {self._failures} time(s); metrics.jsonl has every number")


def _tags(config: Mapping[str, Any]) -> list[str]:
    """The objective, the replay and the engine of a resolved recipe, as far as it names them."""
    places = (("objective", "name"), ("update", "replay"), ("engine", "kind"), ("engine", "precision"))
    return [str(config[section][field]) for section, field in places if field in config.get(section, {})]


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _say(text: str) -> None:
    print(f"steadyrl: {text}", file=sys.stderr)


_TRACKERS: dict[str, tuple[str, Callable[[ModuleType, Path, Mapping[str, Any]], Tracker]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoard),
    "trackio": ("trackio", ProjectTracker),
    "wandb": ("wandb", ProjectTracker),
}


def require_installed(names: Sequence[str]) -> None:
    """Find the packages of the trackers named, without importing them, which may take seconds.

    Raises:
        MissingTracker: one is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise _missing(name, name)


def require_trackers(names: Sequence[str]) -> None:
    """Import the packages of the trackers named, and open nothing.

    Raises:
        MissingTracker: one is not installed.
    """
    for name in names:
        _import(name)


def open_trackers(names: Sequence[str], run_dir: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Open the trackers named, importing only their packages; `config` is the resolved recipe as plain values.

    Raises:
        ValueError: a name is no tracker.
        MissingTracker: its package is not installed.
        TrackerError: it cannot be opened.
    """
    # every package is found before the first tracker opens, so that a failure leaves none half open
    modules = {name: _import(name) for name in names}
    opened: list[Tracker] = []
    try:
        for name, module in modules.items():
            opened.append(Guarded(name, _open(name, module, run_dir, config)))
    except TrackerError:
        for tracker in opened:
            tracker.close()
        raise
    return opened


def _open(name: str, module: ModuleType, run_dir: Path, config: Mapping[str, Any]) -> Tracker:
    try:
        return _TRACKERS[name][1](module, run_dir, config)
    except Exception as error:  # a tracker may raise anything, such as an error of its own for a missing login
        ways = {"wandb": "log in with `wandb login`, set WANDB_MODE=offline, or "}
        raise TrackerError(
            f"trackers: {name!r} cannot be opened ({_words(error)}); {ways.get(name, '')}leave it out of `trackers`"
        ) from error


def _import(name: str) -> ModuleType:
    if name not in _TRACKERS:
        raise ValueError(f"trackers: {name!r} is not one of {', '.join(_TRACKERS)}")
    try:
        return importlib.import_module(_TRACKERS[name][0])
    except ModuleNotFoundError as error:
        raise _missing(name, error.name) from error


def _missing(name: str, package: str | None) -> MissingTracker:
    return MissingTracker(
        f"trackers: {name!r} needs a package that is not installed ({package}): "
        f'pip install "steadyrl[{name}]", or leave it out of `trackers`'
    )


def forget_curves(run_dir: Path) -> None:
    """Let trackers take what follows for another run."""
    (run_dir / "tracker_id.txt").unlink(missing_ok=True)


def _identity(run_dir: Path) -> str:
    """A random name that stays with the run directory: two runs called `demo` are two runs."""
    path = run_dir / "tracker_id.txt"
    if not path.exists():
        write_atomically(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")


def _numbers(metrics: Mapping[str, Value]) -> dict[str, float]:
    return {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
