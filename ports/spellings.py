"""What the prototypes call things: the flags of their command lines, which their names here take as they are."""

NOW = {
    **dict.fromkeys(("basepath", "model_path"), "verifier"),
    **dict.fromkeys(("tmpdir", "data_path"), "data"),
    **dict.fromkeys(("cpdir", "outdir"), "out"),
    "configpath": "draft_config",
    "bs": "batch_size",
    "forward_num_total": "ttt_steps",
    "max_len": "max_length",
    "ckpt_path": "resume",
    "gpus_per_model": "tensor_parallel",
    **dict.fromkeys(("epoch", "data_num", "topk_w")),
}
"""What each is called everywhere else, in flags, YAML files and the environment; None: nothing, it is theirs alone."""
