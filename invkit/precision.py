"""Half precision, and where it is too coarse."""

from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 where mixed precision has made it narrower; as it is where it is not, or holds no numbers
    of floating point."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor
