"""Plain block layouts that the compiler has never seen, for the proofs."""
