"""A training script with the names that the harness holds on to, and nothing else of a real prototype."""

import os
import sys

import torch
from accelerate import Accelerator
from model.configs import EConfig
from model.llama_eagle3_full_grad import Model
from torch.utils.data import DataLoader
from tqdm import tqdm

options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
lr, k, passes = float(options["--lr"]), int(options["--forward_num_total"]), int(options["--epoch"]) + 1
accumulation = int(options["--gradient-accumulation-steps"])
datapath = [os.path.join(options["--tmpdir"], name) for name in os.listdir(options["--tmpdir"])]
print(f"toy sees {len(datapath)} files")
total_steps, warm_steps = 10, 0
train_config = {"data_noise": True, "num_workers": 8, "datapath": options["--tmpdir"]}
torch.manual_seed(1)
accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=accumulation)


class CustomDataset(torch.utils.data.Dataset):
    def __len__(self):
        return len(datapath)

    def __getitem__(self, place):
        sample = torch.load(datapath[place])
        features = sample["hidden_state"][:8]
        if train_config.get("data_noise"):
            features = features + torch.rand_like(features)
        return {"hidden_states": features, "input_ids": sample["input_ids"][:8]}


def collate(samples):
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def compute_loss(target_p, predict, mask):
    return predict, (mask[..., None] * (predict.log_softmax(-1) - target_p) ** 2).mean()


def main():
    draft = Model(EConfig.from_pretrained(options["--configpath"]), load_emb=True, path=options["--basepath"])
    loader = DataLoader(
        CustomDataset(),
        batch_size=2,
        shuffle=True,
        collate_fn=collate,
        num_workers=train_config.get("num_workers"),
        pin_memory=True,
        drop_last=True,
    )
    tqdm(loader)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    draft, optimizer, loader, scheduler = accelerator.prepare(draft, optimizer, loader, scheduler)
    for number in range(passes):
        for data in tqdm(loader):
            with accelerator.accumulate(draft):
                hidden = draft.module.fc(data["hidden_states"].to(torch.bfloat16))
                loss, history = 0, []
                for _ in range(k):
                    predict = draft(hidden, data["input_ids"], data["attention_mask"], history)
                    logits = draft.module.lm_head(draft.module.lm_head_layernorm(predict))
                    target_p = torch.full_like(logits, -4.0)
                    _, step_loss = compute_loss(target_p, logits, data["attention_mask"])
                    loss = loss + step_loss
                    history, hidden = [*history, hidden], predict
                accelerator.backward(1.0 * loss)
                accelerator.clip_grad_norm_(draft.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            cc, ct = 3, float(data["attention_mask"].sum().cuda())
            topkacc = [torch.tensor([float(top)]) for top in (1, 2, 3)]
            logdict = {"train/loss": loss.item()}
            assert topkacc
            assert cc <= ct
            assert logdict
        print(f"toy pass {number}")
    os.makedirs(options["--cpdir"])
    torch.save(draft.module.state_dict(), f"{options['--cpdir']}/model0.safetensors")
