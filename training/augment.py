"""Random changes of geometry and intensity, for a whole batch on the training device.

There are no flips: the liver must stay on the right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from app.engines.torch_images import network_input
from app.organs import IGNORE
from training.photometric import photometric_distortion
from training.recipes import Crops

ROTATION_DEG = 20.0
PAPER_ROTATION_DEG, PAPER_SCALE, PAPER_SHIFT, PAPER_SHARE = 45.0, (0.9, 1.1), 0.0625, 0.5  # albumentations' defaults
ELASTIC_SHARE, ELASTIC_KNOTS, ELASTIC_BEND = 0.5, 6, 0.036  # the standard deviation at a knot, in heights of the crop
LENS_SHARE, LENS_RADIUS, LENS_POWER = 0.5, (0.21, 0.57), (-0.4, 0.6)  # radius as a share of the crop's height
GAMMA = (0.7, 1.45)
SHIFT = 0.10  # of the input range, 40 HU in a window of 400
CONTRAST = (0.75, 1.3)
NOISE_SHARE, NOISE = 0.5, 0.08
BLUR_SHARE = 0.2
COARSE_SHARE, COARSE_FACTOR = 0.2, (1.3, 2.8)  # how many times as large pixels become
FAINT_SHARE, FAINT_CONTRAST = 0.3, (0.4, 0.8)
GRAIN_SHARE, GRAIN, GRAIN_PIXELS = 0.3, (0.025, 0.15), (0.5, 1.5)  # 10 to 60 HU; standard deviation of its blur


def _uniform(n: int, low: float, high: float, device: torch.device) -> Tensor:
    return torch.empty(n, device=device).uniform_(low, high)


def _chosen(n: int, share: float, device: torch.device) -> Tensor:
    return (torch.rand(n, device=device) < share).float()


def crop_fields(sizes: Tensor, canvas: tuple[int, int], crops: Crops) -> Tensor:
    """Sampling fields for `grid_sample`: random crops, rotated, scaled and bent; (N, *crop, 2) in -1..1.

    Args:
        sizes: (N, 2) height and width of the slices, which lie in the middle of the canvas.
        canvas: height and width of the canvas.
        crops: their size, and how far they are scaled.
    """
    n, device, crop = len(sizes), sizes.device, crops.size
    angle = _uniform(n, -ROTATION_DEG, ROTATION_DEG, device).deg2rad()
    scale = torch.exp(_uniform(n, math.log(crops.scale[0]), math.log(crops.scale[1]), device))
    # The crop's centre moves over the slice as far as the crop stays on it, and a little when it is larger.
    room = (0.5 * (sizes - torch.tensor(crop, device=device) / scale[:, None])).clamp_min(16.0)
    centre = room * torch.empty(n, 2, device=device).uniform_(-1, 1)
    fields = similarity_fields(angle, scale, centre, canvas, crop)
    knots = torch.randn(n, 2, ELASTIC_KNOTS, ELASTIC_KNOTS, device=device) * ELASTIC_BEND * crop[0]
    bend = functional.interpolate(knots, size=crop, mode="bicubic", align_corners=True)
    bend = bend * _chosen(n, ELASTIC_SHARE, device)[:, None, None, None]
    half = torch.tensor([canvas[1], canvas[0]], device=device) / 2
    bent = fields * half + bend.movedim(1, 3)  # in pixels from the middle of the canvas
    power = _uniform(n, *LENS_POWER, device) * _chosen(n, LENS_SHARE, device)
    rows, columns = (torch.randint(side, (n,), device=device) for side in crop)
    middle = bent[torch.arange(n, device=device), rows, columns]
    radius = crop[0] * _uniform(n, *LENS_RADIUS, device)
    return lens(bent, middle, radius, power) / half


def lens(points: Tensor, middle: Tensor, radius: Tensor, power: Tensor) -> Tensor:
    """Sampling points as through a lens: what lies about its middle grows 1 / (1 - power) times, and pushes the rest.

    This makes an organ as large as it is in only a few patients, and displaces its neighbours as such an organ would.

    Args:
        points: (N, H, W, 2), in pixels.
        middle: (N, 2).
        radius: (N); farther off nothing changes.
        power: (N), -1 < power < 1; what is less than 0 shrinks.
    """
    arm = points - middle[:, None, None]
    near = (1 - arm.square().sum(3, keepdim=True) / radius[:, None, None, None] ** 2).clamp_min(0)
    return points - power[:, None, None, None] * near.square() * arm


def similarity_fields(
    angle: Tensor, scale: Tensor, centre: Tensor, canvas: tuple[int, int], crop: tuple[int, int]
) -> Tensor:
    """Sampling fields of crops that are turned by `angle` (N, radians), enlarged by `scale` (N), about `centre` (N, 2).

    `centre` is (y, x) in pixels from the middle of the canvas.
    """
    rows, columns = (torch.arange(side, device=angle.device) - (side - 1) / 2 for side in crop)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    cos, sin = (f(angle)[:, None, None] / scale[:, None, None] for f in (torch.cos, torch.sin))
    across = (cos * x - sin * y + centre[:, 1, None, None]) * 2 / canvas[1]
    down = (sin * x + cos * y + centre[:, 0, None, None]) * 2 / canvas[0]
    return torch.stack([across, down], dim=3)


def paper_fields(sizes: Tensor, canvas: tuple[int, int], crops: Crops) -> Tensor:
    """The paper's crops: anywhere on the slice, half of them shifted, scaled and rotated; as `crop_fields`."""
    n, device = len(sizes), sizes.device
    changed = _chosen(n, PAPER_SHARE, device)
    angle = changed * _uniform(n, -PAPER_ROTATION_DEG, PAPER_ROTATION_DEG, device).deg2rad()
    scale = 1 + changed * (_uniform(n, *PAPER_SCALE, device) - 1)
    sides = torch.tensor(crops.size, device=device)
    shift = changed[:, None] * torch.empty(n, 2, device=device).uniform_(-PAPER_SHIFT, PAPER_SHIFT) * sides
    room = (0.5 * (sizes - sides)).clamp_min(0)
    centre = room * torch.empty(n, 2, device=device).uniform_(-1, 1) + shift
    return similarity_fields(angle, scale, centre, canvas, crops.size)


def geometry(images: Tensor, labels: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
    """Sample the crops: images (N, C, H, W) uint8 -> (N, C, *crop) float32, labels (N, H, W) -> int64."""
    warped = functional.grid_sample(images.float(), fields, mode="bilinear", align_corners=False)
    # grid_sample pads with zeros, so the label travels as 255 - label: outside becomes "not annotated".
    inverse = (IGNORE - labels[:, None].float()).contiguous()
    cropped_labels = IGNORE - functional.grid_sample(inverse, fields, mode="nearest", align_corners=False)
    return warped, cropped_labels[:, 0].round().long()


def coarsen(images: Tensor) -> Tensor:
    """Take resolution from some of the network inputs (N, C, H, W): shrunk, antialiased, and enlarged again."""
    size = images.shape[2:]
    factors = _uniform(len(images), *COARSE_FACTOR, torch.device("cpu")).tolist()
    coarse = images.clone()
    for i in torch.nonzero(_chosen(len(images), COARSE_SHARE, torch.device("cpu")))[:, 0].tolist():
        shrunk = [max(1, round(side / factors[i])) for side in size]
        small = functional.interpolate(images[i : i + 1], shrunk, mode="bilinear", antialias=True)
        coarse[i : i + 1] = functional.interpolate(small, size, mode="bilinear", align_corners=False)
    return coarse


def fade(images: Tensor) -> Tensor:
    """Take contrast from some of the network inputs (N, C, H, W), about the mean of what is neither 0 nor 1.

    Organs look like this between contrast phases, and with weak or late contrast.
    """
    n, device = len(images), images.device
    soft = ((images > 0) & (images < 1)).float()
    mean = (images * soft).sum((1, 2, 3)) / soft.sum((1, 2, 3)).clamp_min(1)
    lost = (1 - _uniform(n, *FAINT_CONTRAST, device)) * _chosen(n, FAINT_SHARE, device)
    faint = images + lost[:, None, None, None] * (mean[:, None, None, None] - images)
    return torch.where(images > 0, faint, images)


def grain(images: Tensor) -> Tensor:
    """Noise (N, C, H, W) like that of a sharp kernel or a low dose, correlated over a few pixels; most images get none.

    Its standard deviation is drawn for each image, 10 to 60 HU in a window of 400.
    """
    n, channels = images.shape[:2]
    offsets = torch.arange(-4, 5, device=images.device)
    blur = _uniform(n, *GRAIN_PIXELS, images.device)
    kernels = torch.exp(-((offsets / blur[:, None]) ** 2) / 2)
    kernels = kernels / kernels.square().sum(1, keepdim=True).sqrt()  # white noise keeps its standard deviation
    noise = torch.zeros_like(images)
    for i in torch.nonzero(_chosen(n, GRAIN_SHARE, images.device))[:, 0].tolist():
        white = torch.randn(channels, 1, *images.shape[2:], device=images.device)
        column, row = kernels[i].view(1, 1, -1, 1), kernels[i].view(1, 1, 1, -1)
        smooth = functional.conv2d(functional.conv2d(white, column, padding=(4, 0)), row, padding=(0, 4))
        noise[i] = smooth[:, 0] * float(torch.empty(1).uniform_(*GRAIN))
    return noise


def intensity(images: Tensor) -> Tensor:
    """Random contrast phase, window, noise and sharpness of network inputs (N, C, H, W) in 0..1, the same for all C."""
    n, device = len(images), images.device

    def each(low: float, high: float) -> Tensor:
        return _uniform(n, low, high, device)[:, None, None, None]

    air = images <= 0
    changed = images.clamp_min(0) ** each(*GAMMA)
    changed = (changed - 0.5) * each(*CONTRAST) + 0.5 + each(-SHIFT, SHIFT)
    blurred = functional.avg_pool2d(changed, 3, stride=1, padding=1, count_include_pad=False)
    blur = _chosen(n, BLUR_SHARE, device)[:, None, None, None] * each(0.3, 1)
    changed = changed + blur * (blurred - changed)
    changed = changed.masked_fill(air, 0)  # what the window clipped stays clipped
    sigma = each(0, NOISE) * _chosen(n, NOISE_SHARE, device)[:, None, None, None]
    return (changed + sigma * torch.randn_like(changed) + grain(changed)).clamp_(0, 1)


@torch.no_grad()
def augment(images: Tensor, labels: Tensor, sizes: Tensor, crops: Crops) -> tuple[Tensor, Tensor]:
    """Canvas batch (uint8) -> augmented network input (N, C, *crop) in 0..1 and labels (N, *crop) int64."""
    canvas, is_paper = (images.shape[2], images.shape[3]), crops.augmentation == "paper"
    fields = (paper_fields if is_paper else crop_fields)(sizes, canvas, crops)
    warped, cropped_labels = geometry(images, labels, fields)
    inputs = network_input(warped)
    return photometric_distortion(inputs) if is_paper else intensity(fade(coarsen(inputs))), cropped_labels
