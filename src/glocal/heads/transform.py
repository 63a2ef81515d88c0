"""torchvision's detection transform for images of any aspect ratio."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

MASK_THRESHOLD = 0.5  # smallest probability of a pixel of the object (He et al. 2017, §3.1)


class AnyAspectRatio(GeneralizedRCNNTransform):
    """Keeps a pixel of images with an aspect ratio above `max_size`, which torchvision would resize to nothing.

    Such an image is widened with its boxes and masks before it is resized; others are unchanged. Masks are thresholded
    one by one: 100 masks of a 12 Mpx photo take 1.2 GB as booleans, in torchvision twice 4.8 GB.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """(3, H, W) and its target -> both at the size that the network takes."""
        size = (image.shape[-2], image.shape[-1])
        least = max(size) // self.max_size + 1  # pixels that stay one or more after resizing
        widened = (max(size[0], least), max(size[1], least))
        if self.fixed_size is None and widened != size:
            image = F.interpolate(image[None], size=widened)[0]
            if target is not None:
                target = {**target, "boxes": resize_boxes(target["boxes"], size, widened)}
                if "masks" in target:
                    target["masks"] = F.interpolate(target["masks"][:, None].float(), size=widened)[:, 0].byte()
        return super().resize(image, target)

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes in pixels of the original image, masks as (M, 1, H, W) booleans."""
        masks = [detections.pop("masks", None) for detections in result]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for detections, small, size in zip(
            result, masks, original_image_sizes, strict=False
        ):  # in training there is no result
            if small is not None:
                whole = torch.zeros((len(small), 1, *size), dtype=torch.bool, device=small.device)
                for i in range(len(small)):
                    pasted = paste_masks_in_image(small[i : i + 1], detections["boxes"][i : i + 1], size)
                    whole[i] = pasted[0] >= MASK_THRESHOLD
                detections["masks"] = whole
        return result


def of_any_aspect_ratio(transform: GeneralizedRCNNTransform) -> AnyAspectRatio:
    """The same settings."""
    return AnyAspectRatio(
        list(transform.min_size), transform.max_size, transform.image_mean, transform.image_std,
        transform.size_divisible, transform.fixed_size,
    )  # fmt: skip
