"""What a user does with nothing but the wheel: ``python walk.py FOLDER`` in an environment that has no checkout.

Dialogues to records, records to both drafts, resumed and opened as the front page says, measured from another folder;
then a parity run. Every command is shown, and the first that does not end with 0 ends the walk with its exit code. Only
the standard library is imported here, so that nothing but the wheel is on the commands' path.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

START = """
import json
from pathlib import Path
from parity.fixtures.conversations import SHAREGPT, load_conversations
from parity.fixtures.draft import eagle3_config, hass_config
from parity.fixtures.tokenizer import build_tokenizer
from parity.fixtures.verifier import VerifierSpec, build_verifier
spec = VerifierSpec(hidden_size=32, num_hidden_layers=7, intermediate_size=48, seed=3)
build_tokenizer(build_verifier(spec, Path('verifier')))
Path('dialogues.json').write_text(SHAREGPT.read_text())
Path('eagle3.json').write_text(json.dumps(eagle3_config(spec, 128)))
Path('hass.json').write_text(json.dumps(hass_config(spec)))
prompts = [{'messages': dialogue} for dialogue in load_conversations()[-2:]]
Path('prompts.json').write_text(json.dumps(prompts))
Path('elsewhere').mkdir()
"""
OURS = """
import sys, parity, ports, parity.fixtures
assert all('site-packages' in module.__file__ for module in (parity, ports, parity.fixtures)), 'not the wheel'
assert 'torchaudio' not in sys.modules
"""
OPEN = "from speculators import SpeculatorModel; print(type(SpeculatorModel.from_pretrained({!r})).__name__)"
GENERATE = (
    "speculator records --verifier verifier --dataset sharegpt --data dialogues.json --chat-template plain "
    "--samples 7 --no-progress --algorithm {0} --out {0}_records"
)
VOCABULARY = "speculator vocabulary --data eagle3_records --verifier verifier --draft-config eagle3.json"
TRAIN = (
    "speculator train {0} --verifier {1} --draft-config {0}.json --data {0}_records --out {0}_run --batch-size 2 "
    "--num-workers 0 --lr 1e-3 --epochs 2 --mixed-precision no --no-progress --resume auto"
)
EVALUATE = "speculator evaluate ../{0}_run/{1} --prompts ../prompts.json --max-new-tokens 16 --dtype float32"
MAPS = " --t2d eagle3_records/t2d.npy --d2t eagle3_records/d2t.npy"


def commands(folder):
    """Where each runs, below the folder, and what it is."""
    absolute = shlex.quote(str(folder / "verifier"))
    walk = [("", python(OURS)), ("", python(START)), ("", GENERATE.format("eagle3")), ("", VOCABULARY)]
    walk += [("", GENERATE.format("hass"))]
    for algorithm, last, maps in (("eagle3", "model1", MAPS), ("hass", "state_1", "")):
        cut_short = TRAIN.format(algorithm, "verifier") + maps + " --max-steps 1"
        walk += [("", cut_short), ("", TRAIN.format(algorithm, absolute) + maps)]
        registered = "import ports.hass; " if algorithm == "hass" else ""
        walk += [("", python(registered + OPEN.format(f"{algorithm}_run/{last}")))]
        walk += [("elsewhere", EVALUATE.format(algorithm, last))]
    return [*walk, ("", "parity run eagle3 -k k1")]


def python(code):
    return f"python -c {shlex.quote(code)}"


def main(folder):
    """Walk in ``folder``, which must not exist."""
    folder.mkdir(parents=True)
    folder = folder.resolve()
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": beside, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for place, command in commands(folder):
        print("+", command, flush=True)
        code = subprocess.run(shlex.split(command), cwd=folder / place, env=environment, check=False).returncode
        if code:
            print(f"exit code {code}", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
