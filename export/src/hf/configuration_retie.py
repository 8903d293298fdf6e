"""Configuration of a Recursive Transformer that `retie export --to hf` wrote."""

from transformers import PretrainedConfig


class RetieConfig(PretrainedConfig):
    """Beside the keys of the model's family: `recursion`, what retie reads, and `decoder`, the same spelled out for this code."""

    model_type = "MODEL_TYPE"

    def __init__(self, decoder=None, recursion=None, **kwargs):
        self.decoder = decoder
        self.recursion = recursion
        super().__init__(**kwargs)
