"""The studies' configurations: one file each, whose `get_config(preset)` gives a ConfigDict."""

import ml_collections


def new_config(study: str, preset: str, presets: tuple[str, ...]) -> ml_collections.ConfigDict:
    """An empty configuration that knows its study.

    Raises:
        ValueError: the study has no such preset.
    """
    if preset not in presets:
        raise ValueError(f"unknown preset {preset!r}; there are: {', '.join(presets)}")
    return ml_collections.ConfigDict({"study": study})
