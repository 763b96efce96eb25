"""The computation of a network as a list of tensor operations, each with the module that it belongs to.

The frozen network is run once, on a tensor that has a shape but no numbers (a fake tensor). Whatever does not depend on
the image is computed for real, so constants are folded as they come; whatever does is written down. Control flow that
depends on the numbers of the image cannot hide: a fake tensor has none to look at. Nothing is believed of a module
because of its name: what is recorded is what its `forward` does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map

from attackcheck.arithmetic import frozen
from attackcheck.errors import in_one_line

__all__ = ["Graph", "Operation", "Untraceable", "Value", "trace", "trace_as_is"]


class Untraceable(Exception):  # noqa: N818
    """The network cannot be written down as operations; the argument says why."""


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the image: the `output`-th result of operation `operation` (-1: the image itself)."""

    operation: int
    output: int = 0


@dataclass(frozen=True, eq=False)
class Operation:
    """One tensor operation.

    Attributes:
        name: ATen's name without namespace and overload, or that of a module or function taken as a whole.
        args, kwargs: with :class:`Value` in the place of tensors that depend on the image.
        shapes: of the results.
        floating: whether the first result holds real numbers.
        path: dotted name of the innermost module that it belongs to, empty for the network's own forward.
        overload: which of ATen's functions of that name, empty where it is none of ATen's.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    floating: bool
    path: str
    overload: str = ""


@dataclass(frozen=True, eq=False)
class Graph:
    """Operations in order; `output` is what the network returns, `constant` if it does not depend on the image."""

    input_shape: tuple[int, ...]  # (1, C, H, W)
    operations: list[Operation]
    output: Value | None
    kinds: Mapping[str, str] = field(default_factory=dict)  # module path -> class name

    def shape(self, value: Value) -> tuple[int, ...]:
        """Shape of a value."""
        return self.input_shape if value.operation < 0 else self.operations[value.operation].shapes[value.output]


Whole = Callable[[nn.Module], "Mapping[str, Any] | None"]


def trace(model: nn.Module, input_shape: Sequence[int], whole: Whole | None = None) -> Graph:
    """Write down what a network does with one image.

    Args:
        model: any module; a frozen copy in evaluation mode and float64 is run (as it is, where it has no float64).
        input_shape: ``(C, H, W)``.
        whole: asked about every module of the frozen copy; where it answers with keywords, the module is recorded as
            one operation named after its class, with these keywords, its own name as `module`, and its input.

    Raises:
        Untraceable: with one clause on why.
    """
    twin = frozen(model)
    if not isinstance(twin, nn.Module) or twin is model:
        raise Untraceable("the network cannot be copied")
    twin.eval().cpu()
    reason = ""
    for dtype in (torch.float64, next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)):
        with suppress(RuntimeError, TypeError, AttributeError):
            twin.to(dtype)
        try:
            return _trace(twin, torch.zeros(1, *input_shape, dtype=dtype), whole)
        except Untraceable:
            raise
        except Exception as error:  # whatever a user's forward raises where it looks at numbers
            reason = reason or _why(error)
    raise Untraceable(reason)


def trace_as_is(model: nn.Module, image: Tensor) -> Graph:
    """Write down what a frozen network does with an image like this one ``(C, H, W)``, on its device, with its weights.

    Raises:
        Untraceable: with one clause on why.
    """
    try:
        return _trace(model, image[None], None)
    except Untraceable:
        raise
    except Exception as error:  # whatever a user's forward raises where it looks at numbers
        raise Untraceable(_why(error)) from error


def _why(error: Exception) -> str:
    if type(error).__name__ in ("DataDependentOutputException", "DynamicOutputShapeException"):
        return f"what it computes depends on the numbers of the image ({getattr(error, 'func', 'a branch')})"
    return f"it does not run on a tensor without numbers: {in_one_line(error)}"


def _trace(model: nn.Module, images: Tensor, whole: Whole | None) -> Graph:
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        fake = FakeTensorMode(allow_non_fake_inputs=True).from_tensor(images)
        recorder = _Recorder(fake)
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(_entering(recorder, name)).remove)
            stack.callback(module.register_forward_hook(_leaving(recorder), always_call=True).remove)
            options = None if whole is None else whole(module)
            if options is not None:
                forward = module.forward
                whole_forward = _as_one(recorder, type(module).__name__, forward, {**options, "module": name})
                object.__setattr__(module, "forward", whole_forward)
                stack.callback(_undo, module)
        stack.enter_context(_Functions(recorder))
        stack.enter_context(recorder)
        result = model(fake)
    if not isinstance(result, Tensor):
        raise Untraceable(f"it returns a {type(result).__name__} instead of logits")
    output = recorder.value(result) if isinstance(result, FakeTensor) else None
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    return Graph(tuple(images.shape), recorder.operations, output, kinds)


def _undo(module: nn.Module) -> None:
    module.__dict__.pop("forward", None)


def _entering(recorder: _Recorder, name: str) -> Callable[..., None]:
    def hook(*_: object) -> None:
        recorder.path.append(name)

    return hook


def _leaving(recorder: _Recorder) -> Callable[..., None]:
    def hook(*_: object) -> None:
        recorder.path.pop()

    return hook


def _as_one(
    recorder: _Recorder, name: str, forward: Callable[..., Any], options: Mapping[str, Any]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], FakeTensor):
            return recorder.whole(name, forward, args[0], options)
        return forward(*args, **kwargs)

    return call


class _Functions(TorchFunctionMode):
    """Circular padding is one operation: below this level it is a sequence of writes into an empty tensor."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.pad:
            names = ("input", "pad", "mode", "value")
            given = dict(zip(names, args, strict=False)) | kwargs
            source, pad = given["input"], list(given["pad"])
            if given.get("mode") == "circular" and isinstance(source, FakeTensor) and min(pad) >= 0:
                return self._recorder.whole(
                    "circular_pad", lambda values: func(values, pad, mode="circular"), source, {"pad": pad}
                )
        return func(*args, **kwargs)


class _Recorder(TorchDispatchMode):
    def __init__(self, image: FakeTensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.path: list[str] = []
        self._values: dict[int, Value] = {id(image): Value(-1)}
        self._alive: list[Tensor] = [image]  # an id stays unique as long as its tensor lives
        self._stale: dict[int, str] = {}
        self._constants: set[int] = set()
        self._paused = False

    def value(self, tensor: Tensor) -> Value:
        """The value that a tensor stands for."""
        if id(tensor) in self._stale:
            raise Untraceable(f"{self._stale[id(tensor)]} changed a tensor through a view of it")
        if id(tensor) not in self._values:
            raise Untraceable("a tensor of unknown origin takes part")
        return self._values[id(tensor)]

    def whole(self, name: str, function: Callable[..., Any], source: Tensor, options: Mapping[str, Any]) -> Any:
        """Run a function as one operation."""
        if self._paused:
            return function(source)
        value = self.value(source)
        self._paused = True
        try:
            result = function(source)
        finally:
            self._paused = False
        self._record(name, (value,), options, result)
        return result

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Untraceable(f"it draws random numbers ({name})")
        if self._paused:
            return func(*args, **kwargs)
        written = _written(func, args, kwargs)
        if not tree_any(lambda leaf: isinstance(leaf, FakeTensor), (args, kwargs)):
            if any(_memory(tensor) in self._constants for tensor in written):
                raise Untraceable(f"{name} changes a constant that was used before")
            return func(*args, **kwargs)
        if written and (len(written) > 1 or written[0] is not args[0] or not isinstance(written[0], FakeTensor)):
            raise Untraceable(f"{name} writes into a constant")
        known = tree_map(self._known, (tuple(args), kwargs))
        result = func(*args, **kwargs)
        if written:
            self._overwrite(args[0], name)
            name = name.removesuffix("_")
        self._record(name, known[0], known[1], result, func._overloadname)
        return result

    def _known(self, leaf: Any) -> Any:
        if isinstance(leaf, FakeTensor):
            return self.value(leaf)
        if isinstance(leaf, Tensor):
            self._constants.add(_memory(leaf))
        return leaf

    def _overwrite(self, tensor: Tensor, name: str) -> None:
        """An operation in place: every other tensor that shares its memory is out of date."""
        for other in self._alive:
            if other is not tensor and _memory(other) == _memory(tensor):
                self._stale[id(other)] = name

    def _record(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, overload: str = ""
    ) -> None:
        results = list(result) if isinstance(result, tuple | list) else [result]
        tensors = [r for r in results if isinstance(r, Tensor)]
        if not tensors:
            return
        path = next((part for part in reversed(self.path) if part), "")
        shapes = tuple(tuple(r.shape) if isinstance(r, Tensor) else () for r in results)
        floating = tensors[0].is_floating_point()
        self.operations.append(Operation(name, args, dict(kwargs), shapes, floating, path, overload))
        for output, tensor in enumerate(results):
            if isinstance(tensor, Tensor):
                self._values[id(tensor)] = Value(len(self.operations) - 1, output)
                self._stale.pop(id(tensor), None)
                self._alive.append(tensor)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operation changes in place."""
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            found += [given] if isinstance(given, Tensor) else []
    return found
