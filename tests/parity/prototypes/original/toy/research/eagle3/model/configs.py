import json
from pathlib import Path
from types import SimpleNamespace


class EConfig:
    @staticmethod
    def from_pretrained(file):
        return SimpleNamespace(**json.loads(Path(file).read_text()))
