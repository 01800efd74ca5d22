"""`vit schema`"""

import json

from vit_core.checkpoints import CheckpointConfig


def schema() -> int:
    """Print the JSON schema of a checkpoint's config.json.

    Example:
        vit schema > config.schema.json
    """
    print(json.dumps(CheckpointConfig.json_schema(), indent=2))
    return 0
