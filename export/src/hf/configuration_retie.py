"""Configuration of a Recursive Transformer that `retie export --to hf` wrote."""

from transformers import PretrainedConfig


class RetieConfig(PretrainedConfig):
    """Beside the keys of the model's family: `recursion`, what retie reads, and `stack`, the same spelled out for this code."""

    model_type = "MODEL_TYPE"

    def __init__(self, stack=None, recursion=None, **kwargs):
        self.stack = stack
        self.recursion = recursion
        super().__init__(**kwargs)
