"""What a pickle would take, found before it is read."""

import pickletools
from collections.abc import Iterable
from typing import Any

MAX_TUPLE = 10_000
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_SETS = ("EMPTY_SET", "ADDITEMS", "FROZENSET")


def look_through(operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]], size: int) -> None:
    """Do nothing where a pickle of `size` bytes takes neither much room nor much time.

    pickle makes room for what is announced. And tuples may be keys: each time one is looked up it is gone through with
    all tuples in it, which by repetition are as many as one likes. So their sizes are followed on a stack as pickle's,
    of the length of each tuple and 0 for everything else.

    Raises:
        ValueError: it announces more than it holds, or a tuple of more than `MAX_TUPLE` entries, those in it included.
    """
    stack: list[int | None] = []
    memo: dict[int, int] = {}
    for operation, argument, _ in operations:
        name = operation.name
        if name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            place = len(memo) if name == "MEMOIZE" else argument
            if place > size:
                raise ValueError(f"more than {place} objects in {size} bytes")
            memo[place] = stack[-1] or 0
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo.get(argument, 0))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in _SETS:
            raise ValueError("a set among the data")
        else:
            inside = 1
            if pickletools.markobject in operation.stack_before:
                while (top := stack.pop()) is not None:
                    inside += 1 + top
            for kind in operation.stack_before:
                if kind is not pickletools.markobject and kind is not pickletools.stackslice:
                    inside += 1 + (stack.pop() or 0)
            for kind in operation.stack_after:
                marks = kind is pickletools.markobject
                stack.append(None if marks else inside if name in _TUPLES else 0)
            if name in _TUPLES and inside > MAX_TUPLE:
                raise ValueError(f"a tuple of more than {MAX_TUPLE} entries")
