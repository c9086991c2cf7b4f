"""One page of what measurements wrote: quality and cost, times, ablations, entropies, pictures."""
