"""The joint second moments of two batches of inputs, and what each layer of an infinitely wide network does to them."""
