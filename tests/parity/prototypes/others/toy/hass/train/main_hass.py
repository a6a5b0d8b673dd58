"""A stand-in for HASS' script: flat, with the names that are listened to."""

import argparse
from pathlib import Path

import torch
import wandb
from accelerate import Accelerator
from model.cnets_hass import Model
from model.configs import EConfig
from safetensors import safe_open
from torch.utils.data import DataLoader, Dataset

parser = argparse.ArgumentParser()
for flag in ("basepath", "configpath", "tmpdir", "cpdir"):
    parser.add_argument(f"--{flag}")
for flag, default in {"lr": 3e-5, "topk_w": 1.0}.items():
    parser.add_argument(f"--{flag}", type=float, default=default)
for flag in ("bs", "epoch", "topk", "forward_num_total"):
    parser.add_argument(f"--{flag}", type=int)
args = parser.parse_args()
train_config = {"p_w": 0.1, "v_w": 1.0, "topk_w": args.topk_w, "b1": 0.9, "b2": 0.95, "max_len": 2048}
train_config |= {"noise": "uniform", "std": 0.2, "grad_clip": 0.5}
accelerator = Accelerator(mixed_precision="bf16")
wandb.init(project="toy")
with safe_open(Path(args.basepath) / "model-00002-of-00002.safetensors", "pt") as stored:
    head = torch.nn.Linear(1, 1, bias=False).requires_grad_(False)
    head.weight.data = stored.get_tensor("lm_head.weight").float()


class Samples(Dataset):
    def __init__(self, paths):
        self.data = paths

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        sample = torch.load(self.data[index], weights_only=True)
        features, mask = sample["hidden_state"], sample["loss_mask"].clone()
        mask[-1] = 0
        noise = torch.rand_like(features) - 0.5
        nothing = torch.zeros(1, features.shape[1])
        return {
            "ids": torch.cat([sample["input_ids"][1:], torch.zeros(1, dtype=torch.int64)]),
            "features": features + noise,
            "target": torch.cat([features[1:], nothing]),
            "mask": mask,
            "real": torch.ones_like(mask),
        }


def collate(items):
    pad = torch.nn.utils.rnn.pad_sequence
    return {name: pad([item[name] for item in items], batch_first=True) for name in items[0]}


files = sorted(str(path) for path in Path(args.tmpdir).iterdir())
loader = DataLoader(Samples(files), batch_size=args.bs, shuffle=True, num_workers=2, collate_fn=collate)
model = Model(EConfig.from_pretrained(args.configpath), load_emb=True, path=args.basepath)
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
model, head, optimizer, loader = accelerator.prepare(model, head, optimizer, loader)
for data in loader:
    hidden, target, mask, history, loss = data["features"], data["target"], data["mask"][..., None], None, 0
    target_p = head(target).softmax(-1)
    for _ in range(args.forward_num_total):
        predict = model(hidden, data["ids"], data["real"], q_hidden_states=history)
        moved = torch.cat([hidden[:, :1], predict[:, :-1]], dim=1)[None].detach()
        history = moved if history is None else torch.cat([history, moved])
        out_head = head(predict)
        rows, count = target_p * out_head.log_softmax(-1) * mask, mask.sum() + 1e-5
        ploss = -rows.sum() / count
        likeliest = target_p.topk(args.topk, dim=-1).indices
        topk_loss = -rows.gather(-1, likeliest).sum() / count
        apart = torch.nn.SmoothL1Loss(reduction="none")(predict, target)
        vloss = (apart.mean(-1) * mask[..., 0]).sum() / count
        total_loss = vloss + train_config["p_w"] * ploss + train_config["topk_w"] * topk_loss
        loss += total_loss
        accelerator.backward(total_loss)
    accelerator.clip_grad_value_(model.parameters(), train_config["grad_clip"])
    optimizer.step()
