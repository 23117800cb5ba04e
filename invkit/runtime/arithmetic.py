"""In what precision a GPU multiplies float32."""

import torch


def allow_tf32(allowed: bool) -> None:
    """Let matrix products and convolutions of float32 on CUDA round their factors to TF32 (10 bits after the point).

    Torch's own default allows it for convolutions and not for matrix products. Bootstrapped Radiance Field Inversion
    was trained without either; on GPUs from Ampere on, TF32 is several times as fast. A CPU is not affected.
    """
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
