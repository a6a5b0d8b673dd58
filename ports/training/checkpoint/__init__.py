"""Checkpoints that a run goes on from as if it had never stopped.

A checkpoint is a plain Speculators directory with a subfolder ``training_state/``::

    model3/ or step_1200/       config.json, model.safetensors, the verifier's tokenizer files
      training_state/
        state.json              position, totals, schedule, fingerprint of the run        (state.py, fingerprint.py)
        optimizer.safetensors   Adam's moments and step counts by parameter name          (adam.py)
        generators.safetensors  random generators of every process, now and at the pass' start (generators.py)
        manifest.json           size and sha256 of every file                             (manifest.py)
"""

FOLDER = "training_state"
