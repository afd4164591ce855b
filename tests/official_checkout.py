"""A checkout of our own: the file layout and the interface of the official repository, tiny.

Its loss finds sizes in values: masks as indices, `unique`, the largest count, a sum as a condition.
"""

import textwrap

FILES = {
    "models/__init__.py": "",
    "utils/__init__.py": "",
    "utils/tal/__init__.py": "",
    "utils/tal/pairs.py": """
        from utils.general import boxes_of

        def corners(boxes):
            return boxes_of(boxes)
        """,
    "utils/general.py": """
        import logging
        import os

        import cv2
        import seaborn as sns
        import torch
        import torchvision
        from IPython.display import display

        LOGGER = logging.getLogger("tiny checkout")
        torch.set_printoptions(linewidth=11)
        os.environ["TINY_CHECKOUT"] = os.environ["YOLOV5_CONFIG_DIR"]
        cv2.setNumThreads(0)

        def boxes_of(rows):
            half = rows[..., 2:] / 2
            return torch.cat((rows[..., :2] - half, rows[..., :2] + half), -1)

        def non_max_suppression(
            prediction, conf_thres=0.25, iou_thres=0.45, multi_label=False, max_det=300
        ):
            kept = []
            sure = prediction[:, 4:].amax(1) > conf_thres
            for image, rows in enumerate(prediction):
                rows = rows.T[sure[image]]
                row, column = (rows[:, 4:] > conf_thres).nonzero().T
                scores = rows[row, 4 + column]
                rows = boxes_of(rows[row, :4])
                kept.append(rows[torchvision.ops.nms(rows, scores, iou_thres)[:max_det]])
            return kept
        """,
    "utils/torch_utils.py": """
        import torch

        def smart_optimizer(model, name, lr, momentum, decay):
            if name != "SGD":
                raise NotImplementedError(name)
            weights = [p for p in model.parameters() if p.ndim > 1]
            others = [p for p in model.parameters() if p.ndim <= 1]
            optimizer = torch.optim.SGD(others, lr=lr, momentum=momentum, nesterov=True)
            optimizer.add_param_group({"params": weights, "weight_decay": decay})
            return optimizer
        """,
    "models/common.py": """
        import torch

        class Conv(torch.nn.Module):
            def __init__(self, wide_in, wide_out):
                super().__init__()
                self.conv = torch.nn.Conv2d(wide_in, wide_out, 3, 2, 1, bias=False)
                self.bn = torch.nn.BatchNorm2d(wide_out)
                self.act = torch.nn.SiLU(inplace=True)

            def forward(self, x):
                return self.act(self.bn(self.conv(x)))
        """,
    "models/yolo.py": """
        import torch
        import yaml

        from models.common import Conv
        from utils.general import LOGGER

        class DDetect(torch.nn.Module):
            shape = None
            anchors = torch.empty(0)
            branches = 1

            def __init__(self, classes, width):
                super().__init__()
                self.nc = classes
                self.stride = torch.zeros(1)
                self.outs = torch.nn.ModuleList(
                    torch.nn.Conv2d(width, 4 + classes, 1) for _ in range(self.branches)
                )

            def forward(self, x):
                maps = [out(x) for out in self.outs]
                if self.training:
                    return maps if self.branches > 1 else maps[0]
                if self.shape != x.shape:
                    self.shape = x.shape
                    self.anchors = torch.arange(
                        x.shape[2] * x.shape[3], device=x.device, dtype=x.dtype
                    )
                decoded = [m.flatten(2) + self.anchors for m in maps]
                return (decoded, maps) if self.branches > 1 else (decoded[0], maps[0])

        class DualDDetect(DDetect):
            branches = 2

        class Model(torch.nn.Module):
            def __init__(self, cfg, ch=3, nc=None):
                super().__init__()
                with open(cfg) as file:
                    self.yaml = yaml.safe_load(file)
                head = {"DDetect": DDetect, "DualDDetect": DualDDetect}[self.yaml["head"][-1][2]]
                width = self.yaml["width"]
                self.model = torch.nn.Sequential(
                    Conv(ch, width), Conv(width, width), head(nc, width)
                )
                LOGGER.warning("built")
                out = self.forward(torch.zeros(1, ch, 64, 64))
                out = out[0] if isinstance(out, list) else out
                self.model[-1].stride = torch.tensor([64 / out.shape[-1]])

            def forward(self, x):
                return self.model(x)
        """,
    "utils/loss_tal.py": """
        import torch

        from utils.tal.pairs import corners

        class ComputeLoss:
            def __init__(self, model):
                self.device = next(model.parameters()).device
                self.gain = model.hyp["box"]
                self.stride = model.model[-1].stride

            def __call__(self, maps, targets):
                maps = maps[-1] if isinstance(maps, list) else maps
                rows = maps.flatten(2).transpose(1, 2)
                _, counts = targets[:, 0].unique(return_counts=True)
                boxes = torch.zeros(len(rows), counts.max(), 5, device=self.device)
                for image in range(len(rows)):
                    matches = targets[:, 0] == image
                    number = matches.sum()
                    if number:
                        boxes[image, :number] = targets[matches, 1:]
                boxes = corners(boxes[..., 1:] * self.stride)
                distance = (rows[:, :, None, :4] - boxes[:, None]).abs().sum(-1)
                positive = distance.amin(-1) < 1
                loss = rows.sigmoid().mean()
                if positive.sum():
                    chosen = rows[positive]
                    wide = positive.unsqueeze(-1).repeat(1, 1, 4)
                    loss = loss + chosen.square().sum() / max(positive.sum(), 1)
                    loss = loss + torch.masked_select(rows[..., :4], wide).square().sum()
                return loss * self.gain * len(rows), loss.detach()[None].repeat(3)
        """,
    "data/hyps/hyp.scratch-high.yaml": "lr0: 0.01\nbox: 7.5\n",
    "data/hyps/mine.yaml": "lr0: 0.01\nbox: 1.5\n",
    "models/detect/gelan-c.yaml": "width: 8\nhead: [[-1, 1, DDetect, [nc]]]\n",
    "models/detect/yolov9-c.yaml": "width: 8\nhead: [[-1, 1, DualDDetect, [nc]]]\n",
    "models/detect/headless.yaml": "width: 8\n",
}
FILES["utils/loss_tal_dual.py"] = FILES["utils/loss_tal.py"]


def write(folder):
    """Write the checkout's files under a folder and return it."""
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip("\n"))
    return folder
