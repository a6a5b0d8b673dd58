"""A stand-in for EAGLE's script: flat, with the names that are listened to."""

import argparse
import json

import deepspeed
import torch
import wandb
from cnets import Model
from configs import EConfig
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

parser = argparse.ArgumentParser()
for flag in ("basepath", "savedir"):
    parser.add_argument(f"--{flag}")
args = deepspeed.add_config_arguments(parser).parse_args()
with open(args.deepspeed_config) as opened:
    ds_config = json.load(opened)
train_config = {"max_len": 2048, "gradient_checkpoint": True}
tokenizer = AutoTokenizer.from_pretrained(args.basepath)
rows = load_dataset("json", data_files="nothing")["train"].shuffle(seed=42)
rows = rows.map(lambda examples: examples, remove_columns=rows.column_names)
rows.set_format(type="torch")


def collate(items):
    length = max(item["input_ids"].shape[1] for item in items)
    pad = torch.nn.functional.pad
    return {
        name: torch.cat([pad(item[name], (0, length - item[name].shape[1])) for item in items]) for name in items[0]
    }


model = Model(
    EConfig.from_pretrained("config.json"), ds_config, train_config, path=args.basepath, load_emb=True, load_head=True
)
model.scandata("nothing", args.basepath)
engine, _, _, _ = deepspeed.initialize(args=args, model=model, model_parameters=model.parameters())
wandb.init(project="toy")
device = deepspeed.comm.get_local_rank()
for data in DataLoader(rows, batch_size=1, shuffle=True, num_workers=4, collate_fn=collate):
    plosses, _, _ = engine(**{name: value.to(device) for name, value in data.items()})
    ploss_weight = [0.8**step for step in range(len(plosses))]
    loss = sum(weight * value for weight, value in zip(ploss_weight, plosses))
    engine.backward(loss)
    engine.step()
