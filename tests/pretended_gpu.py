"""A GPU in name only: tensors that say `gpu:0` and compute on the CPU, to watch a whole run for two faults.

* An op that takes a tensor of the host beside one of the device raises `MixedDevices`, as CUDA would.
* Where CUDA would make the host wait for the device, `waits` counts it by line: values that the host reads, shapes that
  depend on values, and every copy (nothing here is pinned).

It is not CUDA: kernels, their types, memory, speed and the order of sums are not seen. torch keeps the device for the
rest of the process and must know it before the first backward pass, so such a process does nothing else.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

NAME = "gpu"
DEVICE = torch.device("cpu")  # until torch knows the name, below
COPIES = {"_to_copy", "copy_"}
BY_INDEX = {"index", "index_put", "index_put_"}
"""They take an index of the host, and look for what is true in a mask."""
READ = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount"}
READ |= {"_unique2", "unique_dim", "unique_consecutive"}
OURS = "/src/steadyrl/"


class MixedDevices(RuntimeError):
    """What CUDA refuses: tensors of the host and of the device in one op."""


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of `torch.gpu`. Recomputed activations ask for the state of random numbers."""

    _initialized = True

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def get_rng_state(device: Any = 0) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = 0) -> None:
        return None

    @staticmethod
    def device(device: Any) -> AbstractContextManager[None]:
        return nullcontext()


backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
DEVICE = torch.device(NAME, 0)
_WATCHES: "list[Watch]" = []


class Away(Tensor):
    """A tensor of the device; its values are in `held`, on the host."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Away":
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self, **kwargs: Any) -> str:
        return f"Away({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _WATCHES[-1].__torch_dispatch__(func, types, args, kwargs)  # outside of the mode: in a backward pass

    @property
    def is_cuda(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return True

    def tolist(self) -> Any:
        _WATCHES[-1].wait("tolist")
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise MixedDevices(f"{line()}: numpy() of a tensor of the device")

    def untyped_storage(self) -> Any:  # whoever saves tensors asks which of them share one
        return self.held.untyped_storage()

    def storage(self) -> Any:
        return self.held.storage()


def each(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with every tensor in it changed; torch's own walk through trees takes longer than the ops."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(each(change, x) for x in value)
    return value


def tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


@cache
def compound(func: Any) -> bool:
    """Whether an op is made of others; only inference mode lets those through."""
    return func.namespace == "aten" and func._can_decompose()


def line() -> str:
    """The innermost line of the package and, where that calls a library, the library's; torch is left out."""
    frame, inner = sys._getframe(1), ""
    while frame is not None:
        name = frame.f_code.co_filename
        shown = f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno}"
        if OURS in name:
            return f"{shown} > {inner}" if inner else shown
        if name != __file__ and "/torch/" not in name and not inner:
            inner = shown
        frame = frame.f_back
    return inner or "a backward pass"


class Watch(TorchDispatchMode):
    """Runs every op on the host; `waits` counts those at which a GPU's host would wait, by line and op."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def wait(self, op: str) -> None:
        self.waits[f"{line()} {op}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if compound(func):
            with self:
                return func.decompose(*args, **kwargs)
        name, asked = func._schema.name.partition("::")[2], kwargs.get("device")
        given = [*tensors(args), *tensors(kwargs.values())]
        away = [x for x in given if isinstance(x, Away)]
        target = bool(away) if asked is None else torch.device(asked).type == NAME
        if name in COPIES:
            self._copied(name, args, target)
        elif away:
            self._met(name, args, given)
            self._read(name, args, kwargs)
        if away and name == "_fused_sdp_choice":
            return 0  # the compound form: no fused kernel runs here
        if asked is not None and target:
            kwargs["device"] = "cpu"
        plain = {key: each(_held, value) for key, value in kwargs.items()}
        out = _computed(func, name, each(_held, args), plain)
        return _sent(func, args, kwargs, out) if target else out

    def _copied(self, name: str, args: Any, target: bool) -> None:
        """A copy between host and device, in either direction."""
        here, source = (args[0], args[1]) if name == "copy_" else (None, args[0])
        to_device = target if here is None else isinstance(here, Away)
        if to_device != isinstance(source, Away):
            self.wait(name)

    def _met(self, name: str, args: Any, given: list[Tensor]) -> None:
        """Tensors of the host beside those of the device: a single number may be, and so may an index."""
        if all(isinstance(x, Away) or x.dim() == 0 for x in given):
            return
        if name in BY_INDEX and isinstance(args[0], Away):
            self.wait(name)
            return
        raise MixedDevices(f"{line()}: {name} of {[(str(x.device), tuple(x.shape)) for x in given]}")

    def _read(self, name: str, args: Any, kwargs: Any) -> None:
        """Ops whose answer or shape the host has to know."""
        masked = name in BY_INDEX and any(x is not None and x.dtype == torch.bool for x in args[1])
        # torch makes the 3 of `x[places] = 3` on the host
        filled = name in BY_INDEX and len(args) > 2 and args[2].dim() == 0
        repeated = name == "repeat_interleave" and kwargs.get("output_size") is None
        # off its fast path, which is bfloat16 alone, the offsets go to the host
        grouped = name == "_grouped_mm" and args[0].dtype != torch.bfloat16
        if name in READ or masked or filled or repeated or grouped:
            self.wait(name)


def _held(x: Tensor) -> Tensor:
    return x.held if isinstance(x, Away) else x


def _computed(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The op on the host; `histc` of integers is the one that only a GPU has."""
    if name == "histc":
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _sent(func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """What the host computed, as tensors of the device. A view in inference mode of an ordinary tensor is ordinary."""
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    ordinary = views and not args[0].is_inference()
    with torch.inference_mode(False) if ordinary else nullcontext():
        sent = each(lambda x: x if isinstance(x, Away) else Away(x), out)
    return return_and_correct_aliasing(func, args, kwargs, sent)


@contextmanager
def pretended_gpu() -> Iterator[Watch]:
    """Inside, `DEVICE` exists."""
    watch = Watch()
    _WATCHES.append(watch)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) makes a tensor on the host and copies it
    try:
        with watch:
            yield watch
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        _WATCHES.pop()
