# ruff: noqa: N999
def eager_attention_forward_train(module, query, keys, values, mask, **_):
    weights = (query @ keys[0].transpose(-1, -2)).softmax(-1)
    return weights @ values[0], weights
