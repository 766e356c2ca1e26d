"""Side-by-side timings against peers. Only ratios taken in one run mean anything here."""
