"""Names, shapes and types of torchvision's state dictionaries: `python state_dicts.py > state_dicts.txt`."""

import torchvision

for arch in ("resnet18", "resnet50"):
    for name, value in torchvision.models.get_model(arch).state_dict().items():
        shape = "x".join(map(str, value.shape)) or "scalar"
        print(arch, name, shape, str(value.dtype).removeprefix("torch."))
