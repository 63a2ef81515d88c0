"""How detectors resize images, and what they found on them: torchvision's way, for images of any proportions."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

LEAST_PROBABILITY = 0.5  # from which a pixel belongs to an object (He et al. 2017, §3.1)


class AnyProportions(GeneralizedRCNNTransform):
    """Of an image longer than `max_size` times its width, torchvision would leave nothing: it keeps a pixel.

    Such an image, with its boxes and masks, is made wider before it is scaled; others are not touched. Masks are
    decided one by one: 100 of a photo of 12 Mpx take 1.2 GB as booleans, and in torchvision twice 4.8 GB.
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

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes in pixels of the image as it came, masks as (M, 1, H, W) booleans."""
        masks = [found.pop("masks", None) for found in result]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for found, small, size in zip(
            result, masks, original_image_sizes, strict=False
        ):  # in training there is no result
            if small is not None:
                whole = torch.zeros((len(small), 1, *size), dtype=torch.bool, device=small.device)
                for i in range(len(small)):
                    pasted = paste_masks_in_image(small[i : i + 1], found["boxes"][i : i + 1], size)
                    whole[i] = pasted[0] >= LEAST_PROBABILITY
                found["masks"] = whole
        return result


def of_any_proportions(transform: GeneralizedRCNNTransform) -> AnyProportions:
    """The same settings."""
    return AnyProportions(
        list(transform.min_size), transform.max_size, transform.image_mean, transform.image_std,
        transform.size_divisible, transform.fixed_size,
    )  # fmt: skip
