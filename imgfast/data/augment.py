"""From stored uint8 pictures to a batch: shift and flip at once, cutout, normalise."""

from __future__ import annotations

import torch


def normalise(
    images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """``(images / 255 - mean) / std`` per channel.

    Args:
        images: uint8 ``[N, C, H, W]``.
        mean, std: per channel, of pixels scaled to [0, 1].

    Returns:
        float32 ``[N, C, H, W]``.
    """
    shift = torch.tensor(mean, device=images.device).mul_(255).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=images.device).mul_(255).view(1, -1, 1, 1)
    return images.float().sub_(shift).div_(scale)


class Augment:
    """Random shifts and horizontal flips of a whole batch in one gather, then cutout.

    Kept are the pictures with a black border and, for the flips, their mirror images. A shifted
    picture is then a window of that store, and a batch is an ``index_select`` of windows: one
    block copy a picture, no index per pixel. Random numbers come from the generator given, on the
    CPU: the same pictures for the same seed on every device.

    Args:
        images: uint8 ``[N, C, H, W]``.
        shift: the largest shift in pixels, along each axis and in each direction.
        flip: mirror half of the pictures.
        cutout: side in pixels of a square that is erased from every picture; 0 for none. Its
            centre is any pixel with the same probability, and what lies outside is lost. Erased
            pixels get the mean of all pictures, which :func:`normalise` makes zero, roughly.

    Source: DeVries and Taylor, 2017, arXiv:1708.04552 (cutout).
    """

    def __init__(self, images: torch.Tensor, shift: int, flip: bool, cutout: int = 0) -> None:
        self.count = len(images)
        self.shift = shift
        self.flip = flip
        self.cutout = cutout
        if cutout:
            pixels = images.numel() // images.shape[1]
            self.erased = (images.sum((0, 2, 3)) / pixels).round().to(torch.uint8)  # [C]
        store = torch.nn.functional.pad(images, (shift, shift, shift, shift))
        if flip:
            store = torch.cat([store, store.flip(3)])
        _, channels, padded_height, self.padded_width = store.shape
        height, width = images.shape[2:]
        plane = padded_height * self.padded_width
        self.picture_stride = channels * plane
        # windows[s] is the picture whose first pixel is element s of the store.
        span = (channels - 1) * plane + (height - 1) * self.padded_width + width
        self.windows = store.contiguous().as_strided(
            (store.numel() - span + 1, channels, height, width), (1, plane, self.padded_width, 1)
        )

    def __call__(self, indices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The pictures at ``indices`` (int64 ``[B]``), augmented: uint8 ``[B, C, H, W]``."""
        starts = indices
        if self.flip:
            mirrored = torch.randint(0, 2, indices.shape, generator=generator)
            starts = starts + self.count * mirrored
        starts = starts * self.picture_stride
        if self.shift:
            rows, columns = torch.randint(
                0, 2 * self.shift + 1, (2, len(indices)), generator=generator
            )
            starts = starts + rows * self.padded_width + columns
        batch = self.windows.index_select(0, starts.to(self.windows.device))
        if self.cutout:
            self._erase(batch, generator)
        return batch

    def _erase(self, batch: torch.Tensor, generator: torch.Generator) -> None:
        """Write one square into each picture; only its own pixels are touched."""
        size, _, height, width = batch.shape
        within = torch.arange(self.cutout) - self.cutout // 2
        # Pixels outside move to the border, which is part of such a square anyway: it is clipped.
        rows, columns = (
            (torch.randint(0, side, (size, 1), generator=generator) + within).clamp(0, side - 1)
            for side in (height, width)
        )
        indices = (torch.arange(size).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1))
        batch.permute(0, 2, 3, 1)[tuple(index.to(batch.device) for index in indices)] = self.erased
