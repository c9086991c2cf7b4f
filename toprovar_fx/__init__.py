"""ToProVAR-FX: a `torch.compile` backend that prunes visual autoregressive models."""

__version__ = "0.1.0"
