"""How detectors resize images: torchvision's way, for images of any proportions."""

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes


class AnyProportions(GeneralizedRCNNTransform):
    """Of an image longer than `max_size` times its width, torchvision would leave nothing: it keeps a pixel.

    Such an image, with its boxes and masks, is made wider before it is scaled; others are not touched.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """(3, H, W) and its target -> both at the size that the network takes."""
        size = (image.shape[-2], image.shape[-1])
        least = max(size) // self.max_size + 1  # pixels that are one or more after scaling
        grown = (max(size[0], least), max(size[1], least))
        if self.fixed_size is None and grown != size:
            image = F.interpolate(image[None], size=grown)[0]
            if target is not None:
                target = {**target, "boxes": resize_boxes(target["boxes"], size, grown)}
                if "masks" in target:
                    target["masks"] = F.interpolate(target["masks"][:, None].float(), size=grown)[:, 0].byte()
        return super().resize(image, target)


def of_any_proportions(transform: GeneralizedRCNNTransform) -> AnyProportions:
    """The same settings."""
    return AnyProportions(
        list(transform.min_size), transform.max_size, transform.image_mean, transform.image_std,
        transform.size_divisible, transform.fixed_size,
    )  # fmt: skip
