"""ONNX graphs through onnx2torch, trusted only once onnxruntime computes the same."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attackcheck.errors import InputError, in_one_line

__all__ = ["load_onnx"]

NEWEST = 17
"""The newest set of operations that the converter knows all of; later graphs are brought down to it."""

AGREEMENT = 1e-4
"""Largest difference to onnxruntime, relative to the largest logit: float32 in another order is far below it."""


def load_onnx(path: Path, sample: Tensor | None = None) -> nn.Module:
    """The graph in a file as a module, compared with onnxruntime on noise and on ``sample`` ``(B, C, H, W)``.

    Raises:
        InputError: if the extra is not installed, the file is broken, an operation is unknown, or the two disagree.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX graphs need the extra onnx: pip install 'attackcheck[onnx]'") from error
    graph = _read(onnx, path)
    content = graph.SerializeToString()
    try:
        module = _converted(graph)
    except ImportError as error:
        raise InputError("ONNX graphs need the extra onnx: pip install 'attackcheck[onnx]'") from error
    except Exception as error:  # whatever an unknown operation makes the converters raise
        raise InputError(f"expected an ONNX graph that can be converted in {path}: {in_one_line(error)}") from error
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        inputs = session.get_inputs()
    except Exception as error:
        raise InputError(f"expected an ONNX graph that onnxruntime runs in {path}: {in_one_line(error)}") from error
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise InputError(f"expected one input (B, C, H, W) in {path}, got {[entry.shape for entry in inputs]}")
    sizes = [size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape]
    batched = _Batches(module, sizes[0])
    _compare(batched, lambda x: session.run(None, {inputs[0].name: x}), sizes, sample, path)
    return batched


def _converted(graph: Any) -> nn.Module:
    with _without_torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx2torch

        _without_idle_reductions(graph)
        newest = max((entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        if newest > NEWEST:
            with suppress(Exception):  # not every operation has a way down
                from onnx import version_converter

                return _still(onnx2torch.convert(version_converter.convert_version(graph, NEWEST)))
            # Most newer operations are the older ones with more options. Where they are not, onnxruntime will tell.
            _axes_as_attributes(graph)
            for entry in graph.opset_import:
                if entry.domain in ("", "ai.onnx"):
                    entry.version = NEWEST
        return _still(onnx2torch.convert(graph))


_PLAIN = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd")


def _without_idle_reductions(graph: Any) -> None:
    """A reduction told to do nothing where it has no axes is an identity: the converter would reduce over all.

    Not those that change single numbers, as ReduceL1 and ReduceSumSquare do: of these nothing is assumed.
    """
    for node in graph.graph.node:
        told = {entry.name: entry.i for entry in node.attribute}
        if node.op_type in _PLAIN and told.get("noop_with_empty_axes") and not any(node.input[1:]):
            node.op_type = "Identity"
            del node.attribute[:]
            del node.input[1:]


def _axes_as_attributes(graph: Any) -> None:
    """Reductions with constant axes, as they were written down before version 18 (ReduceSum: as it still is)."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Constant":
            constants |= dict.fromkeys(node.output, next((e.t for e in node.attribute if e.name == "value"), None))
    for node in graph.graph.node:
        reduces = node.op_type.startswith("Reduce") and node.op_type != "ReduceSum"
        if reduces and len(node.input) == 2 and constants.get(node.input[1]) is not None:
            axes = numpy_helper.to_array(constants[node.input[1]]).astype(int).flatten().tolist()
            kept = [entry for entry in node.attribute if entry.name != "noop_with_empty_axes"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("axes", axes)] if axes else kept)
            del node.input[1:]


def _still(module: Any) -> nn.Module:
    still: nn.Module = module.eval().requires_grad_(False)
    return still


class _Batches(nn.Module):
    """A graph for one batch size is called as often as need be."""

    def __init__(self, inner: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.inner, self.batch = inner, batch

    def forward(self, images: Tensor) -> Any:
        if self.batch is None or len(images) == self.batch:
            return self.inner(images)
        parts = []
        for part in torch.split(images, self.batch):
            missing = self.batch - len(part)
            filled = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
            parts.append(self.inner(filled)[: len(part)])
        return torch.cat(parts)


def _read(onnx: Any, path: Path) -> Any:
    try:
        graph = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf and checker raise all kinds
        raise InputError(f"expected an ONNX graph in {path}, got {in_one_line(error)}") from error
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            place = path.parent / entry.value
            if entry.key == "location" and (Path(entry.value).name != entry.value or place.is_symlink()):
                raise InputError(f"refused {path}: its weights lie outside its folder, at {entry.value[:80]!r}")
    try:
        onnx.load_external_data_for_model(graph, str(path.parent))
        onnx.checker.check_model(graph)
    except Exception as error:
        raise InputError(f"expected an ONNX graph with its weights in {path}, got {in_one_line(error)}") from error
    return graph


def _compare(
    module: nn.Module, runtime: Callable[[Any], Any], sizes: list[int | None], sample: Tensor | None, path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = [size or default for size, default in zip(sizes, (2, 3, 32, 32), strict=True)]
    if sample is not None and sizes[0] in (None, 1) and sample.shape[1:].numel():
        shape[1:] = list(sample.shape[1:])
    batches = [torch.rand(shape, generator=generator)]
    if sample is not None and sizes[0] in (None, len(sample)):
        batches.append(sample.detach().float().cpu())
    for images in batches:
        try:
            expected = torch.from_numpy(np.asarray(runtime(images.numpy())[0]))
            with torch.no_grad():
                found = module(images)
            found = found[0] if isinstance(found, tuple | list) else found
            apart = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
        except Exception as error:
            raise InputError(
                f"the ONNX graph {path} does not run on images of shape {tuple(images.shape)}: {in_one_line(error)}"
            ) from error
        if not apart <= AGREEMENT:
            raise InputError(
                f"refused {path}: as a torch module its outputs differ from onnxruntime's by {apart:.3g} of the "
                "largest; nothing found on the one would hold for the other"
            )


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """A stand-in for torchvision, unless it is there already: it cannot be imported beside every build of torch.

    The converter wants it for two operations on boxes, which no segmentation network has.
    """
    if "torchvision" in sys.modules:
        yield
        return
    whole, part = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    whole.ops, part.roi_align = part, None  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": whole, "torchvision.ops": part}
    try:
        yield
    finally:
        for name in ("torchvision", "torchvision.ops"):
            sys.modules.pop(name, None)
