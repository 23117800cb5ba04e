"""The unconditional generator of radiance fields (Bootstrapped Radiance Field Inversion, section 3.1)."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from invkit.runtime.networks import storable
from nerfinv.field import LaplaceDensity, RadianceField, SoftplusDensity
from nerfinv.generator.decoder import PlaneDecoder
from nerfinv.generator.mapping import Mapping
from nerfinv.generator.palette import PaletteMapper
from nerfinv.generator.synthesis import Synthesis
from nerfinv.generator.view import ViewHead


@storable
class Generator(nn.Module):
    """Objects in a box from styles, styles from latents.

    Args:
        scene_range: r of the box [-r, r]^3, object units.
        palette_size: K colors of an object; 0: the decoder gives colors itself.
        signed_distance: False: the decoder gives a raw density and nothing is known of a surface.
        view_dependent: colors depend on the viewing direction.
        noise: layers of the synthesis network add noise. The released code does so for birds and elephants.
        random_noise_in_eval: this noise is new in every call also in eval mode, as in the released code; otherwise it
            is then a stored one.
        num_classes: 0 is one kind of objects.
        plane_size: R, a power of two from 8 on.
        channel_base: the synthesis network has channel_base / r channels at resolution r, at most `max_channels`.

    Raises:
        ValueError: `plane_size` is not a power of two from 8 on.
    """

    def __init__(
        self,
        *,
        latent_dim: int = 512,
        style_dim: int = 512,
        scene_range: float = 1.4,
        palette_size: int = 10,
        signed_distance: bool = True,
        view_dependent: bool = False,
        noise: bool = False,
        random_noise_in_eval: bool = False,
        num_classes: int = 0,
        plane_size: int = 256,
        plane_channels: int = 32,
        channel_base: int = 32768,
        max_channels: int = 512,
        decoder_width: int = 64,
    ) -> None:
        super().__init__()
        self.latent_dim, self.style_dim, self.num_classes = latent_dim, style_dim, num_classes
        self.scene_range, self.palette_size, self.plane_size = scene_range, palette_size, plane_size
        self.density = LaplaceDensity() if signed_distance else SoftplusDensity()
        self.mapping = Mapping(latent_dim, style_dim, num_classes=num_classes)
        self.synthesis = Synthesis(
            style_dim,
            3 * plane_channels,
            size=plane_size,
            channel_base=channel_base,
            max_channels=max_channels,
            noise=noise,
            random_noise_in_eval=random_noise_in_eval,
        )
        logits = palette_size or 3
        num_attributes = plane_channels if view_dependent else logits
        self.decoder = PlaneDecoder(plane_channels, num_attributes, width=decoder_width)
        self.view_head = ViewHead(num_attributes, logits, width=decoder_width) if view_dependent else None
        self.palette = PaletteMapper(style_dim, palette_size) if palette_size else None
        self.num_styles = self.synthesis.num_styles + (1 if palette_size else 0)

    def style(self, latent: Float[Tensor, "B D"], label: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B S"]:
        """The style that latents, drawn from N(0, I), stand for.

        Raises:
            ValueError: there are classes and no labels are given.
        """
        return self.mapping(latent, label)

    def forward(self, styles: Float[Tensor, "B *W S"]) -> RadianceField:
        """The objects of these styles.

        Args:
            styles: one for everything ([B, S] or [B, 1, S]), or one for each of the `num_styles` slots: those of the
                synthesis network in order and, with a palette, the palette's last.

        Raises:
            ValueError: it is another number of styles.
        """
        if styles.ndim == 2:
            styles = styles[:, None]
        if styles.ndim != 3 or styles.shape[1] not in (1, self.num_styles):
            raise ValueError(f"styles of shape {list(styles.shape)}: need 1 or {self.num_styles} for each object")
        styles = styles.expand(-1, self.num_styles, -1)
        planes = self.synthesis(styles[:, : self.synthesis.num_styles])
        return RadianceField(
            planes=planes.unflatten(1, (3, -1)),
            palette=None if self.palette is None else self.palette(styles[:, -1]),
            decoder=self.decoder,
            density=self.density,
            half_side=self.scene_range,
            view_head=self.view_head,
        )
