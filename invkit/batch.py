"""Frozen records of tensors that share their leading (batch) dimension.

Cameras, views and renderings all need the same few moves: to a device, to a subset of the images, and back together.
They are written once here.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", bound="Batch")


class Batch:
    """Mixin for frozen dataclasses whose fields are tensors, other batches or None."""

    def map(self: Record, function: Callable[[Tensor], Tensor]) -> Record:
        """The same record with `function` applied to every tensor in it."""
        changed = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, Batch):
                changed[field.name] = value.map(function)
        return replace(self, **changed)

    def to(self: Record, device: torch.device | str, *, dtype: torch.dtype | None = None) -> Record:
        """The same record on `device`; `dtype` converts the floating-point tensors alone."""
        return self.map(lambda t: t.to(device, dtype if dtype is not None and t.is_floating_point() else t.dtype))

    def detach(self: Record) -> Record:
        return self.map(Tensor.detach)

    def __len__(self) -> int:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor | Batch):
                return len(value)
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

    @classmethod
    def cat(cls: type[Record], parts: Sequence[Record]) -> Record:
        """The parts one after another; a field must be given in all of them or in none.

        Raises:
            ValueError: there are no parts, or a field is None in some of them only.
        """
        if not parts:
            raise ValueError(f"nothing to join into a {cls.__name__}")
        joined = {}
        for field in fields(parts[0]):
            values = [getattr(part, field.name) for part in parts]
            if isinstance(values[0], Batch):
                joined[field.name] = type(values[0]).cat(values)
            elif isinstance(values[0], Tensor):
                if not all(isinstance(v, Tensor) for v in values):
                    raise ValueError(f"{cls.__name__}.{field.name} is missing in some of the parts to join")
                joined[field.name] = torch.cat(values)
            else:
                if any(isinstance(v, Tensor | Batch) for v in values):
                    raise ValueError(f"{cls.__name__}.{field.name} is missing in some of the parts to join")
                joined[field.name] = values[0]
        return replace(parts[0], **joined)
