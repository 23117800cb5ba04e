"""Frozen records of tensors that share their leading (batch) dimension.

Cameras, views and renderings all need the same few moves: to a device, to a subset of the images, and back together.
They are written once here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", bound="Batch")


class Batch:
    """Mixin for frozen dataclasses whose fields are tensors, other batches, mappings of these, or None."""

    def map(self: Record, function: Callable[[Tensor], Tensor]) -> Record:
        """The same record with `function` applied to every tensor in it."""
        return replace(self, **{field.name: _mapped(getattr(self, field.name), function) for field in fields(self)})

    def to(self: Record, device: torch.device | str, *, dtype: torch.dtype | None = None) -> Record:
        """The same record on `device`; `dtype` converts the floating-point tensors alone."""
        return self.map(lambda t: t.to(device, dtype if dtype is not None and t.is_floating_point() else t.dtype))

    def detach(self: Record) -> Record:
        return self.map(Tensor.detach)

    def __len__(self) -> int:
        for field in fields(self):
            value = getattr(self, field.name)
            for part in value.values() if isinstance(value, Mapping) else [value]:
                if isinstance(part, Tensor | Batch):
                    return len(part)
        return 0

    def __getitem__(self: Record, index: int | slice | Sequence[int] | Tensor) -> Record:
        """The chosen images; an integer gives a batch of one, so the rank of every tensor stays."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is outside a batch of {len(self)}")
            index = slice(index, index + 1 or None)
        return self.map(lambda t: t[index])

    def repeat(self: Record, count: int) -> Record:
        """Every image `count` times in a row: 0, 0, 1, 1, ..."""
        return self.map(lambda t: t.repeat_interleave(count, dim=0))

    def where(self: Record, chosen: Tensor, other: Record) -> Record:
        """These images where `chosen` ([B], boolean), those of `other` elsewhere."""
        index = torch.arange(len(chosen), device=chosen.device)
        return type(self).cat([self, other])[torch.where(chosen, index, index + len(chosen))]

    @classmethod
    def cat(cls: type[Record], parts: Sequence[Record]) -> Record:
        """The parts one after another; a field must be given in all of them or in none.

        Raises:
            ValueError: there are no parts, or a field is None in some of them only.
        """
        if not parts:
            raise ValueError(f"nothing to join into a {cls.__name__}")
        names = [field.name for field in fields(parts[0])]
        joined = {name: _joined([getattr(part, name) for part in parts], f"{cls.__name__}.{name}") for name in names}
        return replace(parts[0], **joined)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Batch):
        return value.map(function)
    if isinstance(value, Mapping):
        return {key: _mapped(part, function) for key, part in value.items()}
    return value


def _joined(values: Sequence[Any], name: str) -> Any:
    if isinstance(values[0], Batch):
        return type(values[0]).cat(values)
    given = [isinstance(value, Tensor | Batch | Mapping) for value in values]
    if any(given) and not all(given):
        raise ValueError(f"{name} is missing in some of the parts to join")
    if isinstance(values[0], Mapping):
        return {key: _joined([value[key] for value in values], f"{name}[{key!r}]") for key in values[0]}
    return torch.cat(values) if given[0] else values[0]
