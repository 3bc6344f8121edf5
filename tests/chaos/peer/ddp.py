"""The same kind of training in plain DistributedDataParallel, for `torchrun --max-restarts`: gloo, a small residual
network on made-up images, a checkpoint every few steps, as people write it. Appends a line a finished step of rank 0
to a log: seconds since 1970, restart, step, process."""

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Block(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if width_in != width else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def network(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8, help="of each process")
    args = parser.parse_args()

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    with open(os.path.join(args.dir, "pids"), "a") as file:
        file.write(f"{restart} {rank} {os.getpid()}\n")

    generator = torch.Generator().manual_seed(7)
    images = torch.randn(2400, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (2400,), generator=generator)
    torch.manual_seed(7)
    model = DistributedDataParallel(network(8))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    path = os.path.join(args.dir, "checkpoint.pt")
    step = 0
    if os.path.exists(path):
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]

    per_epoch = len(images) // (args.batch * world)
    log = open(os.path.join(args.dir, "steps"), "a", buffering=1)
    while step < args.steps:
        epoch, within = divmod(step, per_epoch)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        first = (within * world + rank) * args.batch
        chosen = order[first:first + args.batch]
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        step += 1
        if rank == 0:
            log.write(f"{time.time()} {restart} {step} {os.getpid()}\n")
            if step % args.save_every == 0:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path + ".new")
                os.replace(path + ".new", path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
