"""Training of the demo model, tokenizer and transformer: ``python -m toprovar_fx.training``."""
