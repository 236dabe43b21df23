"""Text embeddings, once for every prompt and state of the text encoders: many candidates share one encoder.

A text encoder's call is answered row by row. Each row (one tokenised prompt, the null prompt included) is
encoded alone, so its embedding depends on nothing but the encoder's weights and the prompt: not on the batch it
came in, and therefore not on whether it was remembered. The memory is this process's own: encoding a prompt
anew costs less than a thousandth of sampling its image, so nothing is written to disk.

It is exact or off: the first call of each shape is also answered as it came, and where the rows put together are
something else than that answer, rounding aside, calls of that shape are never cut into rows.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from raysense.pipelines.adapter import takes_timestep
from raysense.pipelines.load import modules_of

LIMIT = 256 << 20
"""Bytes of embeddings that are kept at least; the longest unused go first."""

SHARE = 0.04
"""Of a GPU's memory, that embeddings may take."""

ROUNDING = 1e-3
"""What another batch size may change of an embedding, as a share of its largest value; a wrong cut changes it all."""

State = Callable[[str], Hashable]
"""Component name -> what its weights are determined by, e.g. its part of the allocation."""


class TextCache:
    """Remembers what the text encoders of a pipeline said.

    Installing it changes the encoders' `forward`; while gradients are wanted it steps aside.

    Args:
        pipeline: Whose text encoders: every component but denoisers whose `forward` takes ``input_ids``.
        state: What each encoder's weights are determined by at the time of a call.
        limit: Bytes to keep; None for what `room_for` gives.

    Attributes:
        hits: Rows that were remembered.
        misses: Rows that were encoded.
    """

    def __init__(self, pipeline: DiffusionPipeline, state: State, limit: int | None = None) -> None:
        self.hits = self.misses = 0
        self._state, self._size = state, 0
        encoders = text_encoders(pipeline)
        weights = (weight for module in encoders.values() for weight in module.parameters())
        device = next(weights, torch.empty(0)).device
        self._limit = room_for(device) if limit is None else limit
        self._rows: OrderedDict[Hashable, Any] = OrderedDict()
        self._bypassed = False
        self._exact: dict[Hashable, bool] = {}
        for name, module in encoders.items():
            module.forward = self._remembering(name, module.forward)

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """While this is open every call runs its encoder, so that hooks inside it see it work."""
        before, self._bypassed = self._bypassed, True
        try:
            yield
        finally:
            self._bypassed = before

    def _remembering(self, name: str, encode: Callable[..., Any]) -> Callable[..., Any]:
        def forward(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            call = (input_ids, args, kwargs)
            if self._bypassed or torch.is_grad_enabled() or not _is_plain(call):
                return encode(input_ids, *args, **kwargs)
            shape = (name, _shapes(call))
            if not self._exact.get(shape, True):
                return encode(input_ids, *args, **kwargs)
            answer = self._by_rows(name, call, encode)
            if shape not in self._exact:
                whole = encode(input_ids, *args, **kwargs)
                self._exact[shape] = answer is not None and _alike(answer, whole)
                return answer if self._exact[shape] else whole
            return encode(input_ids, *args, **kwargs) if answer is None else answer

        return forward

    def _by_rows(self, name: str, call: Any, encode: Callable[..., Any]) -> Any:
        """The answer to a call put together from its rows; None where it is not made of plain tensors."""
        state, rows = self._state(name), []
        for index in range(len(call[0])):
            row = _row(call, index)
            key = (name, state, _content(row))
            if key in self._rows:
                self.hits += 1
                self._rows.move_to_end(key)
            else:
                self.misses += 1
                ids, more, named = row
                try:
                    output = encode(ids, *more, **named)
                except (RuntimeError, ValueError, IndexError):  # arguments that no row has for itself
                    return None
                if not _is_plain(output):
                    return None
                self._rows[key] = output
                self._size += _bytes(output)
            rows.append(self._rows[key])
        self._shrink()
        return _stacked(rows)

    def _shrink(self) -> None:
        while self._size > self._limit and self._rows:
            self._size -= _bytes(self._rows.popitem(last=False)[1])


def room_for(device: torch.device) -> int:
    """Bytes of embeddings to keep on a device.

    A prompt of Stable Diffusion XL takes 8 MB, as its encoders give the states of all their layers: a rung of a hundred
    prompts that did not fit as a whole would be encoded anew for every candidate.
    """
    if device.type != "cuda":
        return LIMIT
    return max(LIMIT, int(SHARE * torch.cuda.get_device_properties(device).total_memory))


def text_encoders(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The components of `pipeline` that turn token ids into embeddings, by name."""
    return {
        name: module
        for name, module in modules_of(pipeline).items()
        if "input_ids" in inspect.signature(module.forward).parameters and not takes_timestep(type(module))
    }


def cut_off(pipeline: DiffusionPipeline, texts: Sequence[str]) -> dict[str, int]:
    """How many texts each tokenizer of `pipeline` cuts off, if any: component name -> count."""
    # Pipelines with a second kind of text encoder read that many of its tokens, whatever its tokenizer allows.
    asked = inspect.signature(pipeline.__call__).parameters.get("max_sequence_length")
    most = asked.default if asked is not None and isinstance(asked.default, int) else None
    found: dict[str, int] = {}
    for name, tokenizer in pipeline.components.items():
        limit = getattr(tokenizer, "model_max_length", None)
        if not isinstance(limit, int) or not callable(tokenizer):
            continue
        limit = min(limit, most) if most is not None else limit
        rows = tokenizer(list(texts), padding=False, truncation=False, verbose=False).input_ids
        if count := sum(len(row) > limit for row in rows):
            found[name] = count
    return found


def _is_plain(value: Any) -> bool:
    """Whether it is made of nothing but tensors and plain values, so that it can be cut into rows."""
    return all(
        leaf is None or isinstance(leaf, (Tensor, bool, int, float, str)) for leaf in tree_flatten(value)[0]
    )


def _row(call: Any, index: int) -> Any:
    """The arguments of a call for one of its prompts alone."""
    count = len(call[0])

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and len(value) == count:
            return value[index : index + 1]
        return value

    return tree_map(cut, call)


def _content(arguments: Any) -> Hashable:
    leaves, structure = tree_flatten(arguments)
    return (str(structure), *(_of_tensor(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves))


def _of_tensor(tensor: Tensor) -> Hashable:
    data = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    return str(tensor.dtype), tuple(tensor.shape), data


def _stacked(rows: list[Any]) -> Any:
    """The outputs of single rows as the output of one call."""
    flat = [tree_flatten(row) for row in rows]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    joined = [torch.cat(same) if isinstance(same[0], Tensor) else same[0] for same in columns]
    return tree_unflatten(joined, flat[0][1])


def _shapes(call: Any) -> Hashable:
    leaves, structure = tree_flatten(call)
    return str(structure), tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves)


def _alike(rows: Any, whole: Any) -> bool:
    """Whether two answers are the same but for the rounding of another batch size."""
    (ours, form), (theirs, other) = tree_flatten(rows), tree_flatten(whole)
    return form == other and all(_close(a, b) for a, b in zip(ours, theirs, strict=True))


def _close(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    allowed = (
        max(ROUNDING, 32 * torch.finfo(one.dtype).eps) * float(other.abs().amax()) if other.numel() else 0.0
    )
    return torch.allclose(one.float(), other.float(), rtol=0, atol=allowed, equal_nan=True)


def _bytes(output: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor))
