"""A grammar of next-scale transformers: every model that it draws also says what a pruned run must compute.

`spec` names the constructs; `parts_*` are the modules, each with a `forward` as people write it and, where
token positions matter, a method `at` that computes chosen positions by itself; `model` assembles them;
`reference` runs a pruned generation without FX; `strategy` draws; `judge` compares.
"""
